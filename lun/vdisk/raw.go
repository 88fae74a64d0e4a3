package vdisk

import (
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// Raw opens a device as a disk without a container: what is there is the
// content. It is an OpenFunc.
func Raw(dev lun.Device, o Options) (Disk, error) {
	if o.Snapshot != "" {
		return nil, fmt.Errorf("%w as %.80q: the disk is raw", ErrNoSnapshot, o.Snapshot)
	}
	return &raw{dev, o.ReadOnly}, nil
}

type raw struct {
	lun.Device
	readOnly bool
}

func (r *raw) Close() error { return nil }

func (r *raw) Info() Info {
	i := Info{Format: "raw", Size: r.Size()}
	if r.readOnly {
		i.ReadOnly = lun.ErrReadOnly
	}
	return i
}

func (r *raw) WriteAt(p []byte, off int64) (int, error) {
	if r.readOnly {
		return 0, lun.ErrReadOnly
	}
	return r.Device.WriteAt(p, off)
}

func (r *raw) Writable(off, n int64) error {
	if r.readOnly {
		return lun.ErrReadOnly
	}
	return Writable(r.Device, off, n)
}

func (r *raw) Extents(off, n int64, fn func(lun.Extent) error) error {
	return Extents(r.Device, off, n, fn)
}

// Extents is d's own map, or one run of data for a device that has none.
func Extents(d lun.Device, off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, d.Size()); err != nil {
		return err
	}
	if m, ok := d.(lun.Mapper); ok {
		return m.Extents(off, n, fn)
	}
	if n == 0 {
		return nil
	}
	return fn(lun.Extent{Off: off, Len: n})
}
