package embedded

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Split takes a mirror off one volume: a group of one.
func (a *Array) Split(ctx context.Context, tag driver.Tag, v driver.VolumeID) (driver.Snapshot, error) {
	ss, err := a.split(ctx, tag, []driver.VolumeID{v}, false)
	if err != nil {
		return driver.Snapshot{}, err
	}
	return ss[0], nil
}

// SplitGroup takes a mirror off each volume at one instant.
func (a *Array) SplitGroup(ctx context.Context, tag driver.Tag, vs []driver.VolumeID) ([]driver.Snapshot, error) {
	return a.split(ctx, tag, vs, true)
}

// cut is one volume's part of a split.
type cut struct {
	v     *volume
	p     *plex
	epoch uint64
	dirty *mapFile // of the epoch that begins
	snap  lun.Identity
	old   *epoch
}

// split performs a group split:
//
//  1. lock the volumes' administration, find what the tag already has
//  2. choose mirrors; sync them, so that little is left for after the instant;
//     make the bitmaps of the epochs to come
//  3. write the pending record
//  4. take all admission locks, change the epochs, release
//  5. wait for operations of the old epochs, sync the mirrors that came off,
//     flush the bitmaps of the epochs that ended
//  6. replace the pending record by the snapshots: the split is certain
//
// Until 6, marks of the intent logs stay, so that a mirror can go back. Only 4
// holds writes, and nothing in it waits for a disk.
func (a *Array) split(ctx context.Context, tag driver.Tag, refs []driver.VolumeID, whole bool) ([]driver.Snapshot, error) {
	if err := checkTag(tag); err != nil {
		return nil, err
	}
	vols, err := a.findAll(refs)
	if err != nil {
		return nil, err
	}
	release, err := a.splits.lock(ctx, tag)
	if err != nil {
		return nil, err
	}
	unlockVols, err := lockAll(ctx, vols)
	if err != nil {
		release()
		return nil, err
	}
	unlock := func() { unlockVols(); release() }
	if done, err := a.alreadySplit(tag, vols, whole); err != nil || done != nil {
		unlock()
		return inOrder(done, vols, refs), err
	}
	var snaps []driver.Snapshot
	err = a.finish(ctx, fmt.Sprintf("split for tag %q", tag), unlock, func() (err error) {
		snaps, err = a.splitLocked(tag, vols)
		return err
	})
	if err != nil {
		return nil, err
	}
	return inOrder(snaps, vols, refs), nil
}

func checkTag(tag driver.Tag) error {
	if tag == "" || len(tag) > 63 || strings.Trim(string(tag), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return driver.Errorf(driver.InvalidRequest, "tag %.80q: want 1 to 63 of [a-z0-9-]", tag)
	}
	return nil
}

// findAll returns the volumes in the order in which they are locked.
func (a *Array) findAll(refs []driver.VolumeID) ([]*volume, error) {
	if len(refs) == 0 {
		return nil, driver.Errorf(driver.InvalidRequest, "no volumes given")
	}
	vols := make([]*volume, len(refs))
	for i, ref := range refs {
		v, err := a.find(ref)
		if err != nil {
			return nil, err
		}
		vols[i] = v
	}
	slices.SortFunc(vols, func(x, y *volume) int { return slices.Compare(x.id[:], y.id[:]) })
	for i := 1; i < len(vols); i++ {
		if vols[i] == vols[i-1] {
			return nil, driver.Errorf(driver.InvalidRequest, "%s is given twice", vols[i].label)
		}
	}
	return vols, nil
}

func lockAll(ctx context.Context, vols []*volume) (unlock func(), err error) {
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
	var have []driver.Snapshot
	others := 0
	c := a.store.read()
	for i := range c.Snapshots {
		s := &c.Snapshots[i]
		if s.Tag != tag {
			continue
		}
		if slices.ContainsFunc(vols, func(v *volume) bool { return v.id == s.Volume }) {
			have = append(have, a.describe(s))
		} else {
			others++
		}
	}
	if len(have) == 0 && (others == 0 || !whole) {
		return nil, nil
	}
	if len(have) != len(vols) || whole && others > 0 {
		return nil, driver.Errorf(driver.InvalidRequest, "tag %q was used for a split of other volumes: of the %d asked for it has %d, and %d more", tag, len(vols), len(have), others)
	}
	return have, nil
}

// inOrder sorts snapshots as their volumes were asked for.
func inOrder(ss []driver.Snapshot, vols []*volume, refs []driver.VolumeID) []driver.Snapshot {
	if ss == nil {
		return nil
	}
	out := make([]driver.Snapshot, 0, len(ss))
	for _, ref := range refs {
		for _, v := range vols {
			if id := driver.VolumeID(v.id.String()); id == ref || v.name == string(ref) {
				i := slices.IndexFunc(ss, func(s driver.Snapshot) bool { return s.Volume == id })
				out = append(out, ss[i])
				break
			}
		}
	}
	return out
}

// splitLocked is split's steps 2 to 6.
func (a *Array) splitLocked(tag driver.Tag, vols []*volume) ([]driver.Snapshot, error) {
	cuts, err := a.arm(tag, vols)
	if err != nil {
		return nil, err
	}
	group := lun.NewIdentity().String()
	pending := pendingRecord{Tag: tag, Group: group}
	for _, k := range cuts {
		pending.Members = append(pending.Members, pendingMember{Volume: k.v.id, Mirror: k.p.id, Snapshot: k.snap, Epoch: k.epoch})
	}
	err = a.store.update(func(c *catalog) error {
		c.Pending = append(c.Pending, pending)
		for _, k := range cuts {
			if r := c.volume(k.v.id); r.NextEpoch <= k.epoch {
				r.NextEpoch = k.epoch + 1
			}
		}
		return nil
	})
	if err != nil {
		disarm(cuts)
		return nil, err
	}
	at, held, err := instant(cuts)
	if err == nil {
		err = a.settleCuts(cuts)
	}
	if err == nil {
		err = a.certain(tag, group, cuts, at, held)
	}
	if err != nil {
		a.undo(group, cuts)
		return nil, err
	}
	snaps := make([]driver.Snapshot, len(cuts))
	c := a.store.read()
	for i, k := range cuts {
		k.v.log.unhold()
		k.v.setEpoch(k.epoch, k.dirty)
		r := c.snapshot(k.snap)
		snaps[i] = a.describe(r)
		s := newSnapshot(a, r, k.p)
		a.mu.Lock()
		a.snaps[k.snap] = s
		a.mu.Unlock()
		if left := k.v.mirrorsInSync(); left < 2 {
			a.event(Unmirrored, k.v, lun.Identity{}, "%s has one mirror until snapshot %s of tag %q is resynced", k.v.label, k.snap, tag)
		}
		k.v.notify()
	}
	return snaps, nil
}

// arm chooses the mirrors and makes ready all that takes time.
func (a *Array) arm(tag driver.Tag, vols []*volume) ([]*cut, error) {
	c := a.store.read()
	cuts := make([]*cut, len(vols))
	for i, v := range vols {
		p, err := v.choose(c, tag)
		if err != nil {
			return nil, err
		}
		cuts[i] = &cut{v: v, p: p, epoch: c.volume(v.id).NextEpoch, snap: lun.NewIdentity()}
	}
	err := each(cuts, func(k *cut) (err error) {
		if err = k.p.f.Sync(); err != nil {
			k.v.state.Lock()
			if inEpoch(k.v.cur, k.p) {
				err = errors.Join(err, k.v.drop(k.p, err))
			}
			k.v.state.Unlock()
			return driver.Errorf(driver.NotSynchronized, "%s: syncing mirror %s before its split: %w", k.v.label, k.p.id, err)
		}
		k.dirty, err = createMap(a.fs, a.mapPath(k.v.epochName(k.epoch)), k.v.size.Load(), regionSize)
		return err
	})
	if err == nil {
		err = a.fs.SyncDir(a.maps)
	}
	if err != nil {
		disarm(cuts)
		return nil, err
	}
	return cuts, nil
}

// choose picks the mirror to split off: the one that came last, so that reads,
// which favour the first, go on as they were.
func (v *volume) choose(c *catalog, tag driver.Tag) (*plex, error) {
	v.state.Lock() // the catalogue and the epoch may differ while it is held
	defer v.state.Unlock()
	e := v.cur
	switch n := len(e.insync); {
	case n == 0:
		return nil, driver.Errorf(driver.NotSynchronized, "%s is offline: %w", v.label, errOffline)
	case e.fixed:
		return nil, driver.Errorf(driver.NotSynchronized, "%s: its mirrors are still being compared after a crash", v.label)
	case n == 1:
		return nil, v.noMirror(c, tag)
	case n == 2 && !c.consents(tag, v.id):
		return nil, v.needsConsent()
	default:
		return e.insync[n-1], nil
	}
}

func (v *volume) needsConsent() error {
	return driver.Errorf(driver.NeedsConsent, "splitting %s would leave it with one mirror: add a third, or allow it to be unmirrored until the resync", v.label)
}

// noMirror says why there is no mirror to split off.
func (v *volume) noMirror(c *catalog, tag driver.Tag) error {
	for _, s := range c.Snapshots {
		if s.Volume == v.id && s.Tag != tag {
			return driver.Errorf(driver.Busy, "%s: its mirror is split off as snapshot %s of tag %q: resync or delete that first", v.label, s.ID, s.Tag)
		}
	}
	for _, m := range c.volume(v.id).Mirrors {
		switch m.State {
		case inSync:
		case filling:
			return driver.Errorf(driver.NotSynchronized, "%s: mirror %s is still being filled", v.label, m.ID)
		case broken:
			return driver.Errorf(driver.NotSynchronized, "%s: mirror %s in pool %q is broken (%s): remove it and add another", v.label, m.ID, m.Pool, m.Reason)
		}
	}
	return driver.Errorf(driver.NotSynchronized, "%s has one mirror only: add another", v.label)
}

func (c *catalog) consents(tag driver.Tag, v lun.Identity) bool {
	return slices.ContainsFunc(c.Consents, func(r consentRecord) bool {
		return r.Tag == tag && slices.Contains(r.Volumes, v)
	})
}

func disarm(cuts []*cut) {
	for _, k := range cuts {
		if k.dirty != nil {
			k.dirty.close()
			k.v.a.scrap(k.dirty.path)
		}
	}
}

// instant is the split itself. held is for how long any write waited at most.
func instant(cuts []*cut) (at time.Time, held time.Duration, err error) {
	next := make([]epoch0, len(cuts))
	for i, k := range cuts {
		k.v.log.hold()
		k.v.state.Lock()
		defer k.v.state.Unlock()
		next[i] = k.v.cur.parts()
		if !slices.Contains(next[i].insync, k.p) || len(next[i].insync) < 2 {
			err = driver.Errorf(driver.NotSynchronized, "%s lost a mirror just before the split", k.v.label)
		}
		next[i].insync = without(next[i].insync, k.p)
		next[i].dirty = k.dirty
	}
	if err != nil {
		return at, 0, err
	}
	ends := make([]*epoch, len(cuts))
	for i := range next {
		ends[i] = newEpoch(next[i])
	}
	begun := time.Now()
	for _, k := range cuts {
		k.v.admit.Lock()
	}
	at = time.Now()
	for i, k := range cuts {
		k.old = k.v.succeed(ends[i])
	}
	for _, k := range cuts {
		k.v.admit.Unlock()
	}
	held = time.Since(begun)
	for _, k := range cuts {
		k.old.leave()
	}
	return at, held, nil
}

// settleCuts waits until everything that the snapshots hold is stable.
func (a *Array) settleCuts(cuts []*cut) error {
	return each(cuts, func(k *cut) error {
		<-k.old.idle
		err := k.p.failed()
		if err == nil {
			err = k.p.f.Sync()
		}
		if err != nil {
			return fmt.Errorf("mirror %s of %s, being split off: %w", k.p.id, k.v.label, err)
		}
		if k.old.dirty != nil {
			return k.old.dirty.flush()
		}
		return nil
	})
}

// certain replaces the pending record by the snapshots, in one step.
func (a *Array) certain(tag driver.Tag, group string, cuts []*cut, at time.Time, held time.Duration) error {
	now := a.o.Now()
	at = now.Add(-time.Since(at)) // by the array's clock
	return a.change(func(c *catalog) error {
		c.dropPending(group)
		for _, k := range cuts {
			r := c.volume(k.v.id)
			m := r.mirror(k.p.id)
			c.Snapshots = append(c.Snapshots, snapshotRecord{
				ID: k.snap, Tag: tag, Group: group, Volume: r.ID, VolumeName: r.Name, Size: r.Size,
				Mirror: mirrorRecord{ID: m.ID, Pool: m.Pool, File: m.File, State: m.State},
				Epoch:  k.epoch, At: at.UTC(), Held: held,
			})
			r.Mirrors = slices.DeleteFunc(r.Mirrors, func(x mirrorRecord) bool { return x.ID == k.p.id })
			r.Epochs = append(r.Epochs, k.epoch)
			r.noteUnmirrored(now)
		}
		c.Consents = slices.DeleteFunc(c.Consents, func(r consentRecord) bool {
			return now.Sub(r.At) > consentLife
		})
		return nil
	})
}

func (c *catalog) dropPending(group string) {
	c.Pending = slices.DeleteFunc(slices.Clone(c.Pending), func(p pendingRecord) bool { return p.Group == group })
}

// each runs fn for all cuts, some at a time, and returns the first error.
func each(cuts []*cut, fn func(*cut) error) error {
	const atOnce = 16
	var wg sync.WaitGroup
	errs := make([]error, len(cuts))
	slots := make(chan struct{}, atOnce)
	for i, k := range cuts {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = fn(k)
			<-slots
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
