package embedded

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// CreateVolume makes a volume whose content is all zeroes. Called again with
// the same arguments it returns the volume that is there.
func (a *Array) CreateVolume(ctx context.Context, o CreateVolume) (VolumeInfo, error) {
	if err := a.checkCreate(&o); err != nil {
		return VolumeInfo{}, err
	}
	if v, err := a.find(driver.VolumeID(o.Name)); err == nil {
		info, err := a.VolumeInfo(driver.VolumeID(v.id.String()))
		if err == nil && (info.Size != o.Size || info.Wanted != len(o.Pools)) {
			err = driver.Errorf(driver.InvalidRequest, "volume %q is there already, with %d bytes and %d mirrors", o.Name, info.Size, info.Wanted)
		}
		return info, err
	} else if kindOf(err) != driver.NotFound {
		return VolumeInfo{}, err
	}
	r := volumeRecord{ID: lun.NewIdentity(), Name: o.Name, Size: o.Size, Created: a.o.Now().UTC(), Want: slices.Clone(o.Pools)}
	for _, pool := range o.Pools {
		if err := a.checkRoom(pool); err != nil {
			return VolumeInfo{}, fmt.Errorf("volume %q: %w", o.Name, err)
		}
		r.Mirrors = append(r.Mirrors, newMirror(o.Name, pool, inSync))
	}
	r.noteUnmirrored(r.Created)
	var info VolumeInfo
	err := a.finish(ctx, fmt.Sprintf("creating volume %q", o.Name), func() {}, func() (err error) {
		info, err = a.create(&r)
		return err
	})
	return info, err
}

func newMirror(volume, pool string, st mirrorState) mirrorRecord {
	id := lun.NewIdentity()
	return mirrorRecord{ID: id, Pool: pool, File: filepath.Join(volume, id.String()+".raw"), State: st}
}

func (a *Array) checkCreate(o *CreateVolume) error {
	if _, err := lun.ParseIdentity(o.Name); err == nil || !volumeName.MatchString(o.Name) {
		return driver.Errorf(driver.InvalidRequest, "volume name %.80q: want 1 to 63 of [a-z0-9._-], beginning with a letter or digit, and not a UUID", o.Name)
	}
	if err := checkSize(o.Size); err != nil {
		return fmt.Errorf("volume %q: %w", o.Name, err)
	}
	if len(o.Pools) == 0 || len(o.Pools) > 8 {
		return driver.Errorf(driver.InvalidRequest, "volume %q: want 1 to 8 pools, one for each mirror", o.Name)
	}
	for _, p := range o.Pools {
		if err := a.checkPool(p); err != nil {
			return fmt.Errorf("volume %q: %w", o.Name, err)
		}
	}
	return nil
}

func (a *Array) checkPool(name string) error {
	p := a.pools[name]
	switch {
	case p == nil:
		return driver.Errorf(driver.NotFound, "no pool %.80q: there are %s", name, strings.Join(slices.Sorted(maps.Keys(a.pools)), ", "))
	case p.offline != nil:
		return driver.Errorf(driver.Unreachable, "%w", p.offline)
	}
	return nil
}

// checkRoom is checkPool for a pool that is to hold a new mirror. It takes
// little, being sparse; but one in a full pool is lost at the first write.
func (a *Array) checkRoom(name string) error {
	if err := a.checkPool(name); err != nil {
		return err
	}
	dir := a.pools[name].dir
	_, free, err := a.fs.Space(dir)
	if err != nil {
		return fmt.Errorf("pool %q: %w", name, err)
	}
	if free < poolReserve {
		return driver.Errorf(driver.NoSpace, "pool %q is full: %d bytes are free in %s", name, free, dir)
	}
	return nil
}

// poolReserve is how much room a pool must have for a mirror to be made in it,
// in bytes.
const poolReserve = 64 << 10

func (r *volumeRecord) files() (out []fileRef) {
	for _, m := range r.Mirrors {
		out = append(out, m.files()...)
	}
	return out
}

func (m *mirrorRecord) files() []fileRef {
	return []fileRef{{Pool: m.Pool, Path: m.File}, {Pool: m.Pool, Path: labelPath(m.File)}}
}

// create makes the files, which are in the trash until all of them are there.
func (a *Array) create(r *volumeRecord) (info VolumeInfo, err error) {
	files := r.files()
	err = a.store.update(func(c *catalog) error {
		if slices.ContainsFunc(c.Volumes, func(x volumeRecord) bool { return x.Name == r.Name }) {
			return driver.Errorf(driver.Busy, "volume %q is being created by somebody else", r.Name)
		}
		c.Trash = append(c.Trash, files...)
		return nil
	})
	if err != nil {
		return info, err
	}
	v := newVolume(a, r)
	e := epoch0{}
	defer func() {
		if err == nil {
			return
		}
		err = fmt.Errorf("creating volume %q: %w", r.Name, err)
		for _, p := range e.insync {
			p.f.Close()
		}
		if v.log != nil {
			v.log.file.close()
			a.scrap(v.log.file.path)
		}
		a.discard(files)
	}()
	for i := range r.Mirrors {
		p, err := a.createPlex(&r.Mirrors[i], r.Size)
		if err != nil {
			return info, err
		}
		e.insync = append(e.insync, p)
	}
	log, err := createMap(a.fs, a.mapPath(v.logName()), r.Size, logUnit(r.Size))
	if err != nil {
		return info, err
	}
	v.log = newIntentLog(log, a.o.LogLimit, func() { v.cleanSoon(func(fn func()) { a.start(fn) }) })
	if err := a.fs.SyncDir(a.maps); err != nil {
		return info, err
	}
	v.flip(e)
	err = a.change(func(c *catalog) error {
		if slices.ContainsFunc(c.Volumes, func(x volumeRecord) bool { return x.Name == r.Name }) {
			return driver.Errorf(driver.Busy, "the name was taken meanwhile")
		}
		c.Volumes = append(c.Volumes, *r)
		c.Trash = slices.DeleteFunc(c.Trash, func(f fileRef) bool { return slices.Contains(files, f) })
		return nil
	})
	if err != nil {
		return info, err
	}
	a.mu.Lock()
	a.volumes[r.ID] = v
	a.mu.Unlock()
	if len(r.Want) < 2 {
		a.event(Unmirrored, v, lun.Identity{}, "%s has one mirror: it is lost with its pool, and can't be split", v.label)
	}
	return a.VolumeInfo(driver.VolumeID(r.ID.String()))
}

// DeleteVolume removes a volume and its mirrors. It is refused while the volume
// is in use. Its snapshots stay. Deleting what is not there is success.
func (a *Array) DeleteVolume(ctx context.Context, ref driver.VolumeID) error {
	v, err := a.find(ref)
	if err == nil {
		err = v.lockAdmin(ctx)
	}
	if err != nil {
		if kindOf(err) == driver.NotFound {
			return nil
		}
		return err
	}
	return a.finish(ctx, fmt.Sprintf("deleting %s", v.label), v.unlockAdmin, func() error { return a.deleteVolume(v) })
}

func (a *Array) deleteVolume(v *volume) error {
	v.mu.Lock()
	if len(v.users) > 0 {
		defer v.mu.Unlock()
		return driver.Errorf(driver.Busy, "%s is in use by %s", v.label, oneOf(v.users))
	}
	v.gone = true
	v.mu.Unlock()
	var files []fileRef
	err := a.change(func(c *catalog) error {
		files = c.volume(v.id).files()
		c.Volumes = slices.DeleteFunc(c.Volumes, func(r volumeRecord) bool { return r.ID == v.id })
		c.Trash = append(c.Trash, files...)
		return nil
	})
	if err != nil {
		v.mu.Lock()
		v.gone = false
		v.mu.Unlock()
		return err
	}
	a.mu.Lock()
	delete(a.volumes, v.id)
	a.mu.Unlock()
	v.stopFills()
	if err := v.shut(); err != nil {
		a.o.Logger.Warn("closing a deleted volume", "volume", v.name, "error", err)
	}
	a.scrap(a.mapPath(v.logName()))
	for n := range v.epochs {
		a.scrap(a.mapPath(v.epochName(n)))
	}
	a.discard(files)
	return nil
}

// stopFills ends all copying to the volume's mirrors.
func (v *volume) stopFills() {
	v.mu.Lock()
	var fills []*fill
	for _, f := range v.fills {
		fills = append(fills, f)
	}
	v.mu.Unlock()
	for _, f := range fills {
		f.cancel()
		<-f.done
		v.a.scrap(v.a.mapPath(todoName(f.p.id)))
	}
}

// GrowVolume makes a volume larger, while it is in use; what is added reads as
// zeroes. Volumes never shrink.
func (a *Array) GrowVolume(ctx context.Context, ref driver.VolumeID, size int64) (VolumeInfo, error) {
	v, err := a.find(ref)
	if err == nil {
		err = checkSize(size)
	}
	if err == nil {
		err = v.lockAdmin(ctx)
	}
	if err != nil {
		return VolumeInfo{}, err
	}
	err = a.finish(ctx, fmt.Sprintf("growing %s", v.label), v.unlockAdmin, func() error { return v.grow(size) })
	if err != nil {
		return VolumeInfo{}, err
	}
	return a.VolumeInfo(ref)
}

func (v *volume) grow(size int64) error {
	have := v.size.Load()
	if size == have {
		return nil
	}
	if size < have {
		return driver.Errorf(driver.InvalidRequest, "%s has %d bytes: it can't shrink to %d", v.label, have, size)
	}
	v.mu.Lock()
	busy := len(v.fills) > 0
	v.mu.Unlock()
	if busy || v.recovering.Load() > 0 {
		return driver.Errorf(driver.Busy, "%s: a mirror is being copied to; grow it when that is done", v.label)
	}
	v.state.Lock()
	defer v.state.Unlock()
	if len(v.cur.insync) == 0 {
		return fmt.Errorf("growing %s: %w", v.label, errOffline)
	}
	for _, p := range slices.Concat(v.cur.insync, v.cur.filling) {
		err := p.f.Truncate(size)
		if err == nil {
			err = p.f.Sync()
		}
		if err != nil {
			return fmt.Errorf("growing mirror %s of %s: %w", p.id, v.label, noSpace(err))
		}
	}
	err := v.a.change(func(c *catalog) error {
		c.volume(v.id).Size = size
		return nil
	})
	if err != nil {
		return err
	}
	v.mu.Lock()
	for _, m := range v.epochs {
		m.grow(regionsFor(size, m.unit))
	}
	v.mu.Unlock()
	v.log.file.grow(regionsFor(size, v.log.file.unit))
	v.size.Store(size)
	return nil
}

// AddMirror gives a volume one more mirror, in the pool, and begins to fill it.
func (a *Array) AddMirror(ctx context.Context, ref driver.VolumeID, pool string) (MirrorInfo, error) {
	v, err := a.find(ref)
	if err == nil {
		err = a.checkRoom(pool)
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
		if r := c.volume(v.id); want && len(r.Want) >= 8 {
			return driver.Errorf(driver.InvalidRequest, "%s has 8 mirrors already", v.label)
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
// The last one in sync stays. Removing what is not there is success.
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
	if slices.ContainsFunc(v.cur.insync, func(p *plex) bool { return p.id == mirror }) && len(v.cur.insync) == 1 {
		v.state.Unlock()
		return driver.Errorf(driver.InvalidRequest, "mirror %s is the last of %s in sync", mirror, v.label)
	}
	err := v.a.change(func(c *catalog) error {
		r := c.volume(v.id)
		m := r.mirror(mirror)
		if m == nil {
			return nil
		}
		files = m.files()
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
	next.insync, next.filling = without(next.insync, gone), without(next.filling, gone)
	old := v.flip(next)
	v.state.Unlock()
	<-old.idle
	if gone != nil {
		gone.f.Close()
	}
	v.a.scrap(v.a.mapPath(todoName(mirror)))
	v.a.discard(files)
	v.notify()
	return nil
}

// Volumes describes all volumes, by name.
func (a *Array) Volumes() []VolumeInfo {
	c, now := a.store.read(), a.o.Now()
	var out []VolumeInfo
	for _, v := range a.allVolumes() {
		if info, ok := v.info(c, now); ok {
			out = append(out, info)
		}
	}
	return out
}

// VolumeInfo describes one volume.
func (a *Array) VolumeInfo(ref driver.VolumeID) (VolumeInfo, error) {
	v, err := a.find(ref)
	if err != nil {
		return VolumeInfo{}, err
	}
	info, ok := v.info(a.store.read(), a.o.Now())
	if !ok {
		return info, driver.Errorf(driver.NotFound, "no volume %.80q", ref)
	}
	return info, nil
}

// SetResyncRate changes Options.ResyncRate.
func (a *Array) SetResyncRate(bytesPerSecond int64) { a.copies.set(bytesPerSecond) }

// WaitInSync returns when no mirror of the volume is being copied to and what a
// crash left is compared; nil does not say how many mirrors it has. Stalled copying is
// waited for as well, and named in the error when ctx ends.
func (a *Array) WaitInSync(ctx context.Context, ref driver.VolumeID) error {
	v, err := a.find(ref)
	if err != nil {
		return err
	}
	for {
		changed := v.waitChange()
		info, ok := v.info(a.store.read(), a.o.Now())
		if !ok {
			return driver.Errorf(driver.NotFound, "%s was deleted", v.label)
		}
		if info.State == driver.Broken {
			return driver.Errorf(driver.NotSynchronized, "%s is offline: %w", v.label, errOffline)
		}
		copying := info.Recovering > 0
		for _, m := range info.Replicas {
			copying = copying || m.State == driver.Unsynchronized
		}
		if !copying {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return driver.Errorf(driver.NotSynchronized, "%s: %s: %w", v.label, copyingText(info), context.Cause(ctx))
		case <-a.bg.Done():
			return fmt.Errorf("array: %w", lun.ErrClosed)
		}
	}
}

func copyingText(info VolumeInfo) string {
	for _, m := range info.Replicas {
		if m.State == driver.Unsynchronized {
			s := fmt.Sprintf("mirror %s has %d of %d bytes", m.ID, m.Copied, m.ToCopy)
			if m.Reason != "" {
				s += " and is stalled: " + m.Reason
			}
			return s
		}
	}
	return fmt.Sprintf("%d bytes are still to be compared after a crash", info.Recovering)
}
