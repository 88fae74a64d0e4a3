package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
)

func (t *pcTrace) mirrors(d *pcDevice) ([]MirrorInfo, error) {
	info, err := t.a.VolumeInfo(driver.VolumeID(d.name))
	if err == nil && info.Wanted != len(d.want) {
		err = fmt.Errorf("%s is to have %d mirrors, and should be to have those of %q", d.name, info.Wanted, d.want)
	}
	return info.Replicas, err
}

var pcPools = []string{"a", "b", "c"}

func (t *pcTrace) addMirror() error {
	d := t.volume()
	ms, err := t.mirrors(d)
	if err != nil || len(ms) >= 3 {
		return err
	}
	pool := pcPools[t.rng.IntN(3)]
	if len(d.want) >= 8 { // one that is removed from where another is split off is still wanted
		return nil
	}
	return t.underLoad(func() error {
		return t.filling(d, func() error { return t.addMirrorIn(d, pool) })
	})
}

func (t *pcTrace) addMirrorIn(d *pcDevice, pool string) error {
	_, err := t.a.AddMirror(t.ctx, driver.VolumeID(d.name), pool)
	if err == nil {
		d.want = append(d.want, pool)
	}
	return err
}

// removeMirrorOf has the volume no more be to have one in that pool.
// It may be refused while the mirrors are being compared after a cut.
func (t *pcTrace) removeMirrorOf(d *pcDevice, m *MirrorInfo) error {
	comparing := t.devs[d].v.recovering.Load() > 0
	err := t.a.RemoveMirror(t.ctx, driver.VolumeID(d.name), m.ID)
	if i := slices.Index(d.want, m.Pool); err == nil && i >= 0 {
		d.want = slices.Delete(d.want, i, i+1)
	}
	if comparing && kindOf(err) == driver.NotSynchronized {
		return nil
	}
	return err
}

func (t *pcTrace) removeMirror() error {
	d := t.volume()
	ms, err := t.mirrors(d)
	if err != nil || len(ms) < 3 {
		return err
	}
	m := ms[t.rng.IntN(len(ms))]
	if m.State == driver.Synchronized && t.devs[d].v.mirrorsInSync() < 3 {
		return nil
	}
	return t.underLoad(func() error { return t.removeMirrorOf(d, &m) })
}

// filling performs fn, which has a mirror filled, at times until that is done and
// with writes, and syncs, at the moments when the filling is about to end.
func (t *pcTrace) filling(d *pcDevice, fn func() error) error {
	if t.rng.IntN(2) == 0 {
		return fn()
	}
	t.fs.Fail(t.meddleAt(func(op disktest.Op, name string) bool {
		return op == disktest.OpSync && strings.HasSuffix(name, ".todo")
	}, nil))
	err := fn()
	if err == nil {
		err = t.a.WaitInSync(t.ctx, driver.VolumeID(d.name))
	}
	return errors.Join(err, t.calm())
}

// loseMirror has writes to one mirror fail, or its syncs. It stays broken, or is
// replaced or repaired. Before mirrors are equal again after a cut, what was read
// and is not stable may be lost with the one that it was read from.
func (t *pcTrace) loseMirror() error {
	d := t.volume()
	v := t.devs[d].v
	if v.mirrorsInSync() < 3 || v.recovering.Load() > 0 {
		return nil
	}
	ms, err := t.mirrors(d)
	if err != nil {
		return err
	}
	m := ms[t.rng.IntN(len(ms))]
	fails := []disktest.Op{disktest.OpWrite, disktest.OpSync}[t.rng.IntN(2)]
	t.fs.Fail(func(op disktest.Op, name string) error {
		if op == fails && name == m.File {
			return syscall.EIO
		}
		return nil
	})
	err = t.change(t.rng, d, t.devs[d], 7, 90)
	if err == nil && t.rng.IntN(2) == 0 {
		err = v.cleanNow()
	}
	if err == nil {
		err = t.syncDevice(d, t.devs[d])
	}
	t.fs.Fail(nil)
	if err != nil {
		return err
	}
	switch t.rng.IntN(4) {
	case 0:
		return nil
	case 1:
		if err := t.removeMirrorOf(d, &m); err != nil {
			return err
		}
		return t.addMirrorIn(d, m.Pool)
	}
	return t.repairVolume(d)
}

// repair takes broken mirrors back.
func (t *pcTrace) repair() error {
	for _, d := range t.volumes() {
		ms, err := t.mirrors(d)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(ms, func(m MirrorInfo) bool { return m.State == driver.Broken }) && t.devs[d].v.mirrorsInSync() > 0 {
			return t.repairVolume(d)
		}
	}
	return nil
}

// repairVolume takes a broken mirror back, after it has missed something.
func (t *pcTrace) repairVolume(d *pcDevice) error {
	return t.underLoad(func() error {
		for range t.rng.IntN(3) {
			do := t.housekeeping
			switch t.rng.IntN(3) {
			case 0:
				do = t.sync
			case 1:
				do = t.clean
			}
			if err := do(); err != nil {
				return err
			}
		}
		return t.filling(d, func() error { return t.a.RepairVolume(t.ctx, driver.VolumeID(d.name)) })
	})
}

// scrub has a mirror's disk damage a sector, and the scrub repair it. Nothing is
// promised before it has.
func (t *pcTrace) scrub() error {
	d := t.volume()
	ms, err := t.mirrors(d)
	if v := t.devs[d].v; err != nil || v.mirrorsInSync() < 3 || v.recovering.Load() > 0 {
		return err
	}
	ms = slices.DeleteFunc(ms, func(m MirrorInfo) bool { return m.State != driver.Synchronized })
	t.blind.Store(true)
	defer t.blind.Store(false)
	f, err := t.fs.OpenFile(ms[t.rng.IntN(len(ms))].File, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.WriteAt(bytes.Repeat([]byte{0xdb}, sector), sector*t.rng.Int64N(pcSectors)); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return err
	}
	r, err := t.a.Scrub(t.ctx, driver.VolumeID(d.name), ScrubOptions{Repair: true})
	if err == nil && r.Repaired == 0 {
		err = fmt.Errorf("the scrub repaired nothing: %+v", r)
	}
	return err
}

func (t *pcTrace) grow() error {
	d := t.volume()
	sectors := len(d.hist) + 128 + t.rng.IntN(2)*64
	if sectors > 2*pcSectors {
		return nil
	}
	old := len(d.hist)
	t.m.set(func() {
		for len(d.hist) < sectors {
			d.hist = append(d.hist, []uint32{0})
		}
	})
	_, err := t.a.GrowVolume(t.ctx, driver.VolumeID(d.name), int64(sectors)*sector)
	if kindOf(err) == driver.Busy {
		t.m.set(func() { d.hist = d.hist[:old] })
		return nil
	}
	if err == nil {
		t.m.grow(d, sectors)
	}
	return err
}

func (t *pcTrace) create() error {
	if len(t.volumes()) >= 3 {
		return nil
	}
	d := t.m.newDevice(fmt.Sprintf("v%d", len(t.m.vols)), pcSectors)
	d.want = slices.Clone(pcPools[:2+t.rng.IntN(2)])
	o := CreateVolume{Name: d.name, Size: pcSectors * sector, Pools: d.want}
	if t.rng.IntN(4) == 0 {
		o.Snapshots = ByReflink
	}
	if _, err := t.a.CreateVolume(t.ctx, o); err != nil {
		return err
	}
	t.m.set(func() { d.there = true })
	return t.openVolume(d)
}

func (t *pcTrace) deleteVolume() error {
	if len(t.volumes()) < 2 {
		return nil
	}
	d := t.volume()
	t.m.set(func() { d.going = true })
	t.closeVolume(d)
	err := t.a.DeleteVolume(t.ctx, driver.VolumeID(d.name))
	t.m.set(func() { d.gone = true })
	return err
}
