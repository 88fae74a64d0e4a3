package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
)

const (
	pcUnit    = 64 << 10    // of intent logs
	pcMarked  = 6           // regions that may be marked
	pcTimeout = time.Minute // for what should take no time at all
)

func pcOptions(fs disk.FS) Options {
	return Options{
		FS: fs, StateDir: "/var/lib/cleave",
		Pools:    map[string]string{"a": "/disks/a", "b": "/disks/b", "c": "/disks/c"},
		LogLimit: pcMarked * pcUnit, LogIdle: time.Hour, logUnit: pcUnit, retryAfter: time.Millisecond,
	}
}

// pcCheck starts an array on what a cut left and finds out whether it is what
// the expectation allows. With nested, the start itself is cut at that sync
// point, and what that leaves is checked in the same way.
func pcCheck(fs *disktest.FS, e *pcExpect, seed uint64, nested int64) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), pcTimeout)
	defer cancel()
	var again *disktest.FS
	if nested > 0 {
		fs.OnSync(func(p disktest.Point) {
			if p.N == nested {
				again = fs.Cut(seed)
			}
		})
	}
	var ev collector
	o := pcOptions(fs)
	o.OnEvent = ev.add
	a, err := Open(ctx, o)
	if err != nil {
		return err
	}
	c := pcChecker{ctx: ctx, a: a, fs: fs, e: e, rng: rand.New(rand.NewPCG(seed, 1))}
	err = c.all()
	if nested > 0 { // what comes now changes what there is
		fs.OnSync(nil)
	}
	if err == nil {
		err = c.giveBack()
	}
	err = errors.Join(err, a.Close(), ev.damage(e.damaged))
	if err == nil {
		err = c.leftBehind()
	}
	if err != nil || again == nil {
		return err
	}
	if err := pcCheck(again, e, seed, 0); err != nil {
		return fmt.Errorf("cut again at sync point %d of the restart: %w", nested, err)
	}
	return nil
}

// damage says that something was lost that no loss of power accounts for. A map
// may be, if more was done than that.
func (c *collector) damage(damaged bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if e.Kind == MapDamaged && damaged {
			continue
		}
		switch e.Kind {
		case MirrorDropped, VolumeOffline, SnapshotInvalid, MapDamaged, LeftOver, ResyncStalled:
			return fmt.Errorf("event %s: %s", e.Kind, e.Text)
		}
	}
	return nil
}

type pcChecker struct {
	ctx context.Context
	a   *Array
	fs  *disktest.FS
	e   *pcExpect
	rng *rand.Rand
}

func (c *pcChecker) all() error {
	if err := c.marks(); err != nil {
		return err
	}
	if err := c.volumes(); err != nil {
		return err
	}
	for i := range c.e.splits {
		if err := c.split(&c.e.splits[i]); err != nil {
			return err
		}
	}
	return c.e.checkSwap()
}

// marks honours the bound of what is copied after a crash.
func (c *pcChecker) marks() error {
	for _, v := range c.a.allVolumes() {
		if n := v.log.marked(); n > pcMarked && !c.e.damaged {
			return fmt.Errorf("%s: %d regions were marked, and %d is the limit", v.label, n, pcMarked)
		}
	}
	return nil
}

func (c *pcChecker) volumes() error {
	found := map[string]bool{}
	for _, info := range c.a.Volumes() {
		found[info.Name] = true
	}
	for i := range c.e.vols {
		x := &c.e.vols[i]
		there := found[x.d.name]
		x.there = there
		delete(found, x.d.name)
		if there && !x.may || !there && x.must {
			return fmt.Errorf("volume %s: there: %v, has to be: %v, may be: %v", x.d.name, there, x.must, x.may)
		}
		if there {
			if err := c.volume(x); err != nil {
				return err
			}
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("volumes that nobody made: %v", found)
	}
	return nil
}

func (c *pcChecker) content(name string) ([]byte, error) {
	h, err := c.a.OpenVolume(driver.VolumeID(name), "check")
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return readAll(h)
}

// volume is read while mirrors may still differ, and once more when they are
// equal.
func (c *pcChecker) volume(x *pcExpectDevice) error {
	first, err := c.content(x.d.name)
	if err != nil {
		return err
	}
	if err := c.e.checkContent(x, first); err != nil {
		return err
	}
	return c.equal(x.d.name, first)
}

// equal waits until a volume's mirrors are, and compares them.
func (c *pcChecker) equal(name string, want []byte) error {
	if err := c.a.WaitInSync(c.ctx, driver.VolumeID(name)); err != nil {
		return err
	}
	info, err := c.a.VolumeInfo(driver.VolumeID(name))
	if err != nil {
		return err
	}
	for _, m := range info.Replicas {
		if m.State != driver.Synchronized {
			continue
		}
		got, err := c.raw(m.File)
		if err != nil {
			return err
		}
		if len(got) > len(want) && len(bytes.Trim(got[len(want):], "\x00")) == 0 {
			got = got[:len(want)] // an enlargement that was not completed
		}
		if !bytes.Equal(got, want) {
			i := 0
			for i < min(len(got), len(want)) && got[i] == want[i] {
				i++
			}
			return fmt.Errorf("volume %s: mirror in pool %s differs from what was read first, from sector %d on", name, m.Pool, i/sector)
		}
	}
	return nil
}

func (c *pcChecker) raw(path string) ([]byte, error) {
	f, err := c.fs.OpenFile(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, fi.Size())
	_, err = f.ReadAt(b, 0)
	return b, err
}

func (c *pcChecker) split(x *pcExpectSplit) error {
	ss, err := c.a.Lookup(c.ctx, x.s.tag)
	if err != nil {
		return err
	}
	if x.whole && len(ss) != 0 && len(ss) != len(x.members) {
		return fmt.Errorf("split %s has %d of its %d members", x.s.tag, len(ss), len(x.members))
	}
	var contents [][]byte
	for i := range x.members {
		k := &x.members[i]
		j := slices.IndexFunc(ss, func(s driver.Snapshot) bool { return c.isOf(s, x.s.members[i]) })
		if j < 0 && k.must || j >= 0 && !k.may {
			return fmt.Errorf("split %s: there: %v, has to be: %v, may be: %v", k.d.name, j >= 0, k.must, k.may)
		}
		if j < 0 {
			continue
		}
		h, err := c.a.OpenSnapshot(ss[j].ID, "check")
		if err != nil {
			return err
		}
		content, err := readAll(h)
		h.Close()
		if err != nil {
			return err
		}
		k.there = true
		if k.known() {
			if err := c.e.checkContent(k, content); err != nil {
				return err
			}
		}
		contents = append(contents, content)
	}
	if len(contents) == len(x.members) && !x.members[0].known() {
		ceiling := c.e.ceiling
		if x.last > 0 {
			ceiling = min(ceiling, x.last)
		}
		if _, err := c.e.m.checkSplit(x.s, x.sources, ceiling, contents); err != nil {
			return err
		}
	}
	return nil
}

func (c *pcChecker) isOf(s driver.Snapshot, k *pcMember) bool {
	r := c.record(s.ID)
	return r != nil && r.VolumeName == k.of.name
}

// giveBack resyncs or deletes all splits and repairs mirrors: they are equal
// again, so that what the bitmaps said was enough.
func (c *pcChecker) giveBack() error {
	for _, s := range c.a.Snapshots() {
		_, gone := c.a.VolumeInfo(s.Volume)
		var err error
		if gone != nil || s.Method != driver.MirrorSplit || c.rng.IntN(4) == 0 {
			err = c.a.Delete(c.ctx, s.ID)
		} else {
			err = c.a.Resync(c.ctx, s.ID)
		}
		if err != nil {
			return err
		}
	}
	for _, info := range c.a.Volumes() {
		if slices.ContainsFunc(info.Replicas, func(m MirrorInfo) bool { return m.State == driver.Broken }) {
			if err := c.a.RepairVolume(c.ctx, driver.VolumeID(info.Name)); err != nil {
				return err
			}
		}
		content, err := c.content(info.Name)
		if err != nil {
			return err
		}
		if err := c.equal(info.Name, content); err != nil {
			return fmt.Errorf("after the resync: %w", err)
		}
	}
	return nil
}

// leftBehind finds files that belong to nothing, after a clean end.
func (c *pcChecker) leftBehind() error {
	cat, want := c.a.store.read(), map[string]bool{
		c.a.store.path: true, path.Join(path.Dir(c.a.maps), lockFile): true,
	}
	for name := range c.a.pools {
		want[c.a.poolPath(name, poolFile)], want[c.a.poolPath(name, lockFile)] = true, true
	}
	for _, v := range cat.Volumes {
		want[c.a.mapPath(v.ID.String()+".log")] = true
		for _, m := range v.Mirrors {
			want[c.a.poolPath(m.Pool, m.File)], want[c.a.poolPath(m.Pool, labelPath(m.File))] = true, true
		}
	}
	for _, f := range c.fs.Files() {
		if strings.HasPrefix(path.Base(f), eventsFile) {
			continue // never synced: it may be there or not
		}
		if !want[f] {
			return fmt.Errorf("left behind: %s", f)
		}
		delete(want, f)
	}
	for f := range want {
		if !strings.HasSuffix(f, lockFile) {
			return fmt.Errorf("missing: %s: %w", f, os.ErrNotExist)
		}
	}
	if len(cat.Trash) > 0 {
		return fmt.Errorf("left in the trash: %v", cat.Trash)
	}
	return nil
}

func (c *pcChecker) record(id driver.SnapshotID) *snapshotRecord {
	for _, r := range c.a.store.read().Snapshots {
		if driver.SnapshotID(r.ID.String()) == id {
			return &r
		}
	}
	return nil
}
