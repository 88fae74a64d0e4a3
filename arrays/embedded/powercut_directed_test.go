package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
)

// pcDirected is a trace that is written down, for what random ones seldom come
// to. It loses power at every sync point of the file system from look on, each
// time with little left, and with all.
type pcDirected struct {
	*pcTrace
	d       *pcDevice
	looking atomic.Bool
	mu      sync.Mutex
	err     error
}

// newPCDirected makes an array with a volume of three mirrors.
func newPCDirected(t *testing.T) *pcDirected {
	x := &pcDirected{pcTrace: &pcTrace{ctx: t.Context(), rng: rand.New(rand.NewPCG(1, 0)), m: newPCModel()}}
	x.watch = func(fs *disktest.FS, p disktest.Point) {
		if x.looking.Load() {
			x.cut(fs, pcWorst, 0, fmt.Sprintf("%s %s", p.Op, p.Name))
		}
	}
	x.useFS(disktest.New())
	if err := x.open(); err != nil {
		t.Fatal(err)
	}
	x.d = x.m.newDevice("v0", pcSectors)
	x.d.want = pcPools
	_, err := x.a.CreateVolume(x.ctx, CreateVolume{Name: x.d.name, Size: pcSectors * sector, Pools: pcPools})
	if err == nil {
		x.m.set(func() { x.d.there = true })
		err = x.openVolume(x.d)
	}
	if err != nil {
		x.a.Close()
		t.Fatal(err)
	}
	return x
}

// cut checks what a loss of power leaves now, of those kinds. With nested, power is
// lost again at that sync point of the restart.
func (x *pcDirected) cut(fs *disktest.FS, seeds []uint64, nested int64, at string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, seed := range seeds {
		if x.err != nil {
			return
		}
		e := x.m.before()
		left := fs.Cut(seed)
		e.after()
		if err := pcCheck(left, e, seed, nested); err != nil {
			x.err = fmt.Errorf("cut %d at %s: %w", seed, at, err)
		}
	}
}

// pcWorst are seeds of cuts of which nothing is left that is not stable, all of
// it, and names only; and with which the check gives splits back by a resync.
var pcWorst = func() (seeds []uint64) {
	back := func(seed uint64) bool {
		rng := rand.New(rand.NewPCG(seed, 1))
		return rng.IntN(4) > 0 && rng.IntN(4) > 0
	}
	for _, mood := range []int{0, 1, 2} {
		seed := uint64(0)
		for rand.New(rand.NewPCG(seed, 0)).IntN(10) != mood || !back(seed) {
			seed++
		}
		seeds = append(seeds, seed)
	}
	return seeds
}()

// end looks once more and ends the array.
func (x *pcDirected) end(t *testing.T, err error) {
	if err == nil {
		x.cut(x.fs, pcWorst, 0, "the end")
		err = x.close()
	} else {
		x.a.Close()
	}
	if x.err != nil {
		t.Fatal(x.err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// put writes to some sectors.
func (x *pcDirected) put(first, n int) error {
	k := x.m.issue(x.d, first, n, false)
	b := make([]byte, n*sector)
	for i := range n {
		stamp(b[i*sector:(i+1)*sector], x.d.id, first+i, k)
	}
	_, err := x.devs[x.d].WriteAt(b, int64(first)*sector)
	if err == nil {
		x.m.ack(k)
	}
	return err
}

// clean clears all marks, and marks another region, so that the log's journal does
// not have them any more either.
func (x *pcDirected) clean() error {
	if err := x.devs[x.d].v.cleanNow(); err != nil {
		return err
	}
	return x.put(pcSectors-8, 8)
}

// splitOff splits the volume. With a fault that may come to nothing.
func (x *pcDirected) splitOff(fault pcFault) (*pcMember, error) {
	x.tags++
	k := &pcMember{of: x.d}
	s := &pcSplit{tag: driver.Tag(fmt.Sprintf("t%d", x.tags)), members: []*pcMember{k}}
	k.name = fmt.Sprintf("%s of %s", s.tag, x.d.name)
	ids := []driver.VolumeID{driver.VolumeID(x.devs[x.d].v.id.String())}
	if err := x.a.Prepare(x.ctx, ids, driver.PrepareOptions{Tag: s.tag, AllowUnmirrored: true}); err != nil {
		return nil, err
	}
	k.acked, k.begun = x.m.acked(x.d), true
	x.m.set(func() { x.m.splits = append(x.m.splits, s) })
	x.fs.Fail(fault)
	snaps, err := x.a.SplitGroup(x.ctx, s.tag, ids)
	x.fs.Fail(nil)
	x.m.set(func() { s.last = uint32(len(x.m.ops) - 1) })
	if err != nil {
		x.m.set(func() { k.going, k.gone = true, true })
		return nil, err
	}
	return k, x.splitDone(s, snaps)
}

// amidSplit writes after the mirror was synced that is going to come off, and
// after it has come off. All marks are cleared then, before the split is certain,
// or late, when it is about to be on record that it is undone. fail is what making
// it certain fails with.
func (x *pcDirected) amidSplit(fail error, late bool) pcFault {
	victims := x.lastMirrors()
	var mu sync.Mutex
	catalogues, written := 0, false
	clean := func() error {
		err := x.clean()
		x.cut(x.fs, pcWorst, 0, "the end of a clean")
		return err
	}
	return func(op disktest.Op, name string) (err error) {
		if !mu.TryLock() { // what is done here calls as well
			return nil
		}
		defer mu.Unlock()
		switch {
		case atCatalogue(op, name):
			catalogues++
			switch {
			case catalogues == 1:
				x.looking.Store(true)
				return x.put(0, 8)
			case catalogues == 2:
				for nested := range int64(30) { // what undoes it is cut as well
					x.cut(x.fs, pcWorst[:1], nested, "the end of a split")
				}
				return fail
			case catalogues == 3 && late:
				return clean()
			}
		case catalogues == 1 && !written && isSyncOf(victims)(op, name):
			written = true
			if err = x.put(512, 8); err == nil && !late {
				err = clean()
			}
		}
		return err
	}
}

// Marks are cleared between the instant of a split and its being certain. Should
// it come to nothing, the mirror that came off lacks no more than the maps say,
// and no more does that of an older split.
func TestPowerCutAmidSplit(t *testing.T) {
	for _, c := range []struct {
		name string
		fail error
		late bool
	}{{"certain", nil, false}, {"undone", syscall.ENOSPC, false}, {"undone, cleaned late", syscall.ENOSPC, true}} {
		t.Run(c.name, func(t *testing.T) {
			x := newPCDirected(t)
			_, err := x.splitOff(nil)
			if err == nil {
				_, err = x.splitOff(x.amidSplit(c.fail, c.late))
				if !errors.Is(err, c.fail) {
					err = fmt.Errorf("the split: %w", err)
				} else {
					err = x.clean()
				}
			}
			x.end(t, err)
		})
	}
}

// The map of an epoch that ended stays whole when marks are cleared in the next,
// and when the split between them is given up.
func TestPowerCutAfterEpoch(t *testing.T) {
	x := newPCDirected(t)
	_, err := x.splitOff(nil)
	if err == nil {
		err = x.put(0, 8)
	}
	var k *pcMember
	if err == nil {
		k, err = x.splitOff(nil)
	}
	x.looking.Store(true)
	if err == nil {
		err = x.put(512, 8)
	}
	if err == nil {
		err = x.clean()
	}
	if err == nil {
		x.m.set(func() { k.going = true })
		err = x.a.Delete(x.ctx, k.snap)
		x.m.set(func() { k.gone = true })
	}
	x.end(t, err)
}

// A volume is reverted while a scrub mends it: the split that gets what it held
// has what was mended.
func TestPowerCutRevertAmidScrub(t *testing.T) {
	x := newPCDirected(t)
	id := driver.VolumeID(x.d.name)
	_, err := x.splitOff(nil)
	if err == nil {
		err = x.addMirrorIn(x.d, "c")
	}
	if err == nil {
		err = x.a.WaitInSync(x.ctx, id)
	}
	if err == nil {
		err = x.put(0, 8)
	}
	if err == nil {
		err = x.clean()
	}
	if err == nil { // the mirror that a revert takes
		err = x.damage(x.lastMirrors()[0], 0)
	}
	x.a.SetResyncRate(1) // the scrub goes through the first chunk, and waits
	if err == nil {
		err = x.a.StartScrub(id, ScrubOptions{Repair: true})
	}
	if err == nil {
		eventually(t, "the damage is mended", func() bool {
			info, _ := x.a.VolumeInfo(id)
			return info.Scrub.Repaired > 0
		})
		err = x.revert()
	}
	x.end(t, err)
}

// damage is what a disk does to a sector of a file.
func (x *pcDirected) damage(file string, i int64) error {
	f, err := x.fs.OpenFile(file, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(bytes.Repeat([]byte{'x'}, sector), i*sector)
	return errors.Join(err, f.Sync())
}

// Marks that were cleared to make room are gone when those have come that it was
// made for.
func TestPowerCutClearedMarks(t *testing.T) {
	x := newPCDirected(t)
	var err error
	for _, odd := range []int{0, 1} {
		for i := odd; i < pcSectors*sector/pcUnit && err == nil; i += 2 {
			err = x.put(i*pcUnit/sector, 8)
			x.looking.Store(odd == 1)
		}
		if err == nil && odd == 0 {
			err = x.devs[x.d].v.cleanNow()
		}
	}
	x.end(t, err)
}

// All files of a volume are copies, and not of one moment. The start finds that
// out once, and has to know it until they are equal.
func TestPowerCutCopiedMirrors(t *testing.T) {
	x := newPCDirected(t)
	err := x.put(0, 512)
	info, ierr := x.a.VolumeInfo(driver.VolumeID(x.d.name))
	if err = errors.Join(err, ierr, x.close()); err != nil {
		t.Fatal(err)
	}
	for i, m := range info.Replicas {
		if err := x.copied(m.File); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if err := x.damage(m.File, int64(100*i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for nested := range int64(30) {
		for _, seed := range pcWorst {
			e := x.m.before()
			e.after()
			e.damaged = true
			if err := pcCheck(x.fs.Cut(seed), e, seed, nested); err != nil {
				t.Fatalf("cut %d of the start that finds copies, at %d: %v", seed, nested, err)
			}
		}
	}
}

// copied puts a stable copy in a file's place.
func (x *pcDirected) copied(file string) error {
	f, err := x.fs.OpenFile(file, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, pcSectors*sector)
	if _, err := f.ReadAt(b, 0); err != nil {
		return err
	}
	return disk.Replace(x.fs, file, b)
}
