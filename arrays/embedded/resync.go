package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Resync puts a split mirror back under its volume. Regions that changed on
// either side since the split are copied from the volume, in the background:
// what was written to the split is lost. It is refused while the snapshot is
// in use. Once it has returned, the snapshot is gone; called again it has
// nothing to do.
func (a *Array) Resync(ctx context.Context, id driver.SnapshotID) error {
	s, err := a.findSnapshot(id)
	if err != nil {
		if kindOf(err) == driver.NotFound && a.isBack(id) {
			return nil
		}
		return err
	}
	if s.clone {
		return driver.Errorf(driver.NotSupported, "snapshot %s is a reflink, not a mirror that could go back: delete it", id)
	}
	a.mu.Lock()
	v := a.volumes[s.volume]
	a.mu.Unlock()
	if v == nil {
		return driver.Errorf(driver.InvalidRequest, "snapshot %s: its volume was deleted: there is nothing to go back to", id)
	}
	if err := v.lockAdmin(ctx); err != nil {
		return err
	}
	return a.finish(ctx, fmt.Sprintf("resync of snapshot %s", id), v.unlockAdmin, func() error {
		if a.isBack(id) {
			return nil
		}
		return v.takeBack(s)
	})
}

// isBack reports whether the snapshot is a mirror of its volume again.
func (a *Array) isBack(id driver.SnapshotID) bool {
	for _, v := range a.store.read().Volumes {
		for _, m := range v.Mirrors {
			if !m.From.IsZero() && driver.SnapshotID(m.From.String()) == id {
				return true
			}
		}
	}
	return false
}

// takeBack is Resync with v.admin held. In the catalogue the mirror is the
// volume's before it is written to; from then on a crash is followed by copying
// the union of the maps, whether they were united already or not.
func (v *volume) takeBack(s *snapshot) error {
	if v.mirrorsInSync() == 0 {
		return driver.Errorf(driver.NotSynchronized, "%s has no mirror in sync to copy from", v.label)
	}
	if err := s.retire(); err != nil {
		return err
	}
	p, todo, err := v.reclaim(s)
	if err != nil {
		s.revive()
		return err
	}
	v.a.mu.Lock()
	delete(v.a.snaps, s.id)
	v.a.mu.Unlock()
	v.a.labels.writeVolume(v.id) // before it is written to, it no longer says that it is a split

	return v.takeIn(p, todo, func() {
		v.a.scrap(v.a.mapPath(splitMapName(p.id)))
		v.a.scrap(v.a.mapPath(splitLogName(p.id)))
		v.pruneEpochs()
	})
}

// takeIn fills a mirror that the catalogue says to be filling with what the
// maps named say. done gives up maps, once the fill has its own.
func (v *volume) takeIn(p *plex, todo []string, done func()) error {
	v.state.Lock()
	next := v.cur.parts()
	next.filling = with(next.filling, p)
	old := v.flip(next)
	v.state.Unlock()
	<-old.idle // until here, writes may have gone past the mirror

	own, err := v.unite(todoName(p.id), todo)
	if err != nil {
		v.state.Lock()
		defer v.state.Unlock()
		return errors.Join(err, v.drop(p, err))
	}
	f := v.newFill(p, own, false)
	err = own.flush()
	if err == nil {
		err = v.a.fs.SyncDir(v.a.maps)
	}
	if err == nil {
		err = v.a.change(func(c *catalog) error {
			if m := c.mirrorOf(v.id, p.id); m != nil && m.State == filling {
				m.Todo = []string{todoName(p.id)}
			}
			return nil
		})
	}
	if err != nil { // the copying can go on; only a restart would do more of it
		v.a.o.Logger.Warn("a resync's map could not be recorded", "volume", v.name, "error", err)
	} else {
		done()
	}
	v.startFill(f)
	return nil
}

// reclaim makes the snapshot a mirror of the volume in the catalogue, and opens
// its file. todo are the maps of what it lacks.
func (v *volume) reclaim(s *snapshot) (p *plex, todo []string, err error) {
	size := v.size.Load()
	if p, err = v.a.openPlex(&s.mirror, s.size, os.O_RDWR); err != nil {
		return nil, nil, fmt.Errorf("snapshot %s: %w", s.id, err)
	}
	defer func() {
		if err != nil {
			p.f.Close()
		}
	}()
	if s.size < size { // the volume has grown
		if err = p.f.Truncate(size); err == nil {
			err = p.f.Sync()
		}
		if err != nil {
			return nil, nil, err
		}
	}
	rec := v.a.store.read().snapshot(s.id)
	for _, n := range v.a.store.read().volume(v.id).Epochs {
		if n >= rec.Epoch {
			todo = append(todo, v.epochName(n))
		}
	}
	if _, err := v.a.fs.Stat(v.a.mapPath(splitMapName(p.id))); err == nil || s.skewed.Load() {
		dirty, log, err := s.openMaps() // adds marks that a crash left
		if err != nil {
			return nil, nil, err
		}
		if err := errors.Join(dirty.close(), log.close()); err != nil {
			return nil, nil, err
		}
		todo = append(todo, splitMapName(p.id))
	}
	err = v.a.change(func(c *catalog) error {
		c.Snapshots = slices.DeleteFunc(c.Snapshots, func(r snapshotRecord) bool { return r.ID == s.id })
		r := c.volume(v.id)
		r.Mirrors = append(r.Mirrors, mirrorRecord{
			ID: s.mirror.ID, Pool: s.mirror.Pool, File: s.mirror.File,
			State: filling, Todo: todo, From: s.id,
		})
		return nil
	})
	return p, todo, err
}

// pruneEpochs forgets what no snapshot needs any more: maps of epochs before
// the oldest snapshot, and boundaries at which no snapshot was made. v.admin is
// held. What can't be forgotten now is forgotten later.
func (v *volume) pruneEpochs() {
	c := v.a.store.read()
	r := c.volume(v.id)
	starts := map[uint64]bool{}
	for _, s := range c.Snapshots {
		if s.Volume == v.id {
			starts[s.Epoch] = true
		}
	}
	// needed: a later epoch must not be dropped while an older snapshot lives.
	var keep, drop []uint64
	moved := map[uint64]uint64{} // a snapshot's epoch → the one it now begins with
	for i, n := range r.Epochs {
		switch {
		case len(keep) == 0 && !starts[n]:
			drop = append(drop, n)
		case i+1 < len(r.Epochs) && !starts[r.Epochs[i+1]]:
			// The next one begins with no snapshot: it takes this one in.
			next := r.Epochs[i+1]
			v.epochs[next].or(v.epochs[n].bitmap)
			if err := v.epochs[next].flush(); err != nil {
				v.a.o.Logger.Warn("a map could not be merged", "volume", v.name, "error", err)
				return
			}
			starts[next] = true
			moved[n] = next
			drop = append(drop, n)
		default:
			keep = append(keep, n)
		}
	}
	if len(drop) == 0 {
		return
	}
	err := v.a.store.update(func(c *catalog) error {
		c.volume(v.id).Epochs = keep
		for i := range c.Snapshots {
			s := &c.Snapshots[i]
			for s.Volume == v.id {
				to, ok := moved[s.Epoch]
				if !ok {
					break
				}
				s.Epoch = to
			}
		}
		return nil
	})
	if err != nil {
		v.a.o.Logger.Warn("old maps could not be forgotten", "volume", v.name, "error", err)
		return
	}
	if len(keep) == 0 {
		v.state.Lock()
		next := v.cur.parts()
		next.dirty = nil
		old := v.flip(next)
		v.state.Unlock()
		<-old.idle
	}
	for _, n := range drop {
		v.epochs[n].close()
		v.setEpoch(n, nil)
		v.a.scrap(v.a.mapPath(v.epochName(n)))
	}
}

// Delete ends a snapshot and removes its file. It is refused while the
// snapshot is in use. Deleting what is not there is success. The volume wants
// its mirror back: the next Prepare fills a new one.
func (a *Array) Delete(ctx context.Context, id driver.SnapshotID) error {
	s, err := a.findSnapshot(id)
	if err != nil {
		if kindOf(err) == driver.NotFound {
			return nil
		}
		return err
	}
	a.mu.Lock()
	v := a.volumes[s.volume]
	a.mu.Unlock()
	unlock := func() {}
	if v != nil {
		if err := v.lockAdmin(ctx); err == nil {
			unlock = v.unlockAdmin
		} else if kindOf(err) != driver.NotFound {
			return err
		} else {
			v = nil // deleted meanwhile: its snapshots live on without it
		}
	}
	return a.finish(ctx, fmt.Sprintf("deleting snapshot %s", id), unlock, func() error {
		return a.deleteSnapshot(s, v)
	})
}

func (a *Array) deleteSnapshot(s *snapshot, v *volume) error {
	s.mu.Lock()
	gone := s.gone
	s.mu.Unlock()
	if gone {
		return nil
	}
	if err := s.retire(); err != nil {
		return err
	}
	files := []fileRef{{Pool: s.mirror.Pool, Path: s.mirror.File}, {Pool: s.mirror.Pool, Path: labelPath(s.mirror.File)}}
	err := a.change(func(c *catalog) error {
		c.Snapshots = slices.DeleteFunc(c.Snapshots, func(r snapshotRecord) bool { return r.ID == s.id })
		c.Trash = append(c.Trash, files...)
		return nil
	})
	if err != nil {
		s.revive()
		return err
	}
	a.mu.Lock()
	delete(a.snaps, s.id)
	a.mu.Unlock()
	a.scrap(a.mapPath(splitMapName(s.mirror.ID)))
	a.scrap(a.mapPath(splitLogName(s.mirror.ID)))
	if v != nil {
		v.pruneEpochs()
	}
	a.discard(files)
	return nil
}
