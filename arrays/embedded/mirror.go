package embedded

import (
	"context"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// maxMirrors is how many mirrors a volume may be to have, those split off
// included. No format bounds them; but each one's label tells of all of them, so
// that the work of keeping labels grows with the square.
const maxMirrors = 64

// AddMirror gives a volume one more mirror, in the pool, and begins to fill it.
// It is refused with kind InvalidRequest where the volume is to have 64
// already: those count that are split off, or gone and not replaced yet.
func (a *Array) AddMirror(ctx context.Context, ref driver.VolumeID, pool string) (MirrorInfo, error) {
	v, err := a.find(ref)
	if err == nil {
		err = a.checkRoom(pool, v.taken())
	}
	if err == nil {
		err = v.lockAdmin(ctx)
	}
	if err != nil {
		return MirrorInfo{}, err
	}
	var id lun.Identity
	err = a.finish(ctx, fmt.Sprintf("adding a mirror to %s", v.label), v.unlockAdmin, func() (err error) {
		id, err = v.addMirror(pool, true)
		return err
	})
	if err != nil {
		return MirrorInfo{}, err
	}
	info, err := a.VolumeInfo(ref)
	for _, m := range info.Replicas {
		if m.ID == id {
			return m, err
		}
	}
	return MirrorInfo{ID: id, Pool: pool}, err
}

// taken is what a copy of the volume takes, as far as that can be told.
func (v *volume) taken() (n int64) {
	r := v.a.store.read().volume(v.id)
	if r == nil {
		return 0
	}
	for i := range r.Mirrors {
		if m := &r.Mirrors[i]; m.State == inSync {
			n = max(n, v.a.allocated(m))
		}
	}
	return n
}

// addMirror is AddMirror with v.admin held. want: it is one more than the
// volume was to have, not one that it lacks.
func (v *volume) addMirror(pool string, want bool) (id lun.Identity, err error) {
	a := v.a
	if v.mirrorsInSync() == 0 {
		return id, driver.Errorf(driver.NotSynchronized, "%s has no mirror in sync to copy from", v.label)
	}
	m := newMirror(v.name, pool, filling)
	m.All = true
	files := m.files()
	if err := a.store.update(func(c *catalog) error {
		if r := c.volume(v.id); want && len(r.Want) >= maxMirrors {
			return driver.Errorf(driver.InvalidRequest, "%s is to have %d mirrors already, those that are split off among them: resync a split, or repair the volume, and remove a mirror first", v.label, maxMirrors)
		}
		c.Trash = append(c.Trash, files...)
		return nil
	}); err != nil {
		return id, err
	}
	p, err := a.createPlex(&m, v.size.Load())
	var todo *mapFile
	if err == nil {
		if todo, err = createMap(a.fs, a.mapPath(todoName(m.ID)), v.size.Load(), regionSize); err == nil {
			err = a.fs.SyncDir(a.maps)
		}
	}
	if err == nil {
		err = a.change(func(c *catalog) error {
			r := c.volume(v.id)
			r.Mirrors = append(r.Mirrors, m)
			if want {
				r.Want = append(r.Want, pool)
			}
			c.Trash = slices.DeleteFunc(c.Trash, func(f fileRef) bool { return slices.Contains(files, f) })
			return nil
		})
	}
	if err != nil {
		if p != nil {
			p.f.Close()
		}
		if todo != nil {
			todo.close()
			a.scrap(todo.path)
		}
		a.discard(files)
		return id, fmt.Errorf("adding a mirror in pool %q to %s: %w", pool, v.label, err)
	}
	v.state.Lock()
	next := v.cur.parts()
	next.filling = with(next.filling, p)
	old := v.flip(next)
	v.state.Unlock()
	<-old.idle
	v.startFill(v.newFill(p, todo, true))
	return m.ID, nil
}

// RemoveMirror takes a mirror away from a volume for good and removes its file.
// The last one in sync stays; so does, with kind NotSynchronized, the one that
// the others are still being made equal to after a crash: what was read since
// may be on no other. Removing what is not there is success.
func (a *Array) RemoveMirror(ctx context.Context, ref driver.VolumeID, mirror lun.Identity) error {
	v, err := a.find(ref)
	if err == nil {
		err = v.lockAdmin(ctx)
	}
	if err != nil {
		return err
	}
	return a.finish(ctx, fmt.Sprintf("removing mirror %s of %s", mirror, v.label), v.unlockAdmin, func() error {
		return v.removeMirror(mirror)
	})
}

func (v *volume) removeMirror(mirror lun.Identity) error {
	v.mu.Lock()
	f := v.fills[mirror]
	v.mu.Unlock()
	if f != nil {
		f.cancel()
		<-f.done
	}
	v.state.Lock()
	var files []fileRef
	err := v.spare(mirror)
	if err != nil {
		v.state.Unlock()
		return err
	}
	err = v.a.change(func(c *catalog) error {
		r := c.volume(v.id)
		m := r.mirror(mirror)
		if m == nil {
			return nil
		}
		files = v.a.removable(m)
		if i := slices.Index(r.Want, m.Pool); i >= 0 {
			r.Want = slices.Delete(r.Want, i, i+1)
		}
		r.Mirrors = slices.DeleteFunc(r.Mirrors, func(x mirrorRecord) bool { return x.ID == mirror })
		r.noteUnmirrored(v.a.o.Now())
		c.Trash = append(c.Trash, files...)
		return nil
	})
	if err != nil || files == nil {
		v.state.Unlock()
		return err
	}
	var gone *plex
	next := v.cur.parts()
	for _, p := range slices.Concat(next.insync, next.filling) {
		if p.id == mirror {
			gone = p
		}
	}
	next.insync, next.filling, next.joining = without(next.insync, gone), without(next.filling, gone), without(next.joining, gone)
	old := v.flip(next)
	v.state.Unlock()
	<-old.idle
	if gone != nil {
		gone.f.Close()
	}
	v.dropMissed(mirror)
	v.a.scrap(v.a.mapPath(todoName(mirror)))
	v.a.discard(files)
	v.notify()
	return nil
}

// spare refuses to do without a mirror that holds what no other may. v.state is
// held.
func (v *volume) spare(mirror lun.Identity) error {
	e := v.cur
	switch i := slices.IndexFunc(e.insync, func(p *plex) bool { return p.id == mirror }); {
	case i >= 0 && len(e.insync) == 1:
		return driver.Errorf(driver.InvalidRequest, "mirror %s is the last of %s in sync", mirror, v.label)
	case i == 0 && e.fixed:
		return driver.Errorf(driver.NotSynchronized, "mirror %s is the one to which the others of %s are still being made equal after a crash", mirror, v.label)
	}
	return nil
}
