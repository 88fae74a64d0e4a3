package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
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

// Serve answers the kernel until the file is unmounted and nobody has it open
// any more, or Close is called, which is nil. It is called once, and does not
// close dev. After ErrHung, requests may still be with the device, and
// goroutines wait for them: end the process.
//
// Each of Options.Depth threads blocks in read(2). Go's poller must not be in
// it: whoever in this process opens the file itself would have it ask, with the
// poller's lock held, whether the file is ready, and the answer could not come.
func (m *Mount) Serve(dev lun.Device, o Options) error {
	if o.Depth <= 0 {
		o.Depth = 32
	}
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if m.taken.Swap(true) {
		return fmt.Errorf("%s: %w", m.path, os.ErrClosed)
	}
	abort, err := Aborter(m.Connection)
	if err != nil {
		return errors.Join(err, unix.Close(m.fd))
	}
	defer abort.Close()
	s := &server{fd: m.fd, dev: dev, size: dev.Size(), block: 512, readOnly: m.readOnly, log: o.Log, born: time.Now(), busy: make([]atomic.Int64, o.Depth)}
	if b, ok := dev.(lun.Blocker); ok {
		s.block, _ = b.Blocks()
	}
	ended := make(chan error, o.Depth)
	for i := range o.Depth {
		go func() { ended <- s.work(i) }()
	}
	tick := time.NewTicker(min(time.Second, o.Timeout/4))
	defer tick.Stop()
	for left := o.Depth; left > 0; {
		select {
		case e := <-ended:
			left--
			if e != nil && err == nil {
				err = e
				_, _ = abort.WriteString("1") // the others end with it
			}
		case <-tick.C:
			if s.oldest() > o.Timeout {
				_, e := abort.WriteString("1")
				return errors.Join(fmt.Errorf("a request is without an answer for %v: %w", o.Timeout, ErrHung), e)
			}
		}
	}
	return errors.Join(err, unix.Close(m.fd))
}

type server struct {
	fd       int
	dev      lun.Device
	size     int64
	block    int
	readOnly bool
	log      *slog.Logger
	born     time.Time
	busy     []atomic.Int64 // since when each worker is with the device, after born; 0: it is not
	said     sync.Once
}

// oldest is for how long a request has been with the device.
func (s *server) oldest() time.Duration {
	now, oldest := time.Since(s.born), time.Duration(0)
	for i := range s.busy {
		if since := s.busy[i].Load(); since != 0 {
			oldest = max(oldest, now-time.Duration(since))
		}
	}
	return oldest
}

// work takes requests one after the other.
func (s *server) work(slot int) error {
	buf := make([]byte, inHeader+max(writeIn, readIn)+maxIO)
	for {
		n, err := unix.Read(s.fd, buf)
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
		s.busy[slot].Store(int64(time.Since(s.born)) | 1)
		answer := s.handle(r, buf)
		s.busy[slot].Store(0)
		if answer == nil {
			continue
		}
		// ENOENT: nobody waits any more. ENODEV: the next read says so as well.
		_, err = unix.Write(s.fd, answer)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ECONNABORTED) {
			return fmt.Errorf("answering request %d: %w", r.op, err)
		}
	}
}

// handle carries out a request, which lies in buf, and returns the answer, which
// may as well; nil for those that have none.
func (s *server) handle(r request, buf []byte) []byte {
	le := binary.NativeEndian
	switch r.op {
	case opForget, opBatchForget, opInterrupt:
		// There is one inode, which stays. A device can't be interrupted: the
		// answer comes, or the time-out does.
		return nil
	case opInit:
		return s.init(r, buf)
	}
	if r.node != rootNode && r.op != opDestroy && r.op != opStatfs {
		return fail(buf, r, unix.ESTALE)
	}
	switch r.op {
	case opGetattr:
		return s.attr(r, buf)
	case opOpen:
		b := answer(buf, r, openOut)
		flags := uint32(openDirectIO)
		if !s.readOnly {
			flags |= openParallelDIO
		}
		le.PutUint32(b[outHeader+8:], flags)
		return b
	case opRead:
		return s.read(r, buf)
	case opWrite:
		return s.write(r, buf)
	case opFsync, opFlush:
		if r.op == opFlush || s.readOnly {
			return fail(buf, r, 0) // each close of the file is no reason to sync
		}
		return fail(buf, r, s.errno("sync", s.dev.Sync()))
	case opFallocate:
		return fail(buf, r, s.fallocate(r))
	case opStatfs:
		b := answer(buf, r, statfsOut)
		le.PutUint64(b[outHeader:], uint64(s.size/int64(s.block)))
		le.PutUint32(b[outHeader+40:], uint32(s.block)) // bsize: the loop device's granularity of discard
		le.PutUint32(b[outHeader+44:], 255)
		le.PutUint32(b[outHeader+48:], uint32(s.block))
		return b
	case opRelease, opDestroy:
		return fail(buf, r, 0)
	}
	return fail(buf, r, unix.ENOSYS)
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

func (s *server) errno(what string, err error) unix.Errno {
	if err != nil {
		s.said.Do(func() { s.log.Warn("error of the device; later ones are not told", "in", what, "error", err) })
	}
	return errnoOf(err)
}

func (s *server) init(r request, buf []byte) []byte {
	le := binary.NativeEndian
	theirs, least, ahead, flags := le.Uint32(r.body), le.Uint32(r.body[4:]), le.Uint32(r.body[8:]), le.Uint32(r.body[12:])
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
	le.PutUint32(o[8:], ahead)
	le.PutUint32(o[12:], flags&(flagAsyncRead|flagBigWrites|flagAsyncDIO|flagMaxPages))
	le.PutUint16(o[16:], uint16(2*len(s.busy)))   // max_background
	le.PutUint16(o[18:], uint16(3*len(s.busy)/2)) // congestion_threshold
	le.PutUint32(o[20:], maxIO)
	le.PutUint32(o[24:], 1) // time_gran
	le.PutUint16(o[28:], uint16(maxIO/os.Getpagesize()))
	return b
}

func (s *server) attr(r request, buf []byte) []byte {
	le := binary.NativeEndian
	b := answer(buf, r, attrOut)
	o := b[outHeader:]
	le.PutUint64(o, attrValidSeconds)
	a := o[16:]
	le.PutUint64(a, rootNode)
	le.PutUint64(a[8:], uint64(s.size))
	le.PutUint64(a[16:], uint64(s.size/512))
	mode := uint32(unix.S_IFREG | 0o600)
	if s.readOnly {
		mode = unix.S_IFREG | 0o400
	}
	le.PutUint32(a[60:], mode)
	le.PutUint32(a[64:], 1)
	le.PutUint32(a[68:], uint32(os.Geteuid()))
	le.PutUint32(a[72:], uint32(os.Getegid()))
	le.PutUint32(a[80:], uint32(max(s.block, 4096)))
	return b
}

// within checks a transfer: whole blocks inside the device.
func (s *server) within(off uint64, n int64) bool {
	return off <= uint64(s.size) && n >= 0 && n <= s.size-int64(off) && off%uint64(s.block) == 0 && n%int64(s.block) == 0
}

func (s *server) read(r request, buf []byte) []byte {
	off, want := r.span()
	if want > maxIO {
		return fail(buf, r, unix.EINVAL)
	}
	n := int64(want)
	if off >= uint64(s.size) {
		n = 0
	} else {
		n = min(n, s.size-int64(off))
	}
	if !s.within(min(off, uint64(s.size)), n) {
		return fail(buf, r, unix.EINVAL)
	}
	b := buf[:outHeader+int(n)]
	if n > 0 {
		if _, err := s.dev.ReadAt(b[outHeader:], int64(off)); err != nil {
			return fail(buf, r, s.errno("read", err))
		}
	}
	putHeader(b, r.unique, 0, int(n))
	return b
}

func (s *server) write(r request, buf []byte) []byte {
	off, n := r.span()
	data := r.body[writeIn:]
	switch {
	case s.readOnly:
		return fail(buf, r, unix.EROFS)
	case int(n) != len(data), !s.within(off, int64(n)):
		return fail(buf, r, unix.EINVAL)
	}
	if n > 0 {
		if _, err := s.dev.WriteAt(data, int64(off)); err != nil {
			return fail(buf, r, s.errno("write", err))
		}
	}
	b := answer(buf, r, writeOut)
	binary.NativeEndian.PutUint32(b[outHeader:], n)
	return b
}

// fallocate is how a loop device discards and writes zeroes.
func (s *server) fallocate(r request) unix.Errno {
	le := binary.NativeEndian
	off, n, mode := le.Uint64(r.body[8:]), le.Uint64(r.body[16:]), le.Uint32(r.body[24:])
	switch {
	case s.readOnly:
		return unix.EROFS
	case n > uint64(s.size) || !s.within(off, int64(n)):
		return unix.EINVAL
	}
	switch mode {
	case fallocPunchHole | fallocKeepSize:
		if t, ok := s.dev.(lun.Trimmer); ok {
			return s.errno("trim", t.Trim(int64(off), int64(n)))
		}
	case fallocZeroRange, fallocZeroRange | fallocKeepSize:
		if z, ok := s.dev.(lun.Zeroer); ok {
			return s.errno("write zeroes", z.WriteZeroes(int64(off), int64(n)))
		}
	}
	return unix.EOPNOTSUPP
}
