package cinder

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Expose implements driver.Exposer: a volume made of the snapshot is attached for
// one initiator. It can always be written to, as no back end of Cinder's keeps
// an initiator from it, and what is written leaves the snapshot as it is.
func (d *Driver) Expose(ctx context.Context, id driver.SnapshotID, o driver.ExposeOptions) (driver.Path, error) {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	if len(o.Initiators) != 1 {
		return driver.Path{}, driver.Errorf(driver.NotSupported, "a volume of Cinder's is attached for one initiator, and %d are named", len(o.Initiators))
	}
	ctx, unlock, err := d.locks.lock(ctx, string(id))
	if err != nil {
		return driver.Path{}, err
	}
	defer unlock()
	s, err := d.snapshot(ctx, string(id))
	if err != nil {
		return driver.Path{}, err
	}
	var v volume
	switch found, err := d.lunOf(ctx, s.ID); {
	case err != nil:
		return driver.Path{}, err
	case found == nil:
		v, err = d.clone(ctx, s, forLUN)
		if err != nil {
			return driver.Path{}, err
		}
	default:
		if v, err = d.settledVolume(ctx, found.ID); err != nil {
			return driver.Path{}, err
		}
	}
	c, err := d.attach(ctx, v, o.Initiators[0])
	if err != nil {
		return driver.Path{}, err
	}
	if c.Protocol != "iscsi" {
		return driver.Path{}, driver.Errorf(driver.NotSupported, "Cinder attaches this volume by %s, which no iSCSI initiator sees", c.Protocol)
	}
	// All portals of the first target: a path has one.
	p := driver.Path{IQN: c.Targets[0], LUN: c.LUN, Writable: true, CHAP: c.CHAP}
	for i, t := range c.Targets {
		if t == p.IQN {
			p.Portals = append(p.Portals, c.Portals[i])
		}
	}
	return p, nil
}

// Unexpose implements driver.Exposer. The volume stays until the snapshot is
// deleted.
func (d *Driver) Unexpose(ctx context.Context, id driver.SnapshotID) error {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	ctx, unlock, err := d.locks.lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	v, err := d.lunOf(ctx, string(id))
	if err != nil || v == nil {
		return err
	}
	if err := d.detach(ctx, v.ID); err != nil {
		return err
	}
	return d.c.until(ctx, func() (bool, error) {
		now, err := d.volume(ctx, v.ID)
		if isKind(err, driver.NotFound) {
			return true, nil
		}
		return now.Status == "available" || now.Status == "deleting" || now.Status == "error", err
	})
}

// giveUp is how long taking a volume away may last that was made for reading.
const giveUp = time.Minute

// Open implements driver.Opener: a volume of its own is made of the snapshot and
// attached to this host. Closing it takes it away, unless it was lent; what that or
// a crash leaves goes with the snapshot.
func (d *Driver) Open(ctx context.Context, id driver.SnapshotID) (lun.Device, error) {
	if d.o.Connect == nil {
		return nil, driver.Errorf(driver.NotSupported, "this host is not set up to reach Cinder's volumes")
	}
	bounded, cancel := d.limited(ctx)
	defer cancel()
	s, err := d.snapshot(bounded, string(id))
	if err != nil {
		return nil, err
	}
	v, err := d.clone(bounded, s, forReading)
	if err != nil {
		return nil, err
	}
	r := &reading{d: d, v: v}
	c, err := d.attach(bounded, v, d.o.Initiator)
	if err == nil {
		r.Device, err = d.o.Connect(bounded, c)
	}
	if err != nil {
		_ = r.drop() // else it goes with the snapshot
		return nil, err
	}
	if l, ok := r.Device.(lun.Lender); ok {
		return &lending{reading: r, lender: l}, nil
	}
	return r, nil
}

// reading is a volume that is there to be read.
type reading struct {
	lun.Device
	d    *Driver
	v    volume
	lent atomic.Bool
}

// lending is one that a process of its own can serve.
type lending struct {
	*reading
	lender lun.Lender
}

// Lend implements lun.Lender.
func (l *lending) Lend(ctx context.Context, conn *os.File) (int, error) {
	l.lent.Store(true)
	return l.lender.Lend(ctx, conn)
}

// WriteAt implements lun.Device.
func (r *reading) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }

// Close takes the volume away, unless somebody else may still read it.
func (r *reading) Close() error {
	if c, ok := r.Device.(io.Closer); ok {
		if err := c.Close(); err != nil {
			return err
		}
	}
	if r.lent.Load() {
		return nil
	}
	return r.drop()
}

func (r *reading) drop() error {
	ctx, cancel := context.WithTimeout(context.Background(), giveUp)
	defer cancel()
	return r.d.drop(ctx, r.v)
}
