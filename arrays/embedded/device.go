package embedded

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// Volume is a handle on a volume: a device for production. It is a lun.Device,
// Trimmer, Zeroer, Mapper, Blocker and Identified. Several handles on one
// volume are one device. Close gives the handle up.
type Volume struct {
	v      *volume
	closed atomic.Bool
}

// OpenVolume opens a volume for reading and writing. by says in an operator's
// words who has it, for the Busy error of whoever wants to delete it: "LUN 3".
func (a *Array) OpenVolume(ref driver.VolumeID, by string) (*Volume, error) {
	v, err := a.find(ref)
	if err != nil {
		return nil, err
	}
	h := &Volume{v: v}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone {
		return nil, driver.Errorf(driver.NotFound, "no volume %.80q", ref)
	}
	if v.blocked != "" {
		return nil, driver.Errorf(driver.Busy, "%s can't be opened: %s", v.label, v.blocked)
	}
	v.users[h] = by
	return h, nil
}

func (h *Volume) use() error {
	if h.closed.Load() {
		return fmt.Errorf("%s: %w", h.v.label, lun.ErrClosed)
	}
	return nil
}

func (h *Volume) ReadAt(p []byte, off int64) (int, error) {
	if err := h.use(); err != nil {
		return 0, err
	}
	return h.v.readAt(p, off)
}

func (h *Volume) WriteAt(p []byte, off int64) (int, error) {
	if err := h.use(); err != nil {
		return 0, err
	}
	return h.v.writeAt(p, off)
}

// Size may grow while the volume is open.
func (h *Volume) Size() int64 { return h.v.size.Load() }

func (h *Volume) Sync() error {
	if err := h.use(); err != nil {
		return err
	}
	return h.v.sync()
}

func (h *Volume) Trim(off, n int64) error {
	if err := h.use(); err != nil {
		return err
	}
	return h.v.trim(off, n)
}

func (h *Volume) WriteZeroes(off, n int64) error {
	if err := h.use(); err != nil {
		return err
	}
	return h.v.zero(off, n)
}

func (h *Volume) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := h.use(); err != nil {
		return err
	}
	return h.v.extents(off, n, fn)
}

// Blocks says that writes of 4 KiB are the cheapest small ones.
func (h *Volume) Blocks() (logical, physical int) { return 512, 4096 }

func (h *Volume) Identity() lun.Identity { return h.v.id }

// Close gives the handle up. It does not sync. Closing twice is nothing.
func (h *Volume) Close() error {
	if !h.closed.Swap(true) {
		h.v.mu.Lock()
		delete(h.v.users, h)
		h.v.mu.Unlock()
	}
	return nil
}

// Snapshot is a read-only handle on a split: a lun.Device, Mapper, Blocker,
// Identified and Filer. Its file's descriptor is read-only as well, so that it
// may be handed to a process that is not trusted with more.
type Snapshot struct {
	s      *snapshot
	f      disk.File
	closed atomic.Bool
}

// Open opens a snapshot for reading, as driver.Opener.
func (a *Array) Open(ctx context.Context, id driver.SnapshotID) (lun.Device, error) {
	return a.OpenSnapshot(id, "a reader")
}

// OpenSnapshot opens a snapshot for reading. by is as in OpenVolume.
func (a *Array) OpenSnapshot(id driver.SnapshotID, by string) (*Snapshot, error) {
	s, err := a.findSnapshot(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &Snapshot{s: s}
	if err := s.use(h, by); err != nil {
		return nil, err
	}
	if h.f, err = a.fs.OpenFile(a.poolPath(s.mirror.Pool, s.mirror.File), os.O_RDONLY); err != nil {
		delete(s.users, h)
		return nil, fmt.Errorf("snapshot %s: %w", id, err)
	}
	return h, nil
}

func (h *Snapshot) ReadAt(p []byte, off int64) (int, error) {
	err := lun.CheckRange(off, int64(len(p)), h.s.size)
	if h.closed.Load() {
		err = lun.ErrClosed
	}
	if err == nil {
		err = readFull(h.f, p, off)
	}
	if err != nil {
		return 0, fmt.Errorf("reading %d bytes at %d of snapshot %s: %w", len(p), off, h.s.id, err)
	}
	return len(p), nil
}

func (h *Snapshot) WriteAt([]byte, int64) (int, error) {
	return 0, fmt.Errorf("snapshot %s: %w", h.s.id, lun.ErrReadOnly)
}

func (h *Snapshot) Size() int64 { return h.s.size }

// Sync does nothing: a snapshot is stable when it comes to be.
func (h *Snapshot) Sync() error { return nil }

func (h *Snapshot) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, h.s.size); err != nil {
		return fmt.Errorf("map of %d bytes at %d of snapshot %s: %w", n, off, h.s.id, err)
	}
	return h.f.Extents(off, n, fn)
}

func (h *Snapshot) Blocks() (logical, physical int) { return 512, 4096 }
func (h *Snapshot) Identity() lun.Identity          { return h.s.id }

// File is the read-only descriptor, owned by the handle.
func (h *Snapshot) File() *os.File { return h.f.OS() }

func (h *Snapshot) Close() error {
	if h.closed.Swap(true) {
		return nil
	}
	h.s.unuse(h)
	return h.f.Close()
}

// Rewrite opens a snapshot for writing, alone, as driver.Rewriter.
func (a *Array) Rewrite(ctx context.Context, id driver.SnapshotID) (lun.Device, error) {
	s, err := a.findSnapshot(id)
	if err != nil {
		return nil, err
	}
	h := &WritableSnapshot{s: s}
	for {
		s.mu.Lock()
		gone := s.alone
		if gone == nil {
			break
		}
		s.mu.Unlock()
		select {
		case <-gone:
		case <-ctx.Done():
			return nil, driver.Errorf(driver.Busy, "snapshot %s is being rewritten by somebody else: %w", id, ctx.Err())
		}
	}
	defer s.mu.Unlock()
	if len(s.users) > 0 {
		return nil, driver.Errorf(driver.Busy, "snapshot %s is in use by %s", id, oneOf(s.users))
	}
	if err := h.openLocked("one who rewrites it"); err != nil {
		return nil, err
	}
	s.alone = make(chan struct{})
	return h, nil
}

// WritableSnapshot is a handle on a split for writing: a device as Volume is.
// The first write makes the split Skewed. What is written is kept track of, so
// that a resync copies it over. It is no lun.Filer: writes past it would go
// unnoticed.
type WritableSnapshot struct {
	s      *snapshot
	w      *set
	closed atomic.Bool
}

// OpenWritable opens a snapshot for writing. by is as in OpenVolume. Readers
// that have it open see what is written.
func (a *Array) OpenWritable(id driver.SnapshotID, by string) (*WritableSnapshot, error) {
	s, err := a.findSnapshot(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &WritableSnapshot{s: s}
	if err := h.openLocked(by); err != nil {
		return nil, err
	}
	return h, nil
}

// openLocked registers the handle with its snapshot, whose lock is held.
func (h *WritableSnapshot) openLocked(by string) error {
	if err := h.s.use(h, by); err != nil {
		return err
	}
	if err := h.s.forWriting(); err != nil {
		delete(h.s.users, h)
		return fmt.Errorf("snapshot %s: %w", h.s.id, err)
	}
	h.w = h.s.write
	return nil
}

func (h *WritableSnapshot) use() error {
	if h.closed.Load() {
		return fmt.Errorf("%s: %w", h.w.label, lun.ErrClosed)
	}
	return nil
}

func (h *WritableSnapshot) change() error {
	if err := h.use(); err != nil {
		return err
	}
	return h.s.skew()
}

func (h *WritableSnapshot) ReadAt(p []byte, off int64) (int, error) {
	if err := h.use(); err != nil {
		return 0, err
	}
	return h.w.readAt(p, off)
}

func (h *WritableSnapshot) WriteAt(p []byte, off int64) (int, error) {
	if err := h.change(); err != nil {
		return 0, err
	}
	return h.w.writeAt(p, off)
}

func (h *WritableSnapshot) Size() int64 { return h.s.size }

func (h *WritableSnapshot) Sync() error {
	if err := h.use(); err != nil {
		return err
	}
	return h.w.sync()
}

func (h *WritableSnapshot) Trim(off, n int64) error {
	if err := h.change(); err != nil {
		return err
	}
	return h.w.trim(off, n)
}

func (h *WritableSnapshot) WriteZeroes(off, n int64) error {
	if err := h.change(); err != nil {
		return err
	}
	return h.w.zero(off, n)
}

func (h *WritableSnapshot) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := h.use(); err != nil {
		return err
	}
	return h.w.extents(off, n, fn)
}

func (h *WritableSnapshot) Blocks() (logical, physical int) { return 512, 4096 }
func (h *WritableSnapshot) Identity() lun.Identity          { return h.s.id }

func (h *WritableSnapshot) Close() error {
	if !h.closed.Swap(true) {
		h.s.unuse(h)
	}
	return nil
}

var (
	_ driver.Opener   = (*Array)(nil)
	_ driver.Rewriter = (*Array)(nil)
	_ lun.Trimmer     = (*Volume)(nil)
	_ lun.Zeroer      = (*Volume)(nil)
	_ lun.Mapper      = (*Volume)(nil)
	_ lun.Blocker     = (*Volume)(nil)
	_ lun.Identified  = (*Volume)(nil)
	_ lun.Filer       = (*Snapshot)(nil)
	_ lun.Device      = (*WritableSnapshot)(nil)
)
