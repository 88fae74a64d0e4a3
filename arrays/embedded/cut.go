package embedded

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// cut is one volume's part of a split.
type cut struct {
	v     *volume
	p     *plex
	epoch uint64
	dirty *mapFile // of the epoch that begins
	snap  lun.Identity
	old   *epoch
	clone *clone // nil where p comes off
}

// cuts are the parts of one split, in the order in which its volumes were asked
// for. Whoever has them holds the administration of all their volumes.
type cuts struct {
	tag   driver.Tag
	group string
	parts []*cut
}

// arm chooses the mirrors, makes ready all that takes time, and writes the
// pending record. After an error nothing is left of it.
func (a *Array) arm(tag driver.Tag, vols []*volume) (*cuts, error) {
	c := a.store.read()
	s := &cuts{tag: tag, group: lun.NewIdentity().String()}
	pending := pendingRecord{Tag: tag, Group: s.group}
	for _, v := range vols {
		p, byClone, err := v.source(c, tag)
		if err != nil {
			return nil, err
		}
		k := &cut{v: v, p: p, epoch: c.volume(v.id).NextEpoch, snap: lun.NewIdentity()}
		if byClone {
			k.clone = &clone{mirrorRecord: newMirror(v.name, p.pool, inSync)}
		}
		s.parts = append(s.parts, k)
		pending.Members = append(pending.Members, pendingMember{Volume: v.id, Mirror: p.id, Snapshot: k.snap, Epoch: k.epoch, Clone: byClone})
	}
	err := each(s.parts, (*cut).makeReady)
	if err == nil {
		err = a.fs.SyncDir(a.maps)
	}
	if err == nil {
		err = a.store.update(func(c *catalog) error {
			c.Pending = append(c.Pending, pending)
			c.Trash = append(c.Trash, s.cloneFiles()...)
			for _, k := range s.parts {
				if r := c.volume(k.v.id); r.NextEpoch <= k.epoch {
					r.NextEpoch = k.epoch + 1
				}
			}
			return nil
		})
	}
	if err != nil {
		s.scrap()
		return nil, err
	}
	if err := s.makeClones(a); err != nil {
		return nil, errors.Join(err, a.disarm(s))
	}
	return s, nil
}

// makeReady syncs the mirror that comes off or is cloned, so that little is
// left to sync at the instant and after it, and makes the bitmap of the epoch
// to come.
func (k *cut) makeReady() (err error) {
	if err = k.flush(); err != nil {
		return err
	}
	k.dirty, err = createMap(k.v.a.fs, k.v.a.mapPath(k.v.epochName(k.epoch)), k.v.size.Load(), regionSize)
	return err
}

func (k *cut) flush() error {
	err := k.p.f.Sync()
	if err == nil {
		return nil
	}
	k.v.state.Lock()
	if inEpoch(k.v.cur, k.p) {
		err = errors.Join(err, k.v.drop(k.p, err))
	}
	k.v.state.Unlock()
	return driver.Errorf(driver.NotSynchronized, "%s: syncing mirror %s before its split: %w", k.v.label, k.p.id, err)
}

// scrap removes what makeReady made.
func (s *cuts) scrap() {
	for _, k := range s.parts {
		if k.dirty != nil {
			k.dirty.close()
			k.v.a.scrap(k.dirty.path)
		}
	}
}

// disarm takes back what arm did. An error says that the pending record is
// still there: the next start repeats it.
func (a *Array) disarm(s *cuts) error {
	err := a.store.update(func(c *catalog) error {
		c.dropPending(s.group)
		return nil
	})
	s.scrap()
	s.dropClones(a)
	return err
}

// commit splits what is armed. After an error nothing is split, and nothing is
// armed any more, unless the catalogue could not be written.
func (a *Array) commit(s *cuts) ([]driver.Snapshot, error) {
	var at time.Time
	var held time.Duration
	a.events.hold()
	err := s.atRest(a.o.HoldLimit, func() (err error) {
		at, held, err = s.instant(a.store.read())
		return err
	})
	a.events.unhold()
	if err == nil {
		err = each(s.parts, (*cut).settle)
	}
	if err == nil {
		err = a.certain(s, at, held)
	}
	if err != nil {
		a.undo(s)
		return nil, err
	}
	snaps := make([]driver.Snapshot, len(s.parts))
	c := a.store.read()
	for i, k := range s.parts {
		k.v.left()
		k.v.setEpoch(k.epoch, k.dirty)
		r := c.snapshot(k.snap)
		snaps[i] = a.describe(r)
		n := newSnapshot(a, r, k.plex())
		a.mu.Lock()
		a.snaps[k.snap] = n
		a.mu.Unlock()
		if left := k.v.mirrorsInSync(); left < 2 && k.clone == nil {
			a.event(Unmirrored, k.v, lun.Identity{}, "%s has one mirror until snapshot %s of tag %q is resynced", k.v.label, k.snap, s.tag)
		}
		k.v.notify()
	}
	return snaps, nil
}

// instant is the split itself. held is for how long any write waited at most.
// Mirrors may have been lost since they were chosen: it is refused where the
// split would take off what is left, or leave less than was consented to.
//
// The locks of several volumes are taken together by those alone who hold their
// administration, so that any order does.
func (s *cuts) instant(c *catalog) (at time.Time, held time.Duration, err error) {
	next := make([]epoch0, len(s.parts))
	for i, k := range s.parts {
		k.v.state.Lock()
		defer k.v.state.Unlock()
		next[i] = k.v.cur.parts()
		k.leave(next[i].dirty)
		next[i].dirty = k.dirty
		switch n := len(next[i].insync); {
		case !slices.Contains(next[i].insync, k.p) || n < 2 && k.clone == nil:
			err = driver.Errorf(driver.NotSynchronized, "%s lost a mirror just before the split", k.v.label)
		case k.clone != nil:
			continue
		case n == 2 && !c.consents(s.tag, k.v.id):
			err = k.v.needsConsent()
		}
		next[i].insync = without(next[i].insync, k.p)
	}
	if err != nil {
		return at, 0, err
	}
	ends := make([]*epoch, len(s.parts))
	for i := range next {
		ends[i] = newEpoch(next[i])
	}
	begun := time.Now()
	for _, k := range s.parts {
		k.v.gate.shut()
	}
	at = time.Now()
	for i, k := range s.parts {
		k.old = k.v.succeed(ends[i])
	}
	for _, k := range s.parts {
		k.v.gate.reopen(k.v.cur)
	}
	held = time.Since(begun)
	for _, k := range s.parts {
		k.old.leave()
	}
	return at, held, nil
}

// settle waits until everything that the snapshot holds is stable.
func (k *cut) settle() error {
	<-k.old.idle
	err := k.plex().failed()
	if err == nil {
		err = k.plex().f.Sync()
	}
	if err != nil {
		return fmt.Errorf("mirror %s of %s, being split off: %w", k.p.id, k.v.label, noSpace(err))
	}
	if k.old.dirty != nil {
		return k.old.dirty.flush()
	}
	return nil
}

// certain replaces the pending record by the snapshots, in one step.
func (a *Array) certain(s *cuts, at time.Time, held time.Duration) error {
	now := a.o.Now()
	at = now.Add(-time.Since(at)) // by the array's clock
	return a.change(func(c *catalog) error {
		c.dropPending(s.group)
		for _, k := range s.parts {
			r := c.volume(k.v.id)
			n := snapshotRecord{
				ID: k.snap, Tag: s.tag, Group: s.group, Volume: r.ID, VolumeName: r.Name, Size: r.Size,
				Epoch: k.epoch, At: at.UTC(), Held: held,
			}
			if k.clone != nil {
				n.Mirror, n.Clone, n.Held = k.clone.mirrorRecord, true, k.clone.held
			} else {
				m := r.mirror(k.p.id)
				n.Mirror = mirrorRecord{ID: m.ID, Pool: m.Pool, File: m.File, State: m.State, FileID: m.FileID}
				r.Mirrors = slices.DeleteFunc(r.Mirrors, func(x mirrorRecord) bool { return x.ID == k.p.id })
			}
			c.Snapshots = append(c.Snapshots, n)
			r.Epochs = append(r.Epochs, k.epoch)
			r.noteUnmirrored(now)
		}
		c.Trash = withoutFiles(c.Trash, s.cloneFiles())
		c.useConsents(s)
		return nil
	})
}

// useConsents forgets what was consented to for the split that has come to be.
func (c *catalog) useConsents(s *cuts) {
	c.Consents = slices.Clone(c.Consents)
	for i := range c.Consents {
		if r := &c.Consents[i]; r.Tag == s.tag {
			r.Volumes = slices.DeleteFunc(slices.Clone(r.Volumes), func(id lun.Identity) bool {
				return slices.ContainsFunc(s.parts, func(k *cut) bool { return k.v.id == id })
			})
		}
	}
	c.Consents = slices.DeleteFunc(c.Consents, func(r consentRecord) bool { return len(r.Volumes) == 0 })
}

func (c *catalog) dropPending(group string) {
	c.Pending = slices.DeleteFunc(slices.Clone(c.Pending), func(p pendingRecord) bool { return p.Group == group })
}

// each runs fn for all parts, some at a time, and returns the first error.
func each(parts []*cut, fn func(*cut) error) error {
	const atOnce = 16
	var wg sync.WaitGroup
	errs := make([]error, len(parts))
	slots := make(chan struct{}, atOnce)
	for i, k := range parts {
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
