package embedded

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
	"github.com/cleave-san/cleave/lun"
)

// splittable chooses volumes that have two mirrors in sync.
func (t *pcTrace) splittable() (out []*pcDevice) {
	for _, d := range t.volumes() {
		v := t.devs[d].v
		clones := t.a.store.read().volume(v.id).Policy == ByReflink
		if (v.mirrorsInSync() >= 2 || clones) && v.recovering.Load() == 0 && t.rng.IntN(4) > 0 {
			out = append(out, d)
		}
	}
	return out
}

func (t *pcTrace) split() error { return t.splitWith(nil) }

// failingSplit has something fail in the middle.
func (t *pcTrace) failingSplit() error {
	n, after := 0, 1+t.rng.IntN(2)
	catalogue := t.rng.IntN(2) == 0
	failed := false
	victims := t.lastMirrors()
	var mu sync.Mutex
	fault := func(op disktest.Op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		hit := atCatalogue(op, name)
		if !catalogue {
			hit = isSyncOf(victims)(op, name)
		}
		if hit {
			n++
		}
		if !hit || n != after || failed {
			return nil
		}
		failed = true
		if catalogue {
			return syscall.ENOSPC
		}
		return syscall.EIO
	}
	if !catalogue { // nothing in the middle of writing it: a mirror that fails has to be recorded there
		return t.splitWith(t.meddleAt(isSyncOf(victims), fault))
	}
	return t.splitWith(t.amidst(victims, fault))
}

// amidst meddles whenever the catalogue is about to be written or a mirror that is
// being split to be synced, and so between the instant of a split and its being
// certain, and while one is undone. Then it is for fault, if there is one, to say
// whether the call succeeds.
func (t *pcTrace) amidst(victims []string, fault pcFault) pcFault {
	syncs := isSyncOf(victims)
	return t.meddleAt(func(op disktest.Op, name string) bool { return atCatalogue(op, name) || syncs(op, name) }, fault)
}

func isSyncOf(files []string) func(disktest.Op, string) bool {
	return func(op disktest.Op, name string) bool { return op == disktest.OpSync && slices.Contains(files, name) }
}

func atCatalogue(op disktest.Op, name string) bool {
	return op == disktest.OpOpen && strings.HasSuffix(name, "catalogue.json.new")
}

// lastMirrors are those that splits take.
func (t *pcTrace) lastMirrors() (files []string) {
	for _, d := range t.volumes() {
		e := t.devs[d].v.enter()
		if n := len(e.insync); n > 1 { // the last mirror of a volume does not fail, nor ever two
			files = append(files, e.insync[n-1].path)
		}
		e.leave()
	}
	return files
}

// begin chooses what to split next.
func (t *pcTrace) begin() (s *pcSplit, vols []*pcDevice, ids []driver.VolumeID) {
	vols = t.splittable()
	t.tags++
	s = &pcSplit{tag: driver.Tag(fmt.Sprintf("t%d", t.tags))}
	for _, d := range vols {
		ids = append(ids, driver.VolumeID(t.devs[d].v.id.String()))
		k := &pcMember{of: d}
		k.name = fmt.Sprintf("%s of %s", s.tag, d.name)
		s.members = append(s.members, k)
	}
	return s, vols, ids
}

// abortedSplit is armed, and nothing comes of it.
func (t *pcTrace) abortedSplit() error {
	s, vols, ids := t.begin()
	if len(vols) == 0 {
		return nil
	}
	err := t.a.Prepare(t.ctx, ids, driver.PrepareOptions{Tag: s.tag, AllowUnmirrored: true})
	if err != nil {
		return err
	}
	return t.underLoad(func() error {
		if err := t.a.Arm(t.ctx, s.tag, ids, time.Minute); err != nil {
			return err
		}
		return t.a.Abort(t.ctx, s.tag)
	})
}

// splitNow splits at once, or in two steps.
func (t *pcTrace) splitNow(tag driver.Tag, ids []driver.VolumeID) ([]driver.Snapshot, error) {
	if t.rng.IntN(3) > 0 {
		return t.a.SplitGroup(t.ctx, tag, ids)
	}
	if err := t.a.Arm(t.ctx, tag, ids, time.Minute); err != nil {
		return nil, err
	}
	return t.a.Commit(t.ctx, tag)
}

func (t *pcTrace) splitWith(fault pcFault) error {
	s, vols, ids := t.begin()
	if len(vols) == 0 {
		return nil
	}
	if err := t.a.Prepare(t.ctx, ids, driver.PrepareOptions{Tag: s.tag, AllowUnmirrored: true}); err != nil {
		if fault == nil && kindOf(err) == driver.Busy {
			return nil
		}
		return err
	}
	return t.underLoad(func() error {
		for j, k := range s.members {
			k.acked, k.begun = t.m.acked(vols[j]), true
		}
		t.m.set(func() { t.m.splits = append(t.m.splits, s) })
		if fault == nil && t.rng.IntN(2) == 0 {
			t.fs.Fail(t.amidst(t.lastMirrors(), nil))
		} else {
			t.fs.Fail(fault)
		}
		snaps, err := t.splitNow(s.tag, ids)
		t.m.set(func() { s.last = uint32(len(t.m.ops) - 1) })
		if err := t.calm(); err != nil {
			return err
		}
		if err != nil {
			t.note(&t.taken, "split: %v", err)
			t.m.set(func() {
				for _, k := range s.members {
					k.going, k.gone = true, true
				}
			})
			if fault != nil {
				return nil
			}
			return err
		}
		return t.splitDone(s, snaps)
	})
}

// splitDone finds out what a split holds, which is all that it ever may.
func (t *pcTrace) splitDone(s *pcSplit, snaps []driver.Snapshot) error {
	var contents [][]byte
	for _, snap := range snaps {
		h, err := t.a.OpenSnapshot(snap.ID, "trace")
		if err != nil {
			return err
		}
		b, err := readAll(h)
		h.Close()
		if err != nil {
			return err
		}
		contents = append(contents, b)
	}
	exact, err := t.m.checkSplit(s, s.sources(), s.last, contents)
	if err != nil {
		return err
	}
	t.m.done(s, exact, snaps)
	return nil
}

func (t *pcTrace) writeSplit() error {
	k := t.snapshot()
	if k == nil {
		return nil
	}
	h, err := t.a.OpenWritable(k.snap, "trace")
	if err != nil {
		return err
	}
	defer h.Close()
	for range 1 + t.rng.IntN(4) {
		first, n := extent(t.rng, len(k.hist))
		if err := t.change(t.rng, &k.pcDevice, h, first, n); err != nil {
			return err
		}
		if t.rng.IntN(4) == 0 {
			if err := t.syncDevice(&k.pcDevice, h); err != nil {
				return err
			}
		}
	}
	return nil
}

// end gives a split up.
func (t *pcTrace) end(k *pcMember, fn func(context.Context, driver.SnapshotID) error) error {
	return t.underLoad(func() error {
		t.m.set(func() { k.going = true })
		err := fn(t.ctx, k.snap)
		t.m.set(func() { k.gone = true })
		return err
	})
}

func (t *pcTrace) resync() error {
	if k := t.snapshot(); k != nil && !k.of.gone && !t.record(k).Clone {
		return t.end(k, t.a.Resync)
	}
	return nil
}

func (t *pcTrace) record(k *pcMember) *snapshotRecord {
	id, _ := lun.ParseIdentity(string(k.snap))
	return t.a.store.read().snapshot(id)
}

// unused chooses a split, and a volume that nobody has open.
func (t *pcTrace) unused() *pcMember {
	k := t.snapshot()
	if k == nil || k.of.gone || t.devs[k.of].v.mirrorsInSync() == 0 || t.devs[k.of].v.recovering.Load() > 0 {
		return nil
	}
	t.closeVolume(k.of)
	return k
}

// now is what a device holds, all of it stable from here on. The split of a
// volume that has grown has to have grown as well.
func (t *pcTrace) now(d *pcDevice, sectors int) pcContent {
	exact := t.m.acked(d)
	c := pcContent{floor: make([]uint32, sectors), hist: make([][]uint32, sectors)}
	copy(c.floor, exact)
	for i, k := range c.floor {
		c.hist[i] = []uint32{k}
	}
	return c
}

// become gives a device another content.
func (d *pcDevice) become(c pcContent) { d.hist, d.floor = c.hist, c.floor }

// revert puts a volume back to a split; what it held is a split of its own.
func (t *pcTrace) revert() error {
	k := t.unused()
	if k == nil {
		return nil
	}
	v := k.of
	old, next := t.now(v, len(v.hist)), t.now(&k.pcDevice, len(v.hist))
	safe := &pcMember{of: v}
	safe.id, safe.name, safe.begun = v.id, "safe point of "+v.name, true
	safe.become(old)
	s := &pcSplit{tag: driver.Tag("safe-" + string(k.snap)), members: []*pcMember{safe}}
	t.m.set(func() {
		t.m.splits = append(t.m.splits, s)
		t.m.swap = &pcSwap{gone: &k.pcDevice, come: &safe.pcDevice, turned: []*pcDevice{v}}
		k.going, v.other = true, &next
	})
	snap, err := t.a.Revert(t.ctx, k.snap)
	if err != nil {
		return err
	}
	t.m.set(func() {
		t.m.swap = nil
		k.gone, safe.there, safe.snap, v.other = true, true, snap.ID, nil
		v.become(next)
	})
	return t.openVolume(v)
}

// reverse exchanges a volume's content and a split's.
func (t *pcTrace) reverse() error {
	k := t.unused()
	if k == nil {
		return nil
	}
	v := k.of
	old, next := t.now(v, len(v.hist)), t.now(&k.pcDevice, len(v.hist))
	t.m.set(func() {
		t.m.swap = &pcSwap{turned: []*pcDevice{v, &k.pcDevice}}
		k.other, v.other = &old, &next
	})
	snap, err := t.a.Reverse(t.ctx, k.snap)
	if err != nil {
		return err
	}
	t.m.set(func() {
		t.m.swap = nil
		k.snap, k.other, v.other = snap.ID, nil, nil
		k.become(old)
		v.become(next)
	})
	return t.openVolume(v)
}

// breakOff makes a split a volume.
func (t *pcTrace) breakOff() error {
	k := t.snapshot()
	if k == nil || len(t.volumes()) >= 4 || len(k.hist) < pcSectors {
		return nil
	}
	d := &pcDevice{id: k.id, name: fmt.Sprintf("v%d", len(t.m.vols)), begun: true}
	d.become(t.now(&k.pcDevice, len(k.hist)))
	d.want = []string{t.record(k).Mirror.Pool}
	t.m.set(func() {
		t.m.vols = append(t.m.vols, d)
		t.m.swap = &pcSwap{gone: &k.pcDevice, come: d}
		k.going = true
	})
	if _, err := t.a.Break(t.ctx, k.snap, d.name); err != nil {
		return err
	}
	t.m.set(func() {
		t.m.swap = nil
		k.gone, d.there = true, true
	})
	return t.openVolume(d)
}

func (t *pcTrace) deleteSplit() error {
	if k := t.snapshot(); k != nil {
		return t.end(k, t.a.Delete)
	}
	return nil
}
