package initiator

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A target answers a moment after it was asked. Whoever waits for that waits in
// the kernel, with the thread: to park the goroutine and have the poller wake it
// takes Go's scheduler longer than many an answer takes. It is for a moment only,
// so that a connection on which nothing happens has no thread to itself.
const (
	moment  = 2 * time.Millisecond
	vainMax = 4  // waits in vain, in a row, before no more are made
	sitOut  = 64 // sleeps, after that
)

// source is a connection that is read so. One goroutine at a time reads; the other
// methods are the connection's own.
type source struct {
	net.Conn
	raw *kernelWait // nil: a kind of connection that has no file descriptor

	try func(fd uintptr) bool
	buf []byte
	n   int
	err error
}

func newSource(nc net.Conn) *source {
	c := &source{Conn: nc}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return c
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return c
	}
	c.raw = &kernelWait{RawConn: raw}
	c.raw.try = c.raw.attempt
	c.try = func(fd uintptr) bool {
		for {
			if c.n, c.err = syscall.Read(int(fd), c.buf); !errors.Is(c.err, syscall.EINTR) {
				return !errors.Is(c.err, syscall.EAGAIN)
			}
		}
	}
	return c
}

// SyscallConn implements syscall.Conn, for who reads past Read.
func (c *source) SyscallConn() (syscall.RawConn, error) {
	if c.raw == nil {
		return nil, errors.ErrUnsupported
	}
	return c.raw, nil
}

// Read implements io.Reader.
func (c *source) Read(p []byte) (int, error) {
	if c.raw == nil {
		return c.Conn.Read(p)
	}
	c.buf = p
	err := c.raw.Read(c.try)
	c.buf = nil
	switch {
	case err != nil:
		return 0, err
	case c.err != nil:
		return 0, os.NewSyscallError("read", c.err)
	case c.n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return c.n, nil
}

// kernelWait is a syscall.RawConn whose Read waits in the kernel first.
type kernelWait struct {
	syscall.RawConn
	read  func(fd uintptr) bool // of the Read under way
	try   func(fd uintptr) bool // attempt, made once
	fds   [1]unix.PollFd
	asked bool // the kernel was asked in this Read
	waits bool // the last Read had to wait
	vain  int
}

// Read implements syscall.RawConn.
func (w *kernelWait) Read(read func(fd uintptr) bool) error {
	w.read, w.asked = read, false
	err := w.RawConn.Read(w.try)
	w.read = nil
	return err
}

// attempt reports whether the Read is over. Where the last one had to wait this one
// will, too: it saves itself the look before. The netpoller has been told before of
// what arrives from now on, so nothing is missed between the last look and the
// sleep.
func (w *kernelWait) attempt(fd uintptr) bool {
	if w.asked { // woken by the poller
		return w.read(fd)
	}
	w.asked = true
	if !w.waits && w.read(fd) {
		return true
	}
	if w.vain >= vainMax {
		if w.vain++; w.vain > vainMax+sitOut {
			w.vain = vainMax - 1
		}
		w.waits = false
		return w.read(fd)
	}
	w.fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	n, err := unix.Poll(w.fds[:], int(moment/time.Millisecond))
	switch {
	case n > 0:
		w.vain = 0
	case err == nil:
		w.vain++
	}
	w.waits = n > 0
	return w.read(fd)
}
