package arrays

import (
	"context"
	"fmt"
	"strings"

	"go.opentelemetry.io/otel/attribute"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Delete ends a snapshot, which must not be exposed or open.
func (a *Array) Delete(ctx context.Context, s driver.SnapshotID) error {
	op := fmt.Sprintf("deleting snapshot %q", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return err
	}
	return a.call(ctx, op, true, func(ctx context.Context) error { return a.d.Delete(ctx, s) })
}

// GiveBack ends a snapshot in the way that costs its volume least: by a resync
// where the provider has it for this one, else by deletion. What is not there is
// success.
func (a *Array) GiveBack(ctx context.Context, s driver.SnapshotID) error {
	if a.resyncer != nil {
		err := a.Resync(ctx, s)
		if k := KindOf(err); k != driver.NotSupported && k != driver.NotFound {
			return err
		}
	}
	return a.Delete(ctx, s)
}

// Resync puts a split mirror back under its volume.
func (a *Array) Resync(ctx context.Context, s driver.SnapshotID) error {
	op := fmt.Sprintf("resyncing snapshot %q", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return err
	}
	if a.resyncer == nil {
		return a.refuse(op, driver.NotSupported, "it can't put a mirror back; delete the snapshot instead")
	}
	return a.call(ctx, op, true, func(ctx context.Context) error { return a.resyncer.Resync(ctx, s) })
}

// Revert puts the snapshot's volume back to what it was when it was split. What
// it held until now is the snapshot returned, the safe point.
func (a *Array) Revert(ctx context.Context, s driver.SnapshotID) (safe driver.Snapshot, err error) {
	op := fmt.Sprintf("reverting to snapshot %q", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return safe, err
	}
	if a.reverter == nil {
		return safe, a.refuse(op, driver.NotSupported, "it can't put a volume back; copy the snapshot's content over it instead")
	}
	err = a.call(ctx, op, true, func(ctx context.Context) error {
		safe, err = a.reverter.Revert(ctx, s)
		if err == nil && (safe.ID == "" || safe.ID == s || safe.Volume == "" || safe.Size <= 0) {
			err = nonsense("safe point %q of volume %q, %d bytes", safe.ID, safe.Volume, safe.Size)
		}
		return err
	})
	return safe, err
}

// Break makes a snapshot an ordinary volume of the name given, for good.
func (a *Array) Break(ctx context.Context, s driver.SnapshotID, name string) (v driver.Volume, err error) {
	op := fmt.Sprintf("breaking snapshot %q off", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return v, err
	}
	if name == "" || name != strings.TrimSpace(name) {
		return v, a.refuse(op, driver.InvalidRequest, "name %.80q for the new volume is empty or has space around it", name)
	}
	if a.breaker == nil {
		return v, a.refuse(op, driver.NotSupported, "it can't make a snapshot a volume; copy its content to a new one instead")
	}
	err = a.call(ctx, op, true, func(ctx context.Context) error {
		v, err = a.breaker.Break(ctx, s, name)
		if err == nil && (v.ID == "" || v.Size <= 0) {
			err = nonsense("volume %q, %d bytes", v.ID, v.Size)
		}
		return err
	})
	return v, err
}

// Changes tells which regions may differ between two points of a volume: its
// snapshots, or what it holds now where the ID is empty. Kind NotSupported says
// that everything may.
func (a *Array) Changes(ctx context.Context, v driver.VolumeID, from, to driver.SnapshotID) (c driver.Changes, err error) {
	op := fmt.Sprintf("comparing points of volume %q", v)
	if v == "" {
		return c, a.refuse(op, driver.InvalidRequest, "no volume is named")
	}
	if a.changes == nil {
		return c, a.refuse(op, driver.NotSupported, "it doesn't know what changed; read both and compare")
	}
	err = a.call(ctx, op, false, func(ctx context.Context) error {
		if c, err = a.changes.Changes(ctx, v, from, to); err == nil {
			err = checkChanges(c)
		}
		return err
	})
	if err != nil {
		return driver.Changes{}, err
	}
	return c, nil
}

// checkChanges refuses regions out of order: a caller that reads them one after
// the other would miss some.
func checkChanges(c driver.Changes) error {
	end := int64(0)
	for i, r := range c.Regions {
		if r.Off < end || r.Len <= 0 || r.Off+r.Len < r.Off || r.Hole {
			return fmt.Errorf("the provider's answer makes no sense: region %d of %d has %d bytes at %d, after one that ends at %d", i+1, len(c.Regions), r.Len, r.Off, end)
		}
		end = r.Off + r.Len
	}
	if c.Granularity <= 0 {
		return fmt.Errorf("the provider's answer makes no sense: regions of %d bytes", c.Granularity)
	}
	return nil
}

// Expose makes a snapshot a LUN for the initiators named, and nobody else.
func (a *Array) Expose(ctx context.Context, s driver.SnapshotID, o driver.ExposeOptions) (p driver.Path, err error) {
	op := fmt.Sprintf("exposing snapshot %q", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return p, err
	}
	if len(o.Initiators) == 0 {
		return p, a.refuse(op, driver.InvalidRequest, "no initiator is named; nobody would see it")
	}
	for _, i := range o.Initiators {
		if strings.TrimSpace(i) == "" {
			return p, a.refuse(op, driver.InvalidRequest, "an initiator's name is empty")
		}
	}
	if a.exposer == nil {
		return p, a.refuse(op, driver.NotSupported, "it can't make snapshots LUNs")
	}
	err = a.call(ctx, op, true, func(ctx context.Context) error {
		p, err = a.exposer.Expose(ctx, s, o)
		if err == nil && (p.IQN == "" || len(p.Portals) == 0 || o.Writable && !p.Writable) {
			err = nonsense("target %q at %d portals, writable: %v", p.IQN, len(p.Portals), p.Writable)
		}
		return err
	}, attribute.Bool("cleave.writable", o.Writable))
	return p, err
}

// Unexpose takes a snapshot's LUN away. Where nothing can be exposed, there is
// nothing to do.
func (a *Array) Unexpose(ctx context.Context, s driver.SnapshotID) error {
	op := fmt.Sprintf("unexposing snapshot %q", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return err
	}
	if a.exposer == nil {
		return nil
	}
	return a.call(ctx, op, true, func(ctx context.Context) error { return a.exposer.Unexpose(ctx, s) })
}

// Rewrite opens a snapshot for writing, alone. The caller closes the device,
// which is an io.Closer.
func (a *Array) Rewrite(ctx context.Context, s driver.SnapshotID) (d lun.Device, err error) {
	op := fmt.Sprintf("opening snapshot %q for writing", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return nil, err
	}
	if a.rewriter == nil {
		return nil, a.refuse(op, driver.NotSupported, "its snapshots can't be written to from here; recover them as views")
	}
	err = a.call(ctx, op, false, func(ctx context.Context) error {
		d, err = a.rewriter.Rewrite(ctx, s)
		return err
	})
	return d, err
}

// Open opens a snapshot for reading without a transport. The caller closes the
// device if it is an io.Closer.
func (a *Array) Open(ctx context.Context, s driver.SnapshotID) (d lun.Device, err error) {
	op := fmt.Sprintf("opening snapshot %q", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return nil, err
	}
	if a.opener == nil {
		return nil, a.refuse(op, driver.NotSupported, "its snapshots can be read as LUNs only")
	}
	err = a.call(ctx, op, false, func(ctx context.Context) error {
		d, err = a.opener.Open(ctx, s)
		return err
	})
	return d, err
}
