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

// source is a connection whose reader waits in the kernel, with its thread. To park
// the goroutine and have Go's poller wake it takes longer than many an answer of a
// target, and the poller would be woken by all that comes, whoever waits for it.
// So a TCP connection is taken out of the poller's hands and made a blocking one,
// and a session, of which there are few, may have a thread to itself. Other kinds
// of connections stay as they are.
type source struct {
	net.Conn          // nil: it is file
	file     *os.File // not known to the poller
	raw      *kernelWait

	try func(fd uintptr) bool
	buf []byte
	n   int
	err error
}

// newSource takes a connection over: nc is not to be used any more.
func newSource(nc net.Conn) (*source, error) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return &source{Conn: nc}, nil
	}
	defer nc.Close()
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := raw.Control(func(was uintptr) {
		if fd, err = unix.FcntlInt(was, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, false)
		}
	}); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	c := &source{file: os.NewFile(uintptr(fd), "iSCSI connection")}
	if raw, err = c.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, c.file.Close())
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
	return c, nil
}

// SyscallConn implements syscall.Conn, for who reads or writes past Read and Write.
// Write is for one attempt.
func (c *source) SyscallConn() (syscall.RawConn, error) {
	if c.raw == nil {
		return nil, errors.ErrUnsupported
	}
	return c.raw, nil
}

// Read implements io.Reader. One goroutine at a time reads.
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

// Write implements io.Writer. One goroutine at a time writes.
func (c *source) Write(p []byte) (int, error) {
	if c.raw == nil {
		return c.Conn.Write(p)
	}
	for n := 0; n < len(p); {
		if err := c.write(func(fd int) (err error) {
			k, err := syscall.Write(fd, p[n:])
			n += max(k, 0)
			return err
		}); err != nil {
			return n, os.NewSyscallError("write", err)
		}
	}
	return len(p), nil
}

// write makes a system call, which waits until the socket has room.
func (c *source) write(call func(fd int) error) (err error) {
	e := c.raw.Write(func(fd uintptr) bool {
		for {
			if err = call(int(fd)); !errors.Is(err, syscall.EINTR) {
				return true
			}
		}
	})
	return errors.Join(e, err)
}

// writeAll writes all pieces of vec, which it changes.
func (c *source) writeAll(vec net.Buffers) error {
	if c.raw == nil {
		_, err := vec.WriteTo(c.Conn)
		return err
	}
	return c.writev(vec)
}

// vecMax is the most pieces of one writev (IOV_MAX).
const vecMax = 1024

func (c *source) writev(vec [][]byte) error {
	for len(vec) > 0 {
		n := 0
		if err := c.write(func(fd int) (err error) {
			n, err = unix.Writev(fd, vec[:min(len(vec), vecMax)])
			return err
		}); err != nil {
			return os.NewSyscallError("writev", err)
		}
		for len(vec) > 0 && n >= len(vec[0]) {
			n -= len(vec[0])
			vec = vec[1:]
		}
		if n > 0 {
			vec[0] = vec[0][n:]
		}
	}
	return nil
}

// Close ends what waits for the connection.
func (c *source) Close() error {
	if c.raw == nil {
		return c.Conn.Close()
	}
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) }) // it may be closed, or never have been connected
	return c.file.Close()
}

// readable reports whether a read would not wait.
func readable(fd uintptr) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds[:], 0)
	return n > 0 && err == nil
}

// kernelWait is a syscall.RawConn whose Read waits in the kernel. Before that it
// looks for a moment: a target that answers at once answers within that, and need
// not wake anybody, which takes its time too. It offers the processor to others
// between two looks; once somebody takes it, and after looks in vain, it looks no
// more for a while.
type kernelWait struct {
	syscall.RawConn
	read   func(fd uintptr) bool // of the Read under way
	try    func(fd uintptr) bool // attempt, made once
	vain   int                   // looks, in a row
	resume time.Time             // no look before
	rest   time.Duration         // the last one, 0 after a look that found something
}

const (
	lookFor   = 60 * time.Microsecond
	lookTaken = 60 * time.Microsecond // between two looks: somebody had the processor
	lookVain  = 4
	restMin   = 5 * time.Millisecond // twice as long each time, up to
	restMax   = 100 * time.Millisecond
)

// Read implements syscall.RawConn.
func (w *kernelWait) Read(read func(fd uintptr) bool) error {
	w.read = read
	err := w.RawConn.Read(w.try)
	w.read = nil
	return err
}

func (w *kernelWait) attempt(fd uintptr) bool {
	w.look(fd)
	return w.read(fd)
}

// look looks for a moment whether something comes.
func (w *kernelWait) look(fd uintptr) {
	begun := time.Now()
	if begun.Before(w.resume) || readable(fd) {
		return
	}
	for last := begun; last.Sub(begun) < lookFor; {
		_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // can't fail
		if readable(fd) {
			w.vain, w.rest = 0, 0
			return
		}
		now := time.Now()
		if now.Sub(last) > lookTaken {
			w.vain = lookVain
			break
		}
		last = now
	}
	if w.vain++; w.vain >= lookVain {
		w.vain = 0
		w.rest = min(max(2*w.rest, restMin), restMax)
		w.resume = time.Now().Add(w.rest)
	}
}
