package fuse

import (
	"encoding/binary"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
)

// server answers for a device.
type server struct {
	dev      lun.Device
	size     int64
	block    int
	readOnly bool
	log      *slog.Logger
	depth    int
	said     sync.Once
}

// handle implements handler.
func (s *server) handle(r request, buf []byte) []byte {
	le := binary.NativeEndian
	switch r.op {
	case opForget, opBatchForget, opInterrupt:
		// There is one inode, which stays. A device can't be interrupted: the
		// answer comes, or the time-out does.
		return nil
	case opInit:
		return initial(r, buf, flagAsyncRead|flagBigWrites|flagAsyncDIO|flagMaxPages, s.depth)
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

func (s *server) errno(what string, err error) unix.Errno {
	if err != nil {
		s.said.Do(func() { s.log.Warn("error of the device; later ones are not told", "in", what, "error", err) })
	}
	return errnoOf(err)
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
