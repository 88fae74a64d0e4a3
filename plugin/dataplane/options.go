package dataplane

import (
	"context"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
)

// option is the array's, or an error of the kind by which a caller knows that
// there is none.
func option[T any](p *plane, what string) (T, error) {
	o, ok := any(p.array).(T)
	if !ok {
		return o, driver.Errorf(driver.NotSupported, "this array can't %s", what)
	}
	return o, nil
}

// revert puts a volume back. A LUN of the volume or of the snapshot is a use of
// it, and refuses it: an initiator would not know that its caches are stale.
func (p *plane) revert(ctx context.Context, s driver.SnapshotID) (driver.Snapshot, error) {
	o, err := option[driver.Reverter](p, "put a volume back to a snapshot")
	if err != nil {
		return driver.Snapshot{}, err
	}
	return o.Revert(ctx, s)
}

func (p *plane) breakOff(ctx context.Context, s driver.SnapshotID, name string) (driver.Volume, error) {
	o, err := option[driver.Breaker](p, "make a snapshot a volume")
	if err != nil {
		return driver.Volume{}, err
	}
	return o.Break(ctx, s, name)
}

func (p *plane) changes(ctx context.Context, v driver.VolumeID, r remote.ChangesRequest) (driver.Changes, error) {
	o, err := option[driver.ChangeTracker](p, "tell what changed")
	if err != nil {
		return driver.Changes{}, err
	}
	return o.Changes(ctx, v, r.From, r.To)
}
