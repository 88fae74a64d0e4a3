package dmsnap

import (
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/extents"
)

// Device is the snapshot's content, read-only: the store over origin, which
// must be of the size the store was opened with.
func (s *Store) Device(origin lun.Device) (lun.Device, error) {
	if origin.Size() != s.origin {
		return nil, fmt.Errorf("snapshot of an origin of %d bytes over one of %d", s.origin, origin.Size())
	}
	return &device{s, origin}, nil
}

type device struct {
	store  *Store
	origin lun.Device
}

func (d *device) Size() int64                        { return d.store.origin }
func (d *device) Sync() error                        { return nil }
func (d *device) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }

func (d *device) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at, run, kept := d.store.Lookup(off + int64(done))
		piece := p[done : done+int(min(run, int64(len(p)-done)))]
		src := d.store.cow
		if !kept {
			src, at = d.origin, off+int64(done)
		}
		if _, err := src.ReadAt(piece, at); err != nil {
			return done, err
		}
		done += len(piece)
	}
	return len(p), nil
}

// Extents implements lun.Mapper.
func (d *device) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, d.Size()); err != nil {
		return err
	}
	return extents.Pieces(off, n, func(off int64) (lun.Device, int64, int64) {
		at, run, kept := d.store.Lookup(off)
		if !kept {
			return d.origin, off, run
		}
		return d.store.cow, at, run
	}, fn)
}
