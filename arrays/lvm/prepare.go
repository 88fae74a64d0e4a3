package lvm

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// full is how much of a thin pool, in per cent, may be in use before a snapshot is
// refused: its volumes get I/O errors, or hang, once it is full.
const full = 95

// pollSync is how often a raid is asked how far it is.
const pollSync = time.Second

// Prepare implements driver.Driver. What it reserves is nothing but a whole mirror:
// FullSplit copies the one that the last set took.
func (d *Driver) Prepare(ctx context.Context, vs []driver.VolumeID, o driver.PrepareOptions) error {
	for _, id := range vs {
		if err := d.prepare(ctx, id, o); err != nil {
			return err
		}
	}
	if d.o.Method == Snapshots {
		return nil
	}
	// Others may split in the meantime.
	for _, id := range vs {
		if err := d.synchronised(ctx, id, o.Tag); err != nil {
			return err
		}
	}
	return nil
}

// prepare starts what a volume needs.
func (d *Driver) prepare(ctx context.Context, id driver.VolumeID, o driver.PrepareOptions) error {
	over, err := d.alone(ctx)
	if err != nil {
		return err
	}
	defer over()
	g, err := d.read(ctx)
	if err != nil {
		return err
	}
	v, err := g.find(id)
	if err != nil {
		return err
	}
	if _, split := g.of(o.Tag, v); split {
		return nil
	}
	if d.o.Method == Snapshots {
		return d.room(g, v)
	}
	return d.mirror(ctx, g, v, o.AllowUnmirrored)
}

// room checks that a snapshot of v has a place.
func (d *Driver) room(g *group, v *lv) error {
	if !v.is("thin") {
		if need := v.size / 100 * int64(d.o.Room); need > g.free {
			return driver.Errorf(driver.NoSpace, "group %s has %d MiB free, a snapshot of %s takes %d", g.name, g.free>>20, g.path(v), need>>20)
		}
		return nil
	}
	p := g.byUUID(v.pool)
	switch {
	case p == nil:
		return fmt.Errorf("the thin pool of %s is not in the report", g.path(v))
	case p.data >= full || p.meta >= full:
		return driver.Errorf(driver.NoSpace, "thin pool %s is %.0f%% full, its metadata %.0f%%; at %d%% no snapshot is made", g.path(p), p.data, p.meta, full)
	}
	return nil
}

// mirror brings a volume to where an image can be split off it.
func (d *Driver) mirror(ctx context.Context, g *group, v *lv, unmirrored bool) error {
	wanted, _, err := d.spare(g, v, unmirrored)
	if err == nil && len(g.images(v)) < wanted {
		err = d.change(ctx, "lvconvert", "-y", "--type", "raid1", "-m", strconv.Itoa(wanted-1), g.path(v))
	}
	return err
}

// spare tells whether an image can be split off a volume once it has wanted ones,
// and how many bytes those that are missing take.
func (d *Driver) spare(g *group, v *lv, unmirrored bool) (wanted int, need int64, err error) {
	if x := g.tracked(v); x != nil {
		return 0, 0, driver.Errorf(driver.Busy, "%s is split off %s already, by set %q; `lvconvert --merge` or that set's end puts it back", g.path(x), g.path(v), v.value(tagSplit))
	}
	have := len(g.images(v))
	wanted = max(have, wantedImages(v))
	switch {
	case !v.is("raid1") && wanted < 2:
		return 0, 0, driver.Errorf(driver.NotSupported, "%s is no raid1 volume: `lvconvert --type raid1 -m 1 %s` gives it a mirror, or the array's method is %s", g.path(v), g.path(v), Snapshots)
	case wanted < 3 && !unmirrored:
		return 0, 0, driver.Errorf(driver.NeedsConsent, "a split leaves %s with one image until it is made whole again", g.path(v))
	case v.health != "":
		return 0, 0, driver.Errorf(driver.NotSynchronized, "%s is %s: repair it first (lvconvert --repair)", g.path(v), v.health)
	}
	if have < wanted {
		if need = v.size * int64(wanted-max(have, 1)); need > g.free {
			return wanted, need, driver.Errorf(driver.NoSpace, "group %s has %d MiB free, a new image of %s takes %d", g.name, g.free>>20, g.path(v), need>>20)
		}
	}
	return wanted, need, nil
}

// wantedImages is how many a volume had before one was split off for good.
func wantedImages(v *lv) int {
	n, err := strconv.Atoi(v.value(tagMirrors))
	if err != nil || n < 2 || n > 10 { // raid1's own limit
		return 0
	}
	return n
}

// synchronised waits until a raid has nothing to copy, or is split.
func (d *Driver) synchronised(ctx context.Context, id driver.VolumeID, tag driver.Tag) error {
	tick := time.NewTicker(pollSync)
	defer tick.Stop()
	for {
		g, err := d.read(ctx)
		if err != nil {
			return err
		}
		v, err := g.find(id)
		if err != nil {
			return err
		}
		if _, split := g.of(tag, v); split {
			return nil
		}
		if v.health != "" {
			return driver.Errorf(driver.NotSynchronized, "%s became %s", g.path(v), v.health)
		}
		if g.inSync(v) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return driver.Errorf(driver.NotSynchronized, "%s is in sync to %.0f%%: %w", g.path(v), max(v.sync, 0), context.Cause(ctx))
		}
	}
}

// Split implements driver.Driver.
func (d *Driver) Split(ctx context.Context, tag driver.Tag, id driver.VolumeID) (driver.Snapshot, error) {
	over, err := d.alone(ctx)
	if err != nil {
		return driver.Snapshot{}, err
	}
	defer over()
	g, err := d.read(ctx)
	if err != nil {
		return driver.Snapshot{}, err
	}
	v, err := g.find(id)
	if err != nil {
		return driver.Snapshot{}, err
	}
	if s, ok := g.of(tag, v); ok && (s.own || s.tracked) {
		return s.describe(), nil
	} else if !ok {
		if d.o.Method == Snapshots {
			err = d.snapshot(ctx, g, tag, v)
		} else {
			err = d.detach(ctx, g, tag, v)
		}
		if k := d.Kind(err); err != nil && k != driver.Unknown {
			return driver.Snapshot{}, err
		}
	}
	// What is there counts, not what a command says: it may have failed after the act.
	s, lookErr := d.look(ctx, tag, id)
	switch {
	case lookErr == nil:
		return s.describe(), nil
	case err != nil && d.Kind(lookErr) == driver.Unknown:
		return driver.Snapshot{}, err
	case err != nil:
		return driver.Snapshot{}, fmt.Errorf("%w (after: %w)", lookErr, err)
	}
	return driver.Snapshot{}, lookErr
}

// look finds what was just split, and tags what has no tags of its own yet.
func (d *Driver) look(ctx context.Context, tag driver.Tag, id driver.VolumeID) (snapshot, error) {
	g, err := d.read(ctx)
	if err != nil {
		return snapshot{}, driver.Errorf(driver.OutcomeUnknown, "after the split: %w", err)
	}
	v := g.byUUID(string(id))
	if v == nil {
		return snapshot{}, driver.Errorf(driver.OutcomeUnknown, "volume %.60q is gone after its split", id)
	}
	s, ok := g.of(tag, v)
	if !ok {
		return snapshot{}, fmt.Errorf("%s was not split", g.path(v))
	}
	if s.own || s.tracked {
		return s, nil
	}
	err = d.change(ctx, "lvchange", "--addtag", tagTag+"="+s.tag, "--addtag", tagOf+"="+v.uuid, "--addtag", tagAt+"="+v.value(tagAt), g.path(s.lv))
	if err != nil {
		return s, err
	}
	return s, d.forget(ctx, g, v)
}

// forget takes the mark of a split off a volume.
func (d *Driver) forget(ctx context.Context, g *group, v *lv) error {
	args := []string{"lvchange"}
	for _, t := range v.tags {
		if v.value(tagSplit) != "" && (t == tagSplit+"="+v.value(tagSplit) || t == tagAt+"="+v.value(tagAt)) {
			args = append(args, "--deltag", t)
		}
	}
	if len(args) == 1 {
		return nil
	}
	return d.change(ctx, append(args, g.path(v))...)
}

// snapshot makes one of lvm2's own; it is there with its tags or not at all.
func (d *Driver) snapshot(ctx context.Context, g *group, tag driver.Tag, v *lv) error {
	args := []string{
		"lvcreate", "-y", "-s", "-n", g.splitName(tag, v), "--addtag", tagTag + "=" + string(tag), "--addtag", tagOf + "=" + v.uuid,
		"--addtag", tagAt + "=" + now(),
	}
	if v.is("thin") {
		args = append(args, "-kn") // thin snapshots are not activated otherwise
	} else {
		args = append(args, "-l", strconv.Itoa(d.o.Room)+"%ORIGIN")
	}
	return d.change(ctx, append(args, g.path(v))...)
}

func now() string { return strconv.FormatInt(time.Now().UnixMilli(), 10) }

// detach takes an image off a raid1 volume, after marking the volume with whose it
// will be.
func (d *Driver) detach(ctx context.Context, g *group, tag driver.Tag, v *lv) error {
	name := g.splitName(tag, v)
	switch {
	case !v.is("raid1") && wantedImages(v) == 0:
		return driver.Errorf(driver.NotSupported, "%s is no raid1 volume", g.path(v))
	case g.tracked(v) != nil:
		return driver.Errorf(driver.Busy, "an image of %s is split off already, by set %q", g.path(v), v.value(tagSplit))
	case len(g.images(v)) < 2 || !g.inSync(v):
		return driver.Errorf(driver.NotSynchronized, "%s has no second image that is in sync", g.path(v))
	case g.byName(name) != nil:
		return driver.Errorf(driver.Busy, "%s/%s is there already, and not set %q's", g.name, name, tag)
	}
	// An older mark, of a set that came to nothing, is replaced.
	mark := []string{"lvchange", "--addtag", tagSplit + "=" + string(tag), "--addtag", tagAt + "=" + now()}
	for _, old := range []string{tagSplit + "=" + v.value(tagSplit), tagAt + "=" + v.value(tagAt)} {
		if v.tagged(old) && !slices.Contains(mark, old) {
			mark = append(mark, "--deltag", old)
		}
	}
	act := []string{"lvconvert", "-y", "--splitmirrors", "1", "--trackchanges", g.path(v)}
	if d.o.Method == FullSplit {
		// The next Prepare knows by it what is missing.
		had, has := tagMirrors+"="+v.value(tagMirrors), tagMirrors+"="+strconv.Itoa(max(len(g.images(v)), wantedImages(v)))
		if had != has {
			mark = append(mark, "--addtag", has)
			if v.tagged(had) {
				mark = append(mark, "--deltag", had)
			}
		}
		act = []string{"lvconvert", "-y", "--splitmirrors", "1", "--name", name, g.path(v)}
	}
	if err := d.change(ctx, append(mark, g.path(v))...); err != nil {
		return err
	}
	return d.change(ctx, act...)
}
