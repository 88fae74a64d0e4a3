package fs

import (
	"errors"
	"io"

	"github.com/cleave-san/cleave/lun"
)

// Device makes a file a read-only lun.Device, with its holes (lun.Mapper): for
// a virtual disk that is a file on a host's volume.
func Device(f File) lun.Device { return device{f} }

type device struct{ f File }

func (d device) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.f.Size()); err != nil {
		return 0, err
	}
	n, err := d.f.ReadAt(p, off)
	switch {
	case n == len(p):
		return n, nil // io.EOF with the last byte is none here
	case err == nil || errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (d device) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, d.f.Size()); err != nil {
		return err
	}
	return d.f.Extents(off, n, func(e Extent) error {
		return fn(lun.Extent{Off: e.Off, Len: e.Len, Hole: e.Kind == Hole || e.Kind == Unwritten})
	})
}

func (d device) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (d device) Size() int64                        { return d.f.Size() }
func (d device) Sync() error                        { return nil }
