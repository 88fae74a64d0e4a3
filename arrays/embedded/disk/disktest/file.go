package disktest

import (
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// file is an open file.
type file struct {
	fs       *FS
	n        *node
	name     string
	readOnly bool
	closed   atomic.Bool
}

// begin checks the handle and takes the file system's lock, unless it fails.
func (h *file) begin(op Op, off, n int64) error {
	var err error
	switch {
	case h.closed.Load():
		err = os.ErrClosed
	case off < 0 || n < 0:
		err = syscall.EINVAL
	case op == OpWrite && h.readOnly:
		err = syscall.EBADF
	}
	if err != nil {
		return &os.PathError{Op: string(op), Path: h.name, Err: err}
	}
	if op != "" {
		if err := h.fs.failing(op, h.name); err != nil {
			return err
		}
	}
	h.fs.mu.Lock()
	return nil
}

// do changes the file and remembers that it is not stable.
func (n *node) doFile(x change) {
	n.live = n.live.thaw()
	x.apply(n.live)
	n.live.resize(x.size)
	n.changes = append(n.changes, x)
}

// truncate sets the size.
func (n *node) truncate(size int64) {
	have := n.live.size
	n.doFile(change{off: size, n: max(have-size, 0), size: size})
}

func (h *file) WriteAt(b []byte, off int64) (int, error) {
	if err := h.begin(OpWrite, off, 0); err != nil {
		return 0, err
	}
	defer h.fs.mu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	n := int64(len(b))
	h.n.doFile(change{off: off, n: n, data: slices.Clone(b), size: max(h.n.live.size, off+n)})
	return len(b), nil
}

func (h *file) ReadAt(b []byte, off int64) (int, error) {
	if err := h.begin("", off, 0); err != nil {
		return 0, err
	}
	defer h.fs.mu.Unlock()
	n := h.n.live.get(b, off)
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h *file) Truncate(size int64) error {
	if err := h.begin(OpWrite, size, 0); err != nil {
		return err
	}
	defer h.fs.mu.Unlock()
	h.n.truncate(size)
	return nil
}

func (h *file) PunchHole(off, n int64) error {
	if err := h.begin(OpWrite, off, n); err != nil {
		return err
	}
	defer h.fs.mu.Unlock()
	if n = min(n, h.n.live.size-off); n > 0 {
		h.n.doFile(change{off: off, n: n, size: h.n.live.size})
	}
	return nil
}

func (h *file) Zero(off, n int64) error { return h.PunchHole(off, n) }

// CloneFrom makes the content that of src, a file of the same FS.
func (h *file) CloneFrom(src disk.File) error {
	s, ok := src.(*file)
	if !ok || s.fs != h.fs {
		return fmt.Errorf("clone of %s: %w", src.Name(), syscall.EXDEV)
	}
	if err := h.begin(OpWrite, 0, 0); err != nil {
		return err
	}
	defer h.fs.mu.Unlock()
	s.n.live.frozen.Store(true)
	h.n.doFile(change{n: s.n.live.size, from: s.n.live, size: s.n.live.size})
	return nil
}

// Sync is a sync point.
func (h *file) Sync() error {
	h.fs.point(OpSync, h.name)
	if err := h.begin(OpSync, 0, 0); err != nil {
		return err
	}
	defer h.fs.mu.Unlock()
	h.n.live.frozen.Store(true)
	h.n.stable, h.n.changes = h.n.live, nil
	return nil
}

func (h *file) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := h.begin("", off, n); err != nil {
		return err
	}
	h.n.live.frozen.Store(true)
	c := h.n.live
	h.fs.mu.Unlock()
	hole := func(off int64) bool {
		i := off / pageSize
		return off >= c.size || i >= int64(len(c.pages)) || c.pages[i] == nil
	}
	for end := off + n; off < end; {
		x := lun.Extent{Off: off, Hole: hole(off)}
		for off < end && hole(off) == x.Hole {
			off = min(off/pageSize*pageSize+pageSize, end)
		}
		x.Len = off - x.Off
		if err := fn(x); err != nil {
			return err
		}
	}
	return nil
}

func (h *file) Stat() (os.FileInfo, error) {
	if err := h.begin("", 0, 0); err != nil {
		return nil, err
	}
	defer h.fs.mu.Unlock()
	return h.n.info(h.name), nil
}

func (h *file) Close() error {
	if h.closed.Swap(true) {
		return &os.PathError{Op: "close", Path: h.name, Err: os.ErrClosed}
	}
	return nil
}

// ID tells the file from all others that the FS or one that it is a cut of has.
func (h *file) ID() string { return fmt.Sprint(h.n.id) }

func (h *file) Name() string { return h.name }
func (h *file) OS() *os.File { return nil }

var (
	_ disk.File = (*file)(nil)
	_ io.Closer = (*file)(nil)
)
