// Package patient reads connections whose other end answers at once.
//
// A peer with much under way sends what comes next some microseconds after it has
// got what it waited for. Falling asleep in between and being woken takes longer
// than that, and the peer, who has to wake a sleeper, pays for it as well. So a
// reader whose last waits were short looks for a moment before it sleeps.
//
// It does so only while that costs nobody anything: one reader at a time of those
// that share a flag, each look offers the processor to whoever else could use it,
// and once somebody takes it, this reader doesn't look for a while, longer each
// time. A few looks in vain, and it sleeps at once until its waits are short again.
package patient

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lookFor   = 60 * time.Microsecond
	shortWait = 100 * time.Microsecond // asleep: a look that long would often do
	enough    = 4                      // short waits, or looks in vain, in a row
	taken     = 60 * time.Microsecond  // between two looks: somebody had the processor
	rest      = 20 * time.Millisecond  // after that; twice as long each time, up to
	longRest  = 5 * time.Second
)

// Conn is a connection with such a reader. One goroutine at a time reads; the other
// methods are the connection's own.
type Conn struct {
	net.Conn
	raw *waiting // nil: a kind of connection that has no file descriptor

	once func(fd uintptr) bool // one attempt
	full func(fd uintptr) bool // until it is over
	buf  []byte
	n    int
	err  error
}

// New makes a Conn. Readers that share looking never look at the same time.
func New(nc net.Conn, looking *atomic.Bool) *Conn {
	c := &Conn{Conn: nc}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return c
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return c
	}
	c.raw = &waiting{RawConn: raw, looking: looking}
	c.raw.try = c.raw.attempt
	c.once = func(fd uintptr) bool {
		for {
			if c.n, c.err = syscall.Read(int(fd), c.buf); !errors.Is(c.err, syscall.EINTR) {
				return true
			}
		}
	}
	c.full = func(fd uintptr) bool {
		c.once(fd)
		return !errors.Is(c.err, syscall.EAGAIN)
	}
	return c
}

// SyscallConn implements syscall.Conn, for who reads past Read. It is the
// connection's own, without patience: who waits for the rest of something long
// waits for a peer at work, and should leave it the processor.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if c.raw == nil {
		return nil, errors.ErrUnsupported
	}
	return c.raw.RawConn, nil
}

// Read implements io.Reader.
func (c *Conn) Read(p []byte) (int, error) {
	if c.raw == nil {
		return c.Conn.Read(p)
	}
	c.buf = p
	err := c.raw.Read(c.full)
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

// ErrNothing is what ReadNow returns when there is nothing to read.
var ErrNothing = errors.New("nothing has arrived")

// ReadNow reads what has arrived, without waiting. An end or an error is left to
// Read. It is for connections that have a file descriptor: CanReadNow.
func (c *Conn) ReadNow(p []byte) (int, error) {
	c.buf = p
	err := c.raw.RawConn.Read(c.once)
	c.buf = nil
	if err != nil || c.n <= 0 {
		return 0, ErrNothing
	}
	return c.n, nil
}

// CanReadNow reports whether ReadNow works.
func (c *Conn) CanReadNow() bool { return c.raw != nil }

// waiting is the way of waiting.
type waiting struct {
	syscall.RawConn
	looking *atomic.Bool // somebody looks

	read   func(fd uintptr) bool // of the Read under way
	try    func(fd uintptr) bool // attempt, made once
	slept  time.Time             // since when; zero: not in this Read
	short  int                   // short waits in a row
	vain   int                   // looks in vain, in a row
	resume time.Time             // no look before
	rest   time.Duration         // the last one, 0 after a look that found something
}

// Read implements syscall.RawConn.
func (w *waiting) Read(read func(fd uintptr) bool) error {
	w.read, w.slept = read, time.Time{}
	err := w.RawConn.Read(w.try)
	w.read = nil
	return err
}

// attempt reports whether the Read is over. The netpoller has been told before of
// what arrives from now on, so nothing is missed between a look and the sleep.
func (w *waiting) attempt(fd uintptr) bool {
	if w.read(fd) {
		if !w.slept.IsZero() {
			w.woken()
		}
		return true
	}
	if w.slept.IsZero() && w.short >= enough && w.look(fd) {
		return true
	}
	w.slept = time.Now()
	return false
}

func (w *waiting) woken() {
	if time.Since(w.slept) < shortWait {
		w.short++
	} else {
		w.short = 0
	}
}

// look tries to read for a moment.
func (w *waiting) look(fd uintptr) bool {
	begun := time.Now()
	if begun.Before(w.resume) || !w.looking.CompareAndSwap(false, true) {
		return false
	}
	defer w.looking.Store(false)
	for last := begun; last.Sub(begun) < lookFor; {
		_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // can't fail
		if w.read(fd) {
			w.vain, w.rest = 0, 0
			return true
		}
		now := time.Now()
		if now.Sub(last) > taken {
			w.rest = min(max(2*w.rest, rest), longRest)
			w.resume = now.Add(w.rest)
			return false
		}
		last = now
	}
	if w.vain++; w.vain >= enough {
		w.vain, w.short = 0, 0
	}
	return false
}
