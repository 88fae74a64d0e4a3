package embedded

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

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
		if err == nil && (info.Size != o.Size || info.Wanted != len(o.Pools) || info.Policy != o.Snapshots.orDefault()) {
			err = driver.Errorf(driver.InvalidRequest, "volume %q is there already, with %d bytes, %d mirrors and snapshots by %s", o.Name, info.Size, info.Wanted, info.Policy)
		}
		return info, err
	} else if kindOf(err) != driver.NotFound {
		return VolumeInfo{}, err
	}
	r := volumeRecord{ID: lun.NewIdentity(), Name: o.Name, Size: o.Size, Created: a.o.Now().UTC(), Want: slices.Clone(o.Pools), Policy: o.Snapshots.orDefault()}
	for _, pool := range o.Pools {
		if err := a.checkRoom(pool, 0); err != nil {
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
	if err := checkName(o.Name); err != nil {
		return err
	}
	if err := checkSize(o.Size); err != nil {
		return fmt.Errorf("volume %q: %w", o.Name, err)
	}
	if len(o.Pools) == 0 || len(o.Pools) > maxMirrors {
		return driver.Errorf(driver.InvalidRequest, "volume %q: want 1 to %d pools, one for each mirror", o.Name, maxMirrors)
	}
	for _, p := range o.Pools {
		if err := a.checkPool(p); err != nil {
			return fmt.Errorf("volume %q: %w", o.Name, err)
		}
	}
	err := o.Snapshots.check()
	if err == nil && o.Snapshots == ByReflink {
		err = a.anyClones(o.Pools)
	}
	if err != nil {
		return fmt.Errorf("volume %q: %w", o.Name, err)
	}
	return nil
}

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
	log, err := createLog(a.fs, a.mapPath(v.logName()), r.Size, a.logUnit(r.Size))
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
		a.noteOneMirror(v, r.Policy)
	}
	return a.VolumeInfo(driver.VolumeID(r.ID.String()))
}

// noteOneMirror says what it means that a volume was made with one mirror.
func (a *Array) noteOneMirror(v *volume, policy SnapshotPolicy) {
	split := ", and can't be split"
	if policy.orDefault() != ByMirror {
		split = ", and its reflinks are too"
	}
	a.event(Unmirrored, v, lun.Identity{}, "%s has one mirror: it is lost with its pool%s", v.label, split)
}
