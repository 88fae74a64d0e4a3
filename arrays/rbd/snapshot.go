package rbd

import (
	"context"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// listed is a snapshot as `rbd snap ls` says.
type listed struct {
	ID   uint64 `json:"id"` // grows with each snapshot of an image
	Name string `json:"name"`
	Size int64  `json:"size"`
	Time string `json:"timestamp"` // in the command's own time zone
	In   struct {
		Type  string `json:"type"` // user, group, trash …
		Pool  string `json:"pool"`
		Group string `json:"group"`
		Name  string `json:"group snap"`
	} `json:"namespace"`
}

// isMember reports whether it was made with others of a group. Such a snapshot
// has a name in its group only.
func (l listed) isMember() bool { return l.In.Type == "group" }

// is reports whether it is the snapshot of that name.
func (l listed) is(name string) bool {
	return l.In.Type == "user" && l.Name == name || l.isMember() && l.In.Name == name
}

func (l listed) driver(s snap) driver.Snapshot {
	x := driver.Snapshot{ID: s.id(), Tag: s.tag(), Volume: s.image.id(), Size: l.Size, Method: driver.ArraySnapshot, State: driver.Split}
	if l.isMember() {
		x.Group = l.In.Pool + "/" + l.In.Group + "@" + l.In.Name
	}
	if t, err := time.ParseInLocation("Mon Jan _2 15:04:05 2006", l.Time, time.Local); err == nil {
		x.At = t.UTC()
	}
	return x
}

// list asks for an image's snapshots, of whatever kind.
func (d *Driver) list(ctx context.Context, i image) (all []listed, err error) {
	err = d.ask(ctx, &all, append([]string{"snap", "ls", "--all"}, i.args()...)...)
	return all, err
}

// find asks for one; without it, kind NotFound.
func (d *Driver) find(ctx context.Context, s snap) (listed, error) {
	if !d.ours(s.image) {
		return listed{}, driver.Errorf(driver.NotFound, "image %s is in no pool that is configured", s.image)
	}
	all, err := d.list(ctx, s.image)
	for _, l := range all {
		if l.is(s.name) {
			return l, nil
		}
	}
	if err == nil {
		err = driver.Errorf(driver.NotFound, "there is no snapshot %s", s.id())
	}
	return listed{}, err
}

// make takes a snapshot, or finds that it is there.
func (d *Driver) make(ctx context.Context, s snap) (driver.Snapshot, error) {
	l, err := d.find(ctx, s)
	if d.is(err, driver.NotFound) {
		if err = d.do(ctx, append([]string{"snap", "create"}, s.args()...)...); err == nil {
			l, err = d.find(ctx, s)
		}
	}
	return l.driver(s), err
}

// Split implements driver.Driver.
func (d *Driver) Split(ctx context.Context, tag driver.Tag, v driver.VolumeID) (driver.Snapshot, error) {
	i, _, err := d.volume(ctx, v)
	if err != nil {
		return driver.Snapshot{}, err
	}
	return toEnd(ctx, d, func() (driver.Snapshot, error) { return d.make(ctx, i.at(tag)) })
}

// Lookup implements driver.Driver.
func (d *Driver) Lookup(ctx context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	return toEnd(ctx, d, func() ([]driver.Snapshot, error) { return d.lookup(ctx, tag) }) // a group that is being split is found whole
}

func (d *Driver) lookup(ctx context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	found, err := d.lookupGroup(ctx, tag)
	if err != nil {
		return nil, err
	}
	for _, p := range d.pools {
		var all []struct {
			Image    string `json:"image"`
			Snapshot string `json:"snapshot"`
		}
		if err := d.ask(ctx, &all, append([]string{"ls", "--long"}, p.where()...)...); err != nil {
			return nil, err
		}
		for _, x := range all {
			i := image{p.pool, p.namespace, x.Image}
			s := i.at(tag)
			if x.Snapshot != s.name || i.isView() {
				continue
			}
			l, err := d.find(ctx, s)
			if d.is(err, driver.NotFound) { // gone meanwhile
				continue
			} else if err != nil {
				return nil, err
			}
			found = append(found, l.driver(s))
		}
	}
	return found, nil
}

// Delete implements driver.Driver.
func (d *Driver) Delete(ctx context.Context, id driver.SnapshotID) error {
	s, err := parseSnap(id)
	if err != nil || !d.ours(s.image) {
		return nil // it can't be there
	}
	_, err = toEnd(ctx, d, func() (struct{}, error) { return struct{}{}, d.remove(ctx, s) })
	return err
}

// remove deletes a snapshot, and what is known of it. The lock is held.
func (d *Driver) remove(ctx context.Context, s snap) error {
	if d.opened(s.id(), 0) > 0 {
		return driver.Errorf(driver.Busy, "snapshot %s is open", s.id())
	}
	l, err := d.find(ctx, s)
	there := err == nil
	if err != nil && !d.is(err, driver.NotFound) {
		return err
	}
	known, err := d.remembered(ctx, s.image)
	if d.is(err, driver.NotFound) { // the image is gone
		return nil
	} else if err != nil {
		return err
	}
	if there {
		if err := d.forget(ctx, s.image, s.reverted()); err != nil {
			return err
		}
	}
	if there && l.isMember() || known[s.grouped()] != "" {
		return d.removeMember(ctx, s, l, known[s.grouped()])
	}
	if !there {
		return nil
	}
	err = d.do(ctx, append([]string{"snap", "rm"}, s.args()...)...)
	if d.is(err, driver.NotFound) {
		return nil
	}
	return err
}
