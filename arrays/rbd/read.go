package rbd

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Open implements driver.Opener. The snapshot can't be deleted while it is open
// here.
func (d *Driver) Open(ctx context.Context, id driver.SnapshotID) (lun.Device, error) {
	s, err := parseSnap(id)
	if err != nil {
		return nil, err
	}
	unlock, err := d.lock(ctx)
	if err != nil {
		return nil, err
	}
	i, name, err := d.readable(ctx, s)
	if err == nil {
		d.opened(id, 1)
	}
	unlock()
	if err != nil {
		return nil, err
	}
	closed := func() { d.opened(id, -1) }
	x, err := d.serve(ctx, source{i, name, true})
	if err != nil {
		closed()
		return nil, err
	}
	x.closed = closed
	return x, nil
}

// OpenImage opens an image as production does, for reading and writing: what a
// provider does that gives its images out by their names.
func (d *Driver) OpenImage(ctx context.Context, v driver.VolumeID) (lun.Device, error) {
	i, _, err := d.volume(ctx, v)
	if err != nil {
		return nil, err
	}
	return d.serve(ctx, source{i, "", false})
}

// device is an image that a program serves.
type device struct {
	lun.Device
	end    func()
	closed func() // nil: nothing to do
	once   sync.Once
}

// startLimit bounds how long it may take until an image can be read.
const startLimit = time.Minute

// Close ends the program.
func (d *device) Close() error {
	d.once.Do(func() {
		if c, ok := d.Device.(io.Closer); ok {
			_ = c.Close()
		}
		d.end()
		if d.closed != nil {
			d.closed()
		}
	})
	return nil
}

// Blocks implements lun.Blocker.
func (d *device) Blocks() (logical, physical int) {
	if b, ok := d.Device.(lun.Blocker); ok {
		return b.Blocks()
	}
	return 512, 512
}

// Extents implements lun.Mapper.
func (d *device) Extents(off, n int64, fn func(lun.Extent) error) error {
	if m, ok := d.Device.(lun.Mapper); ok {
		return m.Extents(off, n, fn)
	}
	if n == 0 {
		return nil
	}
	return fn(lun.Extent{Off: off, Len: n})
}
