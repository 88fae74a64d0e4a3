package embedded

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Split takes a mirror off one volume: a group of one.
func (a *Array) Split(ctx context.Context, tag driver.Tag, v driver.VolumeID) (driver.Snapshot, error) {
	ss, err := a.split(ctx, tag, []driver.VolumeID{v}, false)
	if err != nil {
		return driver.Snapshot{}, err
	}
	return ss[0], nil
}

// SplitGroup takes a mirror off each volume at one instant: Arm and Commit in
// one call. Volumes that are armed under the tag are committed.
func (a *Array) SplitGroup(ctx context.Context, tag driver.Tag, vs []driver.VolumeID) ([]driver.Snapshot, error) {
	return a.split(ctx, tag, vs, true)
}

// split performs a group split:
//
//  1. lock the volumes' administration, find what the tag already has
//  2. arm: choose mirrors; sync them, so that little is left for after the
//     instant; make the bitmaps of the epochs to come; write the pending record
//  3. commit: take all admission locks, change the epochs, release
//  4. wait for operations of the old epochs, sync the mirrors that came off,
//     flush the bitmaps of the epochs that ended
//  5. replace the pending record by the snapshots: the split is certain
//
// Until 5, a mark of the intent logs is cleared only when what a mirror needs to
// go back is stable: see leaving. Only 3 holds writes, and nothing in it waits
// for a disk.
func (a *Array) split(ctx context.Context, tag driver.Tag, refs []driver.VolumeID, whole bool) ([]driver.Snapshot, error) {
	vols, release, err := a.lockTag(ctx, tag, refs)
	if err != nil {
		return nil, err
	}
	if s, err := a.armedAs(tag, vols); s != nil || err != nil {
		if err != nil {
			release()
			return nil, err
		}
		return a.commitArmed(ctx, s, release)
	}
	unlockVols, err := lockAll(ctx, vols)
	if err != nil {
		release()
		return nil, err
	}
	unlock := func() { unlockVols(); release() }
	if done, err := a.alreadySplit(tag, vols, whole); err != nil || done != nil {
		unlock()
		return done, err
	}
	var snaps []driver.Snapshot
	err = a.finish(ctx, fmt.Sprintf("split for tag %q", tag), unlock, func() error {
		s, err := a.arm(tag, vols)
		if err == nil {
			snaps, err = a.commit(s)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return snaps, nil
}

func checkTag(tag driver.Tag) error {
	if tag == "" || len(tag) > 63 || strings.Trim(string(tag), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return driver.Errorf(driver.InvalidRequest, "tag %.80q: want 1 to 63 of [a-z0-9-]", tag)
	}
	return nil
}

// lockTag finds the volumes and waits until nobody else works for the tag.
func (a *Array) lockTag(ctx context.Context, tag driver.Tag, refs []driver.VolumeID) (vols []*volume, release func(), err error) {
	if err := checkTag(tag); err != nil {
		return nil, nil, err
	}
	if vols, err = a.findAll(refs); err != nil {
		return nil, nil, err
	}
	if ctx.Err() != nil {
		return nil, nil, driver.Errorf(driver.Unreachable, "nothing was begun for tag %q: %w", tag, context.Cause(ctx))
	}
	release, err = a.splits.lock(ctx, tag)
	return vols, release, err
}

// findAll returns the volumes in the order in which they are named.
func (a *Array) findAll(refs []driver.VolumeID) ([]*volume, error) {
	if len(refs) == 0 {
		return nil, driver.Errorf(driver.InvalidRequest, "no volumes given")
	}
	vols := make([]*volume, len(refs))
	seen := make(map[*volume]bool, len(refs))
	for i, ref := range refs {
		v, err := a.find(ref)
		if err != nil {
			return nil, err
		}
		if seen[v] {
			return nil, driver.Errorf(driver.InvalidRequest, "%s is given twice", v.label)
		}
		vols[i], seen[v] = v, true
	}
	return vols, nil
}

// lockAll locks the volumes' administration, in the order of their IDs.
func lockAll(ctx context.Context, vols []*volume) (unlock func(), err error) {
	vols = slices.SortedFunc(slices.Values(vols), func(x, y *volume) int { return slices.Compare(x.id[:], y.id[:]) })
	for i, v := range vols {
		if err := v.lockAdmin(ctx); err != nil {
			for _, w := range vols[:i] {
				w.unlockAdmin()
			}
			return nil, err
		}
	}
	return func() {
		for _, v := range vols {
			v.unlockAdmin()
		}
	}, nil
}

// alreadySplit returns the snapshots that the tag has of the volumes, if it
// has all of them, and none if it has none. whole: the tag's group must be
// exactly these.
func (a *Array) alreadySplit(tag driver.Tag, vols []*volume, whole bool) ([]driver.Snapshot, error) {
	have := make([]driver.Snapshot, len(vols))
	n, others := 0, 0
	c := a.store.read()
	for i := range c.Snapshots {
		s := &c.Snapshots[i]
		if s.Tag != tag {
			continue
		}
		if k := slices.IndexFunc(vols, func(v *volume) bool { return v.id == s.Volume }); k >= 0 {
			have[k] = a.describe(s)
			n++
		} else {
			others++
		}
	}
	if n == 0 && (others == 0 || !whole) {
		return nil, nil
	}
	if n != len(vols) || whole && others > 0 {
		return nil, driver.Errorf(driver.InvalidRequest, "tag %q was used for a split of other volumes: of the %d asked for it has %d, and %d more", tag, len(vols), n, others)
	}
	return have, nil
}

var _ driver.GroupSplitter = (*Array)(nil)
