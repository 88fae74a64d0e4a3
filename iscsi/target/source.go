package target

import (
	"errors"
	"net"
	"syscall"
)

// errNothing is what a source returns that has nothing to read now.
var errNothing = errors.New("nothing has arrived")

// source is a connection that is read, with waiting or, while now is set, without.
// One goroutine at a time uses it.
type source struct {
	net.Conn
	raw syscall.RawConn // nil: not this kind of connection
	now bool
	try func(fd uintptr) bool
	buf []byte
	n   int
}

func (s *source) init(nc net.Conn) {
	s.Conn = nc
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	s.raw = raw
	s.try = func(fd uintptr) bool {
		s.n, _ = syscall.Read(int(fd), s.buf)
		return true // one attempt
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
	if !s.now {
		return s.Conn.Read(p)
	}
	s.buf, s.n = p, 0
	err := s.raw.Read(s.try)
	s.buf = nil
	if err != nil || s.n <= 0 {
		return 0, errNothing
	}
	return s.n, nil
}
