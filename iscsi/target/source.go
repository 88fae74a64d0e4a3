package target

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
)

// errNothing is what a source returns that has nothing to read now.
var errNothing = errors.New("nothing has arrived")

// source is a connection that is read, with waiting or, while now is set, without.
// One goroutine at a time uses it.
type source struct {
	net.Conn
	raw  *patience // nil: not this kind of connection
	now  bool
	once func(fd uintptr) bool // one attempt
	wait func(fd uintptr) bool
	buf  []byte
	n    int
	err  error
}

func (s *source) init(nc net.Conn, looking *atomic.Bool) {
	s.Conn = nc
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	s.raw = newPatience(raw, looking)
	s.once = func(fd uintptr) bool {
		s.n, s.err = syscall.Read(int(fd), s.buf)
		return true
	}
	s.wait = func(fd uintptr) bool {
		s.once(fd)
		return !errors.Is(s.err, syscall.EAGAIN) && !errors.Is(s.err, syscall.EINTR)
	}
}

// SyscallConn implements syscall.Conn, for the reader of PDUs: what is long it
// reads past Read, and always waits for.
func (s *source) SyscallConn() (syscall.RawConn, error) {
	if s.raw == nil {
		return nil, errors.ErrUnsupported
	}
	return s.raw, nil
}

// Read implements io.Reader. An end or an error is left to a Read that waits.
func (s *source) Read(p []byte) (int, error) {
	if s.raw == nil {
		return s.Conn.Read(p)
	}
	s.buf = p
	defer func() { s.buf = nil }()
	if s.now {
		if err := s.raw.RawConn.Read(s.once); err != nil || s.n <= 0 {
			return 0, errNothing
		}
		return s.n, nil
	}
	switch err := s.raw.Read(s.wait); {
	case err != nil:
		return 0, err
	case s.err != nil:
		return 0, os.NewSyscallError("read", s.err)
	case s.n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return s.n, nil
}
