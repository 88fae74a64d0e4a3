package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
)

// Options has usable zero values.
type Options struct {
	// Depth is how many requests are with the device at once; more wait in the
	// kernel. Each has a buffer of 1 MiB. Default 32.
	Depth int
	// Timeout is for how long the device may leave a request without an
	// answer. Default 60 s.
	Timeout time.Duration
	// Log gets a line for each error of the device. Default: none.
	Log *slog.Logger
}

// ErrHung says that the device left a request without an answer.
var ErrHung = errors.New("the device does not answer")

// handler carries requests out.
type handler interface {
	// handle carries out a request, which lies in buf, and returns the answer,
	// which may as well; nil for those that have none. It runs beside itself.
	handle(r request, buf []byte) []byte
}

// Serve answers the kernel until the file is unmounted and nobody has it open
// any more, or Close is called, which is nil. It is called once, and does not
// close dev. After ErrHung, requests may still be with the device, and
// goroutines wait for them: end the process.
//
// Each of Options.Depth threads blocks in read(2). Go's poller must not be in
// it: whoever in this process opens the file itself would have it ask, with the
// poller's lock held, whether the file is ready, and the answer could not come.
func (m *Mount) Serve(dev lun.Device, o Options) error {
	o.defaults()
	s := &server{dev: dev, size: dev.Size(), block: 512, readOnly: m.readOnly, log: o.Log, depth: o.Depth}
	if b, ok := dev.(lun.Blocker); ok {
		s.block, _ = b.Blocks()
	}
	return m.serve(s, o)
}

func (o *Options) defaults() {
	if o.Depth <= 0 {
		o.Depth = 32
	}
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// serve is Serve for whatever answers.
func (m *Mount) serve(h handler, o Options) error {
	if m.taken.Swap(true) {
		return fmt.Errorf("%s: %w", m.path, os.ErrClosed)
	}
	abort, err := Aborter(m.Connection)
	switch {
	case errors.Is(err, unix.EPERM): // an ordinary user: the end of the process does it
	case err != nil:
		return errors.Join(err, unix.Close(m.fd))
	default:
		defer abort.Close()
	}
	end := func() error {
		if abort == nil {
			return nil
		}
		_, err := abort.WriteString("1")
		return err
	}
	l := &loop{fd: m.fd, h: h, born: time.Now(), busy: make([]atomic.Int64, o.Depth)}
	ended := make(chan error, o.Depth)
	for i := range o.Depth {
		go func() { ended <- l.work(i) }()
	}
	tick := time.NewTicker(min(time.Second, o.Timeout/4))
	defer tick.Stop()
	err = nil
	for left := o.Depth; left > 0; {
		select {
		case e := <-ended:
			left--
			if e != nil && err == nil {
				err = e
				_ = end() // the others end with it
			}
		case <-tick.C:
			if l.oldest() > o.Timeout {
				return errors.Join(fmt.Errorf("a request is without an answer for %v: %w", o.Timeout, ErrHung), end())
			}
		}
	}
	return errors.Join(err, unix.Close(m.fd))
}

// loop is what reads requests and writes answers.
type loop struct {
	fd   int
	h    handler
	born time.Time
	busy []atomic.Int64 // since when each worker is with the handler, after born; 0: it is not
}

// oldest is for how long a request has been with the handler.
func (l *loop) oldest() time.Duration {
	now, oldest := time.Since(l.born), time.Duration(0)
	for i := range l.busy {
		if since := l.busy[i].Load(); since != 0 {
			oldest = max(oldest, now-time.Duration(since))
		}
	}
	return oldest
}

// work takes requests one after the other.
func (l *loop) work(slot int) error {
	buf := make([]byte, inHeader+max(writeIn, readIn)+maxIO)
	for {
		n, err := unix.Read(l.fd, buf)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR): // taken back before it was read
			continue
		case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED):
			return nil
		case err != nil:
			return fmt.Errorf("reading a request: %w", err)
		}
		r, err := decode(buf[:n])
		if err != nil {
			return err
		}
		l.busy[slot].Store(int64(time.Since(l.born)) | 1)
		answer := l.h.handle(r, buf)
		l.busy[slot].Store(0)
		if answer == nil {
			continue
		}
		// ENOENT: nobody waits any more. ENODEV: the next read says so as well.
		_, err = unix.Write(l.fd, answer)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ECONNABORTED) {
			return fmt.Errorf("answering request %d: %w", r.op, err)
		}
	}
}

// answer begins one of n bytes, all zero.
func answer(buf []byte, r request, n int) []byte {
	b := buf[:outHeader+n]
	unique := r.unique
	clear(b)
	putHeader(b, unique, 0, n)
	return b
}

// fail is an answer without content; 0 is success.
func fail(buf []byte, r request, e unix.Errno) []byte {
	putHeader(buf, r.unique, e, 0)
	return buf[:outHeader]
}

// initial answers INIT: which of the flags that we know are on, and how many
// requests that nobody waits for the kernel may have under way.
func initial(r request, buf []byte, known uint32, depth int) []byte {
	le := binary.NativeEndian
	theirs, least, flags := le.Uint32(r.body), le.Uint32(r.body[4:]), le.Uint32(r.body[12:])
	b := answer(buf, r, initOut)
	o := b[outHeader:]
	if theirs < major || theirs == major && least < leastMinor {
		return fail(buf, r, unix.EPROTO)
	}
	le.PutUint32(o, major)
	le.PutUint32(o[4:], minor)
	if theirs > major {
		return b // it tries again with ours
	}
	le.PutUint32(o[8:], readAhead) // at most; the bdi has its own limit, see ReadAhead
	le.PutUint32(o[12:], flags&known)
	le.PutUint16(o[16:], uint16(2*depth))   // max_background
	le.PutUint16(o[18:], uint16(3*depth/2)) // congestion_threshold
	le.PutUint32(o[20:], maxIO)
	le.PutUint32(o[24:], 1) // time_gran
	le.PutUint16(o[28:], uint16(maxIO/os.Getpagesize()))
	return b
}
