// Package overlay puts a writable layer over a device that is never touched.
//
// Writes go to a sparse file in blocks of BlockSize; a block that was written
// once is read from the file from then on, all others from the base. Which
// blocks those are is kept in memory, one bit a block, in pages that exist only
// where something was written: 4 KiB of memory for every 128 MiB touched.
//
// An Overlay is as durable as its file while it is open, and ends with it: the
// map of blocks is not kept on disk. It is the scratch layer of a view that can
// be made again at any time, not a place to keep data.
package overlay

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/extents"
	"golang.org/x/sys/unix"
)

const (
	// BlockSize is the granularity of copy-on-write, in bytes.
	BlockSize = 4096
	// granule is how many blocks one lock covers.
	granule = 64
	locks   = 128
)

// Options of New.
type Options struct {
	// Limit bounds the bytes that the layer may hold; 0 is no bound. A write
	// beyond it is lun.ErrNoSpace and changes nothing.
	Limit int64
}

// Overlay is a lun.Device with lun.Trimmer, lun.Zeroer, lun.Mapper and lun.Blocker. All
// methods may be called at once.
type Overlay struct {
	base  lun.Device
	file  *os.File
	limit int64
	size  int64

	present present
	lock    [locks]sync.Mutex // held to make blocks present; several only in order
	closed  atomic.Bool
}

// New puts a layer over base that is kept in file, which must be empty and is
// closed by Close. The caller may have unlinked it already.
func New(base lun.Device, file *os.File, o Options) (*Overlay, error) {
	if st, err := file.Stat(); err != nil {
		return nil, fmt.Errorf("overlay file: %w", err)
	} else if st.Size() != 0 {
		return nil, fmt.Errorf("overlay file %s is not empty", file.Name())
	}
	if err := file.Truncate(base.Size()); err != nil {
		return nil, fmt.Errorf("overlay file %s: %w", file.Name(), err)
	}
	return &Overlay{base: base, file: file, limit: o.Limit, size: base.Size()}, nil
}

// Temp is New with an unlinked temporary file in dir ("" for the system's), so
// that nothing is left behind however the process ends.
func Temp(base lun.Device, dir string, o Options) (*Overlay, error) {
	f, err := os.CreateTemp(dir, "cleave-overlay-*")
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("overlay: %w", err), f.Close())
	}
	v, err := New(base, f, o)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return v, nil
}

func (v *Overlay) Size() int64 { return v.size }

// Blocks are those of the base; 512 and BlockSize without.
func (v *Overlay) Blocks() (logical, physical int) {
	if b, ok := v.base.(lun.Blocker); ok {
		return b.Blocks()
	}
	return 512, BlockSize
}

// Held is how many bytes the layer takes on disk.
func (v *Overlay) Held() (int64, error) {
	st, err := v.file.Stat()
	if err != nil {
		return 0, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	return sys.Blocks * 512, nil
}

// Close gives the layer up with all that was written to it. The base stays
// open.
func (v *Overlay) Close() error {
	if v.closed.Swap(true) {
		return nil
	}
	return v.file.Close()
}

func (v *Overlay) check(off, n int64) error {
	if v.closed.Load() {
		return lun.ErrClosed
	}
	return lun.CheckRange(off, n, v.size)
}

// Written calls fn for every run of blocks that the layer holds, in no order,
// until fn fails. A block that is written meanwhile may be left out.
func (v *Overlay) Written(fn func(off, n int64) error) error {
	return v.present.runs(func(first, n int64) error {
		off := first * BlockSize
		return fn(off, min(n*BlockSize, v.size-off))
	})
}

// ReadAt implements lun.Device.
func (v *Overlay) ReadAt(p []byte, off int64) (int, error) {
	if err := v.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		n, present := v.run(at, int64(len(p)-done))
		var err error
		if present {
			_, err = v.file.ReadAt(p[done:done+int(n)], at)
		} else {
			_, err = v.base.ReadAt(p[done:done+int(n)], at)
		}
		if err != nil {
			return done, err
		}
		done += int(n)
	}
	return len(p), nil
}

// Extents implements lun.Mapper.
func (v *Overlay) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := v.check(off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		run, present := v.run(off, end-off)
		var err error
		if present {
			err = extents.File(v.file, off, run, fn)
		} else {
			err = extents.As(v.base, off, run, off, fn)
		}
		if err != nil {
			return err
		}
		off += run
	}
	return nil
}

// run is for how many of the n bytes at off the answer is the same.
func (v *Overlay) run(off, n int64) (int64, bool) {
	b := off / BlockSize
	has := v.present.has(b)
	end := off + n
	for b++; b*BlockSize < end; b++ {
		if v.present.has(b) != has {
			return b*BlockSize - off, has
		}
	}
	return n, has
}

// WriteAt implements lun.Device. A write that fails for lack of space may have
// written its beginning.
func (v *Overlay) WriteAt(p []byte, off int64) (int, error) {
	if err := v.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	err := v.eachGranule(off, int64(len(p)), func(at, n int64) error {
		if err := v.room(at, n); err != nil {
			return err
		}
		if err := v.edges(at, n); err != nil {
			return err
		}
		if _, err := v.file.WriteAt(p[done:done+int(n)], at); err != nil {
			return noSpace(err)
		}
		v.present.set(at, n)
		done += int(n)
		return nil
	})
	return done, err
}

// eachGranule calls fn for the pieces of a range that one lock covers each,
// with that lock held.
func (v *Overlay) eachGranule(off, n int64, fn func(off, n int64) error) error {
	const span = granule * BlockSize
	for end := off + n; off < end; {
		g := off / span
		piece := min((g+1)*span, end) - off
		l := &v.lock[g%locks]
		l.Lock()
		err := fn(off, piece)
		l.Unlock()
		if err != nil {
			return err
		}
		off += piece
	}
	return nil
}

// room refuses n bytes at off where they would pass the limit. What is on disk
// already may be written again.
func (v *Overlay) room(off, n int64) error {
	if v.limit == 0 {
		return nil
	}
	held, err := v.Held()
	if err != nil {
		return err
	}
	if held+n <= v.limit {
		return nil
	}
	if hole, err := v.file.Seek(off/BlockSize*BlockSize, unix.SEEK_HOLE); err == nil && hole >= off+n {
		return nil
	}
	return fmt.Errorf("the overlay holds %d of at most %d bytes: %w", held, v.limit, lun.ErrNoSpace)
}

// edges copies up the first and the last block of a range where it covers them
// only in part.
func (v *Overlay) edges(off, n int64) error {
	first, last := off/BlockSize, (off+n-1)/BlockSize
	err := v.copyUp(first, off, n)
	if err == nil && last != first {
		err = v.copyUp(last, off, n)
	}
	return err
}

// copyUp brings block b into the file if [off, off+n) doesn't cover it. The
// block is not marked present yet: until the write that follows has succeeded,
// readers see the base.
func (v *Overlay) copyUp(b, off, n int64) error {
	start := b * BlockSize
	end := min(start+BlockSize, v.size)
	if v.present.has(b) || off <= start && off+n >= end {
		return nil
	}
	buf := make([]byte, end-start)
	if _, err := v.base.ReadAt(buf, start); err != nil {
		return err
	}
	if _, err := v.file.WriteAt(buf, start); err != nil {
		return noSpace(err)
	}
	return nil
}

// Trim implements lun.Trimmer: the range reads as zeroes, and whole blocks of
// it take no space.
func (v *Overlay) Trim(off, n int64) error { return v.zero(off, n) }

// WriteZeroes implements lun.Zeroer. Nothing is reserved: an overlay has no
// space of its own to reserve.
func (v *Overlay) WriteZeroes(off, n int64) error { return v.zero(off, n) }

// zero takes all locks, since a range may be the whole device.
func (v *Overlay) zero(off, n int64) error {
	if err := v.check(off, n); err != nil || n == 0 {
		return err
	}
	for i := range v.lock {
		v.lock[i].Lock()
		defer v.lock[i].Unlock()
	}
	if err := v.edges(off, n); err != nil {
		return err
	}
	if err := v.punch(off, n); err != nil {
		return err
	}
	v.present.set(off, n)
	return nil
}

// punch makes a range of the file a hole.
func (v *Overlay) punch(off, n int64) error {
	conn, err := v.file.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = conn.Control(func(fd uintptr) {
		perr = unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if err != nil {
		return err
	}
	if !errors.Is(perr, unix.EOPNOTSUPP) {
		return perr
	}
	zeroes := make([]byte, min(n, 1<<20)) // a file system without holes
	for end := off + n; off < end; off += int64(len(zeroes)) {
		if _, err := v.file.WriteAt(zeroes[:min(end-off, int64(len(zeroes)))], off); err != nil {
			return noSpace(err)
		}
	}
	return nil
}

// Sync implements lun.Device.
func (v *Overlay) Sync() error {
	if v.closed.Load() {
		return lun.ErrClosed
	}
	return v.file.Sync()
}

func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("%w: %w", lun.ErrNoSpace, err)
	}
	return err
}
