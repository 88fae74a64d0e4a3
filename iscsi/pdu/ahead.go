package pdu

import (
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// How much is read ahead of what is asked for. Short PDUs come many at once, and
// copying them out of the buffer costs less than a system call each. A long data
// segment is read to where it belongs, and with it no more than what tells how
// the stream goes on: its padding and digest, and the next header. What is read
// beyond that would be copied twice.
const (
	longData   = 16 << 10 // bytes of a long data segment
	afterLong  = 3 + 4 + HeaderLen + 4
	emptyReads = 100 // in a row, before a source is given up
)

// ahead is a stream with a buffer for what comes after what was asked for.
type ahead struct {
	src  io.Reader
	vec  *scatter // src's, nil: it is read into one place at a time
	buf  []byte
	r, w int  // buf[r:w] has arrived
	long bool // a long data segment is being read, or was read last
}

func newAhead(src io.Reader, size int) ahead {
	return ahead{src: src, vec: newScatter(src), buf: make([]byte, max(size, afterLong))}
}

func (a *ahead) buffered() int { return a.w - a.r }

// peek reads on until n bytes are buffered; n is at most the buffer's size.
func (a *ahead) peek(n int) error {
	if len(a.buf)-a.r < n {
		a.w = copy(a.buf, a.buf[a.r:a.w])
		a.r = 0
	}
	for tries := 0; a.w-a.r < n; {
		to := len(a.buf)
		if a.long {
			to = min(to, a.r+max(n, afterLong))
		}
		k, err := a.src.Read(a.buf[a.w:to])
		a.w += k
		if k == 0 {
			if tries++; err == nil && tries == emptyReads {
				err = io.ErrNoProgress
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// read fills p. io.EOF means that the stream ended before its first byte.
func (a *ahead) read(p []byte) error {
	n := copy(p, a.buf[a.r:a.w])
	a.r += n
	for rest := p[n:]; len(rest) > 0; rest = p[n:] {
		a.r, a.w = 0, 0
		k, err := a.more(rest)
		n += k
		switch {
		case err == nil || k == len(rest):
		case errors.Is(err, io.EOF) && n > 0:
			return io.ErrUnexpectedEOF
		default:
			return err
		}
	}
	return nil
}

// more reads into p, with nothing buffered, and says how much of p that was.
func (a *ahead) more(p []byte) (int, error) {
	switch {
	case len(p) < longData && !a.long:
		err := a.peek(1)
		n := copy(p, a.buf[:a.w])
		a.r = n
		return n, err
	case a.vec == nil:
		return io.ReadFull(a.src, p)
	}
	n, err := a.vec.read(p, a.buf[:afterLong])
	if n > len(p) {
		a.w = n - len(p)
		n = len(p)
	}
	return n, err
}

// scatter reads a file descriptor into two places with one system call.
type scatter struct {
	raw syscall.RawConn
	try func(fd uintptr) bool
	to  [2][]byte
	n   int
	err error
}

// newScatter returns nil for a source that has no file descriptor.
func newScatter(src io.Reader) *scatter {
	c, ok := src.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	s := &scatter{raw: raw}
	s.try = func(fd uintptr) bool {
		for {
			s.n, s.err = unix.Readv(int(fd), s.to[:])
			if !errors.Is(s.err, unix.EINTR) {
				return !errors.Is(s.err, unix.EAGAIN)
			}
		}
	}
	return s
}

// read waits until something has arrived for p, and ahead after it.
func (s *scatter) read(p, ahead []byte) (int, error) {
	s.to = [2][]byte{p, ahead}
	err := s.raw.Read(s.try)
	s.to = [2][]byte{}
	switch {
	case err != nil:
		return 0, err
	case s.err != nil:
		return 0, os.NewSyscallError("readv", s.err)
	case s.n == 0:
		return 0, io.EOF
	}
	return s.n, nil
}
