package embedded

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Break makes a snapshot an ordinary volume of the name given, with the
// snapshot's content and identity, for good: nothing is copied, and its file
// stays where it is. The volume has one mirror, and the snapshot policy of the
// one that it came from. Unless the snapshot is a reflink, that one has a mirror
// less, which its next Prepare replaces; it need not be there any more.
//
// It is refused with kind Busy while the snapshot is in use. Called again with
// the same arguments it returns the same volume. After a crash there is the
// snapshot or the volume.
func (a *Array) Break(ctx context.Context, id driver.SnapshotID, name string) (driver.Volume, error) {
	if err := checkName(name); err != nil {
		return driver.Volume{}, err
	}
	s, err := a.findSnapshot(id)
	if err != nil {
		return a.broken(id, name, err)
	}
	a.mu.Lock()
	v := a.volumes[s.volume]
	a.mu.Unlock()
	unlock := func() {}
	if v != nil {
		if err := v.lockAdmin(ctx); err == nil {
			unlock = v.unlockAdmin
		} else if kindOf(err) != driver.NotFound {
			return driver.Volume{}, err
		} else {
			v = nil // deleted meanwhile: its snapshots live on without it
		}
	}
	var out driver.Volume
	what := fmt.Sprintf("breaking snapshot %s off as volume %q", id, name)
	err = a.finish(ctx, what, unlock, func() (err error) {
		if a.store.read().snapshot(s.id) == nil { // somebody was faster
			out, err = a.broken(id, name, driver.Errorf(driver.NotFound, "no snapshot %.80q", id))
			return err
		}
		if err := a.breakOff(s, name); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if v != nil {
			v.pruneEpochs()
			v.notify()
		}
		out, err = a.broken(id, name, nil)
		return err
	})
	if err != nil { // out may still be written to
		return driver.Volume{}, err
	}
	return out, nil
}

// broken finds the volume that a snapshot was broken off as, or returns err.
func (a *Array) broken(id driver.SnapshotID, name string, err error) (driver.Volume, error) {
	if err != nil && kindOf(err) != driver.NotFound {
		return driver.Volume{}, err
	}
	info, verr := a.VolumeInfo(driver.VolumeID(id))
	switch {
	case verr != nil && err != nil:
		return driver.Volume{}, err
	case verr != nil:
		return driver.Volume{}, verr
	case info.Name != name:
		return driver.Volume{}, driver.Errorf(driver.InvalidRequest, "snapshot %s was broken off as volume %q already", id, info.Name)
	}
	return info.Volume, nil
}

// breakOff is Break for a snapshot whose volume's administration is held.
func (a *Array) breakOff(s *snapshot, name string) (err error) {
	if err := s.retire(); err != nil {
		return err
	}
	rec := a.store.read().snapshot(s.id)
	var policy SnapshotPolicy
	if from := a.store.read().volume(rec.Volume); from != nil {
		policy = from.Policy
	}
	m := mirrorRecord{ID: rec.Mirror.ID, Pool: rec.Mirror.Pool, File: rec.Mirror.File, State: inSync}
	r := volumeRecord{ID: s.id, Name: name, Size: rec.Size, Created: a.o.Now().UTC(), Policy: policy, Want: []string{m.Pool}, Mirrors: []mirrorRecord{m}}
	r.noteUnmirrored(r.Created)
	v := newVolume(a, &r)
	var p *plex
	defer func() {
		if err == nil {
			return
		}
		if p != nil {
			p.f.Close()
		}
		if v.log != nil {
			v.log.file.close()
		}
		if kindOf(err) == driver.OutcomeUnknown {
			return // it is the one or the other at the next start
		}
		if v.log != nil {
			a.scrap(v.log.file.path)
		}
		s.revive()
	}()
	if p, err = a.openPlex(&m, r.Size, os.O_RDWR); err != nil {
		return err
	}
	log, err := createLog(a.fs, a.mapPath(v.logName()), r.Size, a.logUnit(r.Size))
	if err != nil {
		return err
	}
	v.log = newIntentLog(log, a.o.LogLimit, func() { v.cleanSoon(func(fn func()) { a.start(fn) }) })
	if err := a.fs.SyncDir(a.maps); err != nil {
		return err
	}
	err = a.change(func(c *catalog) error {
		if slices.ContainsFunc(c.Volumes, func(x volumeRecord) bool { return x.Name == name }) {
			return driver.Errorf(driver.InvalidRequest, "there is a volume of that name")
		}
		c.Snapshots = slices.DeleteFunc(c.Snapshots, func(x snapshotRecord) bool { return x.ID == s.id })
		c.Volumes = append(c.Volumes, r)
		return nil
	})
	if err != nil {
		return err
	}
	v.flip(epoch0{insync: []*plex{p}})
	a.mu.Lock()
	delete(a.snaps, s.id)
	a.volumes[r.ID] = v
	a.mu.Unlock()
	a.scrap(a.mapPath(splitMapName(m.ID)))
	a.scrap(a.mapPath(splitLogName(m.ID)))
	a.noteOneMirror(v, policy)
	return nil
}

func checkName(name string) error {
	if _, err := lun.ParseIdentity(name); err == nil || !volumeName.MatchString(name) {
		return driver.Errorf(driver.InvalidRequest, "volume name %.80q: want 1 to 63 of [a-z0-9._-], beginning with a letter or digit, and not a UUID", name)
	}
	return nil
}

var _ driver.Breaker = (*Array)(nil)
