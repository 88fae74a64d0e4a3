package embedded

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
	"github.com/cleave-san/cleave/lun"
)

const (
	pcSteps   = 200
	pcSectors = 1024 // of a volume, at first
)

// pcTrace is a run of random operations on an array.
type pcTrace struct {
	ctx  context.Context
	rng  *rand.Rand
	fs   *disktest.FS
	m    *pcModel
	a    *Array
	devs map[*pcDevice]*Volume
	tags int
	// cleans: under load, one of so many writes is followed by a clean.
	cleans int

	steps int // that it has

	logMu  sync.Mutex
	taken  []string
	points []string
}

// pcWeights is how often each step comes.
var pcWeights = []struct {
	name   string
	weight int
	do     func(*pcTrace) error
}{
	{"write", 30, (*pcTrace).write},
	{"sync", 12, (*pcTrace).sync},
	{"split", 8, (*pcTrace).split},
	{"failing split", 2, (*pcTrace).failingSplit},
	{"write to split", 6, (*pcTrace).writeSplit},
	{"resync", 5, (*pcTrace).resync},
	{"delete split", 3, (*pcTrace).deleteSplit},
	{"wait", 3, (*pcTrace).wait},
	{"housekeeping", 10, (*pcTrace).housekeeping},
	{"clean", 4, (*pcTrace).clean},
	{"add mirror", 2, (*pcTrace).addMirror},
	{"remove mirror", 2, (*pcTrace).removeMirror},
	{"lose mirror", 2, (*pcTrace).loseMirror},
	{"grow", 1, (*pcTrace).grow},
	{"revert", 3, (*pcTrace).revert},
	{"reverse", 2, (*pcTrace).reverse},
	{"break", 1, (*pcTrace).breakOff},
	{"aborted split", 1, (*pcTrace).abortedSplit},
	{"create", 1, (*pcTrace).create},
	{"delete volume", 1, (*pcTrace).deleteVolume},
	{"restart", 2, (*pcTrace).restart},
}

// run performs the trace.
func (t *pcTrace) run() error {
	if err := t.open(); err != nil {
		return err
	}
	for range 1 + t.rng.IntN(3) {
		if err := t.create(); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	weights, sum := t.swarm()
	for i := range t.steps {
		n, j := t.rng.IntN(sum), 0
		for n >= weights[j] {
			n -= weights[j]
			j++
		}
		t.note(&t.taken, "step %d: %s", i, pcWeights[j].name)
		if err := pcWeights[j].do(t); err != nil {
			return fmt.Errorf("step %d, %s: %w", i, pcWeights[j].name, err)
		}
	}
	return t.close()
}

// swarm gives some steps more weight: what comes seldom in most traces comes often
// in some, and next to what else comes often in them.
func (t *pcTrace) swarm() (weights []int, sum int) {
	t.cleans = 4 + t.rng.IntN(20)
	for _, w := range pcWeights {
		n := w.weight
		if t.rng.IntN(4) == 0 {
			n += 10
		}
		weights, sum = append(weights, n), sum+n
	}
	return weights, sum
}

func (t *pcTrace) note(to *[]string, format string, args ...any) {
	t.logMu.Lock()
	*to = append(*to, fmt.Sprintf(format, args...))
	t.logMu.Unlock()
}

// lately is the end of the log.
func (t *pcTrace) lately() string {
	t.logMu.Lock()
	defer t.logMu.Unlock()
	last := func(l []string) []string { return l[max(0, len(l)-10):] }
	return strings.Join(slices.Concat(last(t.taken), last(t.points)), "\n")
}

func (t *pcTrace) open() (err error) {
	t.devs = map[*pcDevice]*Volume{}
	if t.a, err = Open(t.ctx, pcOptions(t.fs)); err != nil {
		return err
	}
	for _, d := range t.volumes() {
		if err := t.openVolume(d); err != nil {
			return err
		}
	}
	return nil
}

func (t *pcTrace) openVolume(d *pcDevice) (err error) {
	t.devs[d], err = t.a.OpenVolume(driver.VolumeID(d.name), "trace")
	return err
}

func (t *pcTrace) closeVolume(d *pcDevice) {
	t.devs[d].Close()
	delete(t.devs, d)
}

func (t *pcTrace) close() error {
	for _, h := range t.devs {
		h.Close()
	}
	return t.a.Close()
}

// restart ends the array and starts it again.
func (t *pcTrace) restart() error {
	if err := t.close(); err != nil {
		return err
	}
	return t.open()
}

func (t *pcTrace) volumes() (out []*pcDevice) {
	for _, d := range t.m.vols {
		if d.there && !d.gone {
			out = append(out, d)
		}
	}
	return out
}

func (t *pcTrace) volume() *pcDevice {
	v := t.volumes()
	return v[t.rng.IntN(len(v))]
}

func (t *pcTrace) snapshots() (out []*pcMember) {
	for _, s := range t.m.splits {
		for _, k := range s.members {
			if k.there && !k.gone {
				out = append(out, k)
			}
		}
	}
	return out
}

func (t *pcTrace) snapshot() *pcMember {
	if s := t.snapshots(); len(s) > 0 {
		return s[t.rng.IntN(len(s))]
	}
	return nil
}

type pcTarget interface {
	lun.Device
	lun.Trimmer
	lun.Zeroer
}

// change writes, trims or zeroes n sectors of a device.
func (t *pcTrace) change(rng *rand.Rand, d *pcDevice, h pcTarget, first, n int) error {
	kind := rng.IntN(6)
	k := t.m.issue(d, first, n, kind < 2)
	off, length := int64(first)*sector, int64(n)*sector
	var err error
	switch kind {
	case 0:
		err = h.Trim(off, length)
	case 1:
		err = h.WriteZeroes(off, length)
	default:
		b := make([]byte, length)
		for i := range n {
			stamp(b[i*sector:(i+1)*sector], d.id, first+i, k)
		}
		_, err = h.WriteAt(b, off)
	}
	if err == nil {
		t.m.ack(k)
	}
	return err
}

// extent chooses where to write: little most of the time, and a lot at times.
func extent(rng *rand.Rand, sectors int) (first, n int) {
	n = 1 + rng.IntN(16)
	if rng.IntN(6) == 0 {
		n = 1 + rng.IntN(sectors/2)
	}
	return rng.IntN(sectors - n + 1), n
}

func (t *pcTrace) write() error {
	for range 1 + t.rng.IntN(4) {
		d := t.volume()
		first, n := extent(t.rng, len(d.hist))
		if err := t.change(t.rng, d, t.devs[d], first, n); err != nil {
			return err
		}
	}
	return nil
}

func (t *pcTrace) syncDevice(d *pcDevice, h pcTarget) error {
	acked := t.m.acked(d)
	err := h.Sync()
	if err == nil {
		t.m.synced(d, acked)
	}
	return err
}

func (t *pcTrace) sync() error {
	d := t.volume()
	return t.syncDevice(d, t.devs[d])
}

// underLoad performs fn while writers write, each to its own sectors, one write
// after the other and on changing volumes.
func (t *pcTrace) underLoad(fn func() error) error {
	if t.rng.IntN(4) == 0 {
		return fn()
	}
	var wg sync.WaitGroup
	errs := make([]error, pcZones-1)
	vols := t.volumes()
	stop := make(chan struct{})
	for z := range pcZones - 1 {
		rng := rand.New(rand.NewPCG(t.rng.Uint64(), 0))
		wg.Go(func() {
			for i := 0; errs[z] == nil; i++ {
				if i >= 10 { // ten at least, and then for as long as fn works
					select {
					case <-stop:
						return
					default:
					}
				}
				d := vols[rng.IntN(len(vols))]
				first, n := inZone(rng, z)
				if errs[z] = t.change(rng, d, t.devs[d], first, n); errs[z] != nil {
					return
				}
				switch rng.IntN(t.cleans) {
				case 0:
					errs[z] = t.syncDevice(d, t.devs[d])
				case 1:
					if err := t.devs[d].v.cleanNow(); !errors.Is(err, errNotNow) {
						errs[z] = err
					}
				}
			}
		})
	}
	err := fn()
	close(stop)
	wg.Wait()
	for _, e := range errs {
		if err == nil && e != nil {
			err = fmt.Errorf("under load: %w", e)
		}
	}
	return err
}

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
	var victims []string // the last mirror of a volume does not fail, nor ever two
	for _, d := range t.volumes() {
		e := t.devs[d].v.enter()
		if n := len(e.insync); n > 1 {
			victims = append(victims, e.insync[n-1].path)
		}
		e.leave()
	}
	var mu sync.Mutex
	fault := func(op disktest.Op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		hit := op == disktest.OpOpen && strings.HasSuffix(name, "catalogue.json.new")
		if !catalogue {
			hit = op == disktest.OpSync && slices.Contains(victims, name)
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
	if catalogue {
		fault = t.atCatalogue(fault)
	}
	return t.splitWith(fault)
}

// atCatalogue writes and clears marks whenever the catalogue is about to be
// written, and so between the instant of a split and its being certain. Then it
// is for fault, if there is one, to say whether the catalogue is.
func (t *pcTrace) atCatalogue(fault func(disktest.Op, string) error) func(disktest.Op, string) error {
	rng, vols := rand.New(rand.NewPCG(t.rng.Uint64(), 0)), t.volumes()
	var mu sync.Mutex
	return func(op disktest.Op, name string) error {
		if op == disktest.OpOpen && strings.HasSuffix(name, "catalogue.json.new") && mu.TryLock() {
			defer mu.Unlock()
			for _, d := range vols {
				first, n := inZone(rng, pcZones-1)
				if err := t.change(rng, d, t.devs[d], first, n); err != nil {
					return err
				}
				if v := t.devs[d].v; v.cleaning.TryLock() {
					err := v.cleanLocked(false)
					v.cleaning.Unlock()
					if err != nil {
						return err
					}
				}
			}
		}
		if fault == nil {
			return nil
		}
		return fault(op, name)
	}
}

// inZone chooses sectors of one writer.
func inZone(rng *rand.Rand, z int) (first, n int) {
	n = 1 + rng.IntN(12)
	return rng.IntN(pcSectors/64/pcZones)*64*pcZones + z*64 + rng.IntN(64-n), n
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

func (t *pcTrace) splitWith(fault func(disktest.Op, string) error) error {
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
			t.fs.Fail(t.atCatalogue(nil))
		} else {
			t.fs.Fail(fault)
		}
		snaps, err := t.splitNow(s.tag, ids)
		t.fs.Fail(nil)
		t.m.set(func() { s.last = uint32(len(t.m.ops) - 1) })
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
	exact, err := t.m.checkSplit(s, s.last, contents)
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

func (t *pcTrace) wait() error {
	return t.a.WaitInSync(t.ctx, driver.VolumeID(t.volume().name))
}

// housekeeping does what time does.
func (t *pcTrace) housekeeping() error {
	for _, d := range t.volumes() {
		v := t.devs[d].v
		for range 3 {
			v.log.nextTick()
		}
		if v.recovering.Load() > 0 {
			continue
		}
		if err := v.cleanIdle(); err != nil {
			return err
		}
	}
	for _, k := range t.snapshots() {
		s, err := t.a.findSnapshot(k.snap)
		if err != nil {
			return err
		}
		s.mu.Lock()
		w := s.write
		s.mu.Unlock()
		if w != nil {
			if err := w.cleanNow(); err != nil {
				return err
			}
		}
	}
	return nil
}

// cleanNow clears what marks it can.
func (s *set) cleanNow() error {
	s.cleaning.Lock()
	defer s.cleaning.Unlock()
	return s.cleanLocked(false)
}

func (t *pcTrace) clean() error { return t.devs[t.volume()].v.cleanNow() }

func (t *pcTrace) mirrors(d *pcDevice) ([]MirrorInfo, error) {
	info, err := t.a.VolumeInfo(driver.VolumeID(d.name))
	return info.Replicas, err
}

var pcPools = []string{"a", "b", "c"}

func (t *pcTrace) addMirror() error {
	d := t.volume()
	ms, err := t.mirrors(d)
	if err != nil || len(ms) >= 3 {
		return err
	}
	return t.underLoad(func() error {
		_, err := t.a.AddMirror(t.ctx, driver.VolumeID(d.name), pcPools[t.rng.IntN(3)])
		return err
	})
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
	return t.underLoad(func() error { return t.a.RemoveMirror(t.ctx, driver.VolumeID(d.name), m.ID) })
}

// loseMirror has writes to one mirror fail, and replaces or
// repairs it.
func (t *pcTrace) loseMirror() error {
	d := t.volume()
	if t.devs[d].v.mirrorsInSync() < 3 {
		return nil
	}
	ms, err := t.mirrors(d)
	if err != nil {
		return err
	}
	m := ms[t.rng.IntN(len(ms))]
	t.fs.Fail(func(op disktest.Op, name string) error {
		if op == disktest.OpWrite && name == m.File {
			return syscall.EIO
		}
		return nil
	})
	err = t.change(t.rng, d, t.devs[d], 7, 90)
	if err == nil {
		err = t.syncDevice(d, t.devs[d])
	}
	t.fs.Fail(nil)
	if err != nil {
		return err
	}
	if t.rng.IntN(3) > 0 {
		return t.repair(d)
	}
	if err := t.a.RemoveMirror(t.ctx, driver.VolumeID(d.name), m.ID); err != nil {
		return err
	}
	_, err = t.a.AddMirror(t.ctx, driver.VolumeID(d.name), m.Pool)
	return err
}

// repair takes a broken mirror back, after it has missed something.
func (t *pcTrace) repair(d *pcDevice) error {
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
		return t.a.RepairVolume(t.ctx, driver.VolumeID(d.name))
	})
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
	o := CreateVolume{Name: d.name, Size: pcSectors * sector, Pools: pcPools[:2+t.rng.IntN(2)]}
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
