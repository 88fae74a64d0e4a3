package cinder

import (
	"context"
	"crypto/rand"
	"net/url"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
)

// What a volume that was made of a snapshot is for.
const (
	forLUN     = "lun"     // one, which initiators see
	forReading = "reading" // one for each Open
)

// madeOf are the volumes that were made of a snapshot.
func (d *Driver) madeOf(ctx context.Context, snapshot string) ([]volume, error) {
	all, err := list(ctx, d.c, "volumes/detail", "volumes", url.Values{"name": {prefix + snapshot}}, func(v volume) string { return v.ID })
	if err != nil {
		return nil, err
	}
	var ours []volume
	for _, v := range all {
		if v.Metadata[ofKey] == snapshot {
			ours = append(ours, v)
		}
	}
	return ours, nil
}

// lunOf is the volume by which a snapshot is exposed, or nil.
func (d *Driver) lunOf(ctx context.Context, snapshot string) (*volume, error) {
	all, err := d.madeOf(ctx, snapshot)
	for i, v := range all {
		if v.Metadata[forKey] == forLUN && v.Status != "deleting" {
			return &all[i], nil
		}
	}
	return nil, err
}

// clone makes a volume of a snapshot and waits until it can be attached. Where
// nobody answers, Cinder is asked for a volume with this call's mark.
func (d *Driver) clone(ctx context.Context, s snapshot, use string) (volume, error) {
	if err := d.fits(ctx, 0, s.Size); err != nil {
		return volume{}, err
	}
	call := rand.Text()
	in := map[string]any{"volume": map[string]any{
		"snapshot_id": s.ID, "size": s.Size, "name": prefix + s.ID, "description": "Cleave",
		"metadata": map[string]string{ofKey: s.ID, forKey: use, callKey: call},
	}}
	v, err := send[volume](ctx, d.c, create, "volumes", "volume", in)
	if isKind(err, driver.OutcomeUnknown) {
		all, lost := d.madeOf(ctx, s.ID)
		if i := slices.IndexFunc(all, func(v volume) bool { return v.Metadata[callKey] == call }); lost == nil && i >= 0 {
			v, err = all[i], nil
		}
	}
	if err != nil {
		return volume{}, err
	}
	return d.settledVolume(ctx, v.ID)
}

// settledVolume waits until a volume is whole, and deletes one that never will be.
func (d *Driver) settledVolume(ctx context.Context, id string) (v volume, err error) {
	err = d.c.until(ctx, func() (bool, error) {
		v, err = d.volume(ctx, id)
		return v.Status != "creating" && v.Status != "downloading", err
	})
	switch {
	case ctx.Err() != nil:
		return v, driver.Errorf(driver.OutcomeUnknown, "volume %s: Cinder was still making it when the time was over: %w", id, context.Cause(ctx))
	case err != nil:
		return v, err
	case v.Status == "error":
		_ = d.c.call(ctx, end, "volumes/"+id, nil, nil, nil)
		return v, driver.Errorf(driver.Unknown, "volume %s of snapshot %s has failed in Cinder's scheduler or back end, whose log says why; it is being deleted", id, v.SnapshotID)
	}
	return v, nil
}

// drop detaches and deletes a volume of ours, and waits until it is gone.
func (d *Driver) drop(ctx context.Context, v volume) error {
	if v.Metadata[ofKey] == "" || !strings.HasPrefix(v.Name, prefix) {
		return driver.Errorf(driver.InvalidRequest, "volume %s was not made by Cleave", v.ID)
	}
	if err := d.detach(ctx, v.ID); err != nil {
		return err
	}
	return d.remove(ctx, "volumes/"+v.ID, "volume")
}
