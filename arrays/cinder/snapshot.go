package cinder

import (
	"context"
	"net/url"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Keys of metadata, and the prefix of names.
const (
	tagKey   = "cleave-tag"     // of a snapshot: its set's tag
	endedKey = "cleave-deleted" // of a group snapshot's member that is given back
	ofKey    = "cleave-of"      // of a volume: the snapshot that it was made of
	forKey   = "cleave-for"     // of a volume: "lun" or "reading"
	toKey    = "cleave-to"      // of a volume: the initiator that it is exposed to
	callKey  = "cleave-call"    // of a volume: the call that it was made by
	prefix   = "cleave-"
)

func name(t driver.Tag) string { return prefix + string(t) }

// made are the snapshots of a tag.
type made []snapshot

func (m made) has(volume string) bool {
	return slices.ContainsFunc(m, func(s snapshot) bool { return s.Volume == volume })
}

// tagged asks for the snapshots of a tag, oldest first. Those of a group that are
// given back already are not among them, nor is what only has such a name.
func (d *Driver) tagged(ctx context.Context, tag driver.Tag) (made, error) {
	all, err := list(ctx, d.c, "snapshots/detail", "snapshots", url.Values{"name": {name(tag)}}, func(s snapshot) string { return s.ID })
	if err != nil {
		return nil, err
	}
	var ours made
	for _, s := range all {
		single := s.Metadata[tagKey] == string(tag)
		member := s.GroupSnapshot != "" && s.Metadata[endedKey] == ""
		if s.Name == name(tag) && (single || member) {
			ours = append(ours, s)
		}
	}
	slices.SortFunc(ours, func(a, b snapshot) int {
		if c := a.Created.Compare(b.Created.Time); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return ours, nil
}

func (s snapshot) driver() driver.Snapshot {
	x := driver.Snapshot{
		ID: driver.SnapshotID(s.ID), Tag: driver.Tag(strings.TrimPrefix(s.Name, prefix)), Volume: driver.VolumeID(s.Volume),
		Size: s.Size * gib, Method: driver.ArraySnapshot, Group: s.GroupSnapshot, At: s.Created.Time,
	}
	switch {
	case s.Status == "creating":
		x.State = driver.Initialized
	case strings.HasPrefix(s.Status, "error"):
		x.State = driver.Broken
	default:
		x.State = driver.Split
	}
	return x
}

// Lookup implements driver.Driver.
func (d *Driver) Lookup(ctx context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	all, err := d.tagged(ctx, tag)
	if err != nil {
		return nil, err
	}
	out := make([]driver.Snapshot, len(all))
	for i, s := range all {
		out[i] = s.driver()
	}
	return out, nil
}

// Split implements driver.Driver.
func (d *Driver) Split(ctx context.Context, tag driver.Tag, id driver.VolumeID) (driver.Snapshot, error) {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	ctx, unlock, err := d.locks.lock(ctx, string(tag))
	if err != nil {
		return driver.Snapshot{}, err
	}
	defer unlock()
	find := func() (*snapshot, error) {
		all, err := d.tagged(ctx, tag)
		if i := slices.IndexFunc(all, func(s snapshot) bool { return s.Volume == string(id) }); err == nil && i >= 0 {
			return &all[i], nil
		}
		return nil, err
	}
	s, err := find()
	if err != nil {
		return driver.Snapshot{}, err
	}
	if s == nil {
		if s, err = d.create(ctx, tag, string(id), find); err != nil {
			return driver.Snapshot{}, err
		}
	}
	x, err := d.settled(ctx, s.ID)
	if err == nil {
		err = d.only(ctx, tag, s)
	}
	return x, err
}

// only deletes what one of two calls made at the same time for one tag, or a
// request that was answered by nobody and acted on late: the oldest counts.
func (d *Driver) only(ctx context.Context, tag driver.Tag, s *snapshot) error {
	all, err := d.tagged(ctx, tag)
	for _, x := range all {
		if x.Volume == s.Volume && x.ID != s.ID && x.GroupSnapshot == "" && x.Status != "creating" {
			if err := d.remove(ctx, "snapshots/"+x.ID, "snapshot"); err != nil {
				return err
			}
		}
	}
	return err
}

// create takes a snapshot. Where nobody answers, find is asked for it.
func (d *Driver) create(ctx context.Context, tag driver.Tag, id string, find func() (*snapshot, error)) (*snapshot, error) {
	v, err := d.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	if !v.ready() {
		return nil, driver.Errorf(driver.Busy, "volume %s is %q", id, v.Status)
	}
	in := map[string]any{"snapshot": map[string]any{
		"volume_id": id, "name": name(tag), "description": "Cleave", "force": true, "metadata": map[string]string{tagKey: string(tag)},
	}}
	s, err := send[snapshot](ctx, d.c, create, "snapshots", "snapshot", in)
	if isKind(err, driver.OutcomeUnknown) {
		if found, lost := find(); lost == nil && found != nil {
			return found, nil
		}
	}
	return &s, err
}

// settled waits until a snapshot is whole, and deletes one that will never be.
func (d *Driver) settled(ctx context.Context, id string) (driver.Snapshot, error) {
	var s snapshot
	err := d.c.until(ctx, func() (bool, error) {
		var err error
		s, err = d.snapshot(ctx, id)
		return s.Status != "creating", err
	})
	switch {
	case isKind(err, driver.NotFound):
		return driver.Snapshot{}, driver.Errorf(driver.OutcomeUnknown, "snapshot %s was there and is gone", id)
	case ctx.Err() != nil:
		return driver.Snapshot{}, driver.Errorf(driver.OutcomeUnknown, "snapshot %s: Cinder was still at it when the time was over: %w", id, context.Cause(ctx))
	case err != nil:
		return driver.Snapshot{}, err
	case strings.HasPrefix(s.Status, "error"):
		_ = d.c.call(ctx, end, "snapshots/"+id, nil, nil, nil) // else Lookup shows it, as broken
		return driver.Snapshot{}, driver.Errorf(driver.Unknown, "snapshot %s of volume %s has failed in Cinder's back end, whose log says why; it is being deleted", id, s.Volume)
	}
	return s.driver(), nil
}

func (d *Driver) snapshot(ctx context.Context, id string) (snapshot, error) {
	if !isID(id) {
		return snapshot{}, driver.Errorf(driver.NotFound, "%.80q is not the ID of a snapshot", id)
	}
	return get[snapshot](ctx, d.c, "snapshots/"+id, "snapshot")
}

// Delete implements driver.Driver: what was made of the snapshot goes first. A
// member of a group is marked, and goes with the last one.
func (d *Driver) Delete(ctx context.Context, id driver.SnapshotID) error {
	ctx, cancel := d.limited(ctx)
	defer cancel()
	ctx, unlock, err := d.locks.lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	s, err := d.snapshot(ctx, string(id))
	switch {
	case isKind(err, driver.NotFound):
		return nil
	case err != nil:
		return err
	}
	if s, err = d.withGroup(ctx, s); err != nil {
		return err
	}
	if s.Metadata[tagKey] == "" && s.GroupSnapshot == "" {
		return driver.Errorf(driver.InvalidRequest, "snapshot %s is none of Cleave's", id)
	}
	vs, err := d.madeOf(ctx, s.ID)
	if err != nil {
		return err
	}
	for _, v := range vs {
		if v.Metadata[forKey] != forLUN || v.Status == "available" || v.Status == "deleting" || strings.HasPrefix(v.Status, "error") {
			continue
		}
		return driver.Errorf(driver.Busy, "snapshot %s is exposed: volume %s, which was made of it, is %q", id, v.ID, v.Status)
	}
	for _, v := range vs {
		if err := d.drop(ctx, v); err != nil {
			return err
		}
	}
	if s.GroupSnapshot != "" {
		return d.deleteMember(ctx, s)
	}
	return d.remove(ctx, "snapshots/"+s.ID, "snapshot")
}

// withGroup completes a snapshot: which group snapshot it belongs to is said in
// lists only.
func (d *Driver) withGroup(ctx context.Context, s snapshot) (snapshot, error) {
	if s.GroupSnapshot != "" || s.Metadata[tagKey] != "" || !strings.HasPrefix(s.Name, prefix) {
		return s, nil
	}
	all, err := list(ctx, d.c, "snapshots/detail", "snapshots", url.Values{"name": {s.Name}, "volume_id": {s.Volume}}, func(s snapshot) string { return s.ID })
	if err != nil {
		return s, err
	}
	if i := slices.IndexFunc(all, func(x snapshot) bool { return x.ID == s.ID }); i >= 0 {
		return all[i], nil
	}
	return s, nil
}

// remove deletes what is at path and waits until it is gone. What is not there is
// success.
func (d *Driver) remove(ctx context.Context, path, key string) error {
	err := d.c.call(ctx, end, path, nil, nil, nil)
	if isKind(err, driver.NotFound) {
		return nil
	}
	// An object that is being deleted already refuses that with 400.
	refused := err
	if err != nil && !isKind(err, driver.InvalidRequest) {
		return err
	}
	err = d.c.until(ctx, func() (bool, error) {
		x, err := get[struct {
			Status string `json:"status"`
		}](ctx, d.c, path, key)
		switch {
		case isKind(err, driver.NotFound):
			return true, nil
		case err != nil:
			return false, err
		case strings.HasPrefix(x.Status, "error"):
			return false, driver.Errorf(driver.Unknown, "deleting %s: Cinder's back end has failed, its log says why", path)
		case refused != nil && x.Status != "deleting":
			return false, refused
		}
		return false, nil
	})
	if ctx.Err() != nil {
		return driver.Errorf(driver.OutcomeUnknown, "deleting %s: Cinder was still at it when the time was over: %w", path, context.Cause(ctx))
	}
	return err
}
