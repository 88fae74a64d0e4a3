package dataplane

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
)

// device is what the target serves.
type device interface {
	lun.Device
	io.Closer
}

// openDevice opens what a LUN's record leads to.
func (p *plane) openDevice(l lunRecord) (device, error) {
	by := fmt.Sprintf("LUN %d", l.Number)
	switch l.Kind {
	case kindVolume:
		return p.array.OpenVolume(driver.VolumeID(l.Of), by)
	case kindSnapshot:
		return openSplit(p.array, driver.SnapshotID(l.Of), by, l.Writable)
	case kindView:
		return nbd.NewRedialer(nbd.RedialOptions{
			Network: "unix", Addr: l.Socket, Size: l.Size, Logical: l.Logical, Physical: l.Physical,
			Client: nbd.ClientOptions{Export: l.Export, Timeout: p.c.ViewTimeout},
		}), nil
	}
	return nil, fmt.Errorf("LUN %d is of kind %q, which this program does not know", l.Number, l.Kind)
}

// split is an exposed snapshot: read-only at first, with an own descriptor that
// can't write; then, once that is asked for, writable, under the same LUN.
type split struct {
	array *embedded.Array
	id    driver.SnapshotID
	by    string
	ro    *embedded.Snapshot
	rw    atomic.Pointer[embedded.WritableSnapshot]
}

var (
	_ lun.Trimmer = (*split)(nil)
	_ lun.Zeroer  = (*split)(nil)
	_ lun.Mapper  = (*split)(nil)
	_ lun.Blocker = (*split)(nil)
)

func openSplit(a *embedded.Array, id driver.SnapshotID, by string, writable bool) (*split, error) {
	ro, err := a.OpenSnapshot(id, by)
	if err != nil {
		return nil, err
	}
	s := &split{array: a, id: id, by: by, ro: ro}
	if writable {
		if err := s.raise(); err != nil {
			ro.Close()
			return nil, err
		}
	}
	return s, nil
}

// raise makes the snapshot writable. It is not called twice at once.
func (s *split) raise() error {
	if s.rw.Load() != nil {
		return nil
	}
	rw, err := s.array.OpenWritable(s.id, s.by)
	if err != nil {
		return err
	}
	s.rw.Store(rw)
	return nil
}

func (s *split) Close() error {
	if rw := s.rw.Load(); rw != nil {
		if err := rw.Close(); err != nil {
			return err
		}
	}
	return s.ro.Close()
}

func (s *split) Size() int64                        { return s.ro.Size() }
func (s *split) Blocks() (logical, physical int)    { return s.ro.Blocks() }
func (s *split) readOnly() error                    { return fmt.Errorf("snapshot %s: %w", s.id, lun.ErrReadOnly) }
func (s *split) writer() *embedded.WritableSnapshot { return s.rw.Load() }

func (s *split) ReadAt(p []byte, off int64) (int, error) {
	if w := s.writer(); w != nil {
		return w.ReadAt(p, off)
	}
	return s.ro.ReadAt(p, off)
}

func (s *split) WriteAt(p []byte, off int64) (int, error) {
	if w := s.writer(); w != nil {
		return w.WriteAt(p, off)
	}
	return 0, s.readOnly()
}

func (s *split) Sync() error {
	if w := s.writer(); w != nil {
		return w.Sync()
	}
	return nil
}

func (s *split) Trim(off, n int64) error {
	if w := s.writer(); w != nil {
		return w.Trim(off, n)
	}
	return s.readOnly()
}

func (s *split) WriteZeroes(off, n int64) error {
	if w := s.writer(); w != nil {
		return w.WriteZeroes(off, n)
	}
	return s.readOnly()
}

func (s *split) Extents(off, n int64, fn func(lun.Extent) error) error {
	if w := s.writer(); w != nil {
		return w.Extents(off, n, fn)
	}
	return s.ro.Extents(off, n, fn)
}

// away stands in for what could not be opened: of the right size, and nothing
// but errors. A host keeps its LUN and finds out why in our log.
type away struct {
	size int64
	why  error
}

func (d *away) Size() int64                        { return d.size }
func (d *away) Sync() error                        { return d.why }
func (d *away) ReadAt([]byte, int64) (int, error)  { return 0, d.why }
func (d *away) WriteAt([]byte, int64) (int, error) { return 0, d.why }
func (d *away) Close() error                       { return nil }
