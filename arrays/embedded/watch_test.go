package embedded

import (
	"bytes"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
)

// spaceFS makes the pools' file systems as full as a test wants them.
type spaceFS struct {
	disk.FS
	free atomic.Int64
}

func (f *spaceFS) Space(dir string) (size, free int64, err error) {
	return 1000 * mib, f.free.Load(), nil
}

func TestPoolThresholds(t *testing.T) {
	fs, ev := &spaceFS{FS: disk.OS()}, &collector{}
	fs.free.Store(500 * mib)
	o := options(testDir(t))
	o.FS, o.OnEvent, o.LogIdle = fs, ev.add, 2*time.Millisecond
	o.Pools = map[string]string{"a": o.Pools["a"]}
	o.Limits = map[string]PoolLimit{"a": {LowBytes: 50 * mib}}
	a := open(t, o)
	if p := a.Pools()[0]; p.Health != HealthOK {
		t.Fatalf("%+v", p)
	}
	fs.free.Store(49 * mib)
	eventually(t, "low room is told", func() bool { return ev.count(PoolLow) == 1 })
	if p := a.Pools()[0]; p.Health != HealthLow {
		t.Fatalf("%+v", p)
	}
	fs.free.Store(52 * mib) // above, and not by a tenth
	before := ev.count(PoolRoom)
	fs.free.Store(40 * mib)
	fs.free.Store(60 * mib)
	eventually(t, "room is told", func() bool { return ev.count(PoolRoom) == before+1 })
	fs.free.Store(10)
	eventually(t, "low room is told again", func() bool { return ev.count(PoolLow) == 2 })
	if p := a.Pools()[0]; p.Health != HealthFull {
		t.Fatalf("%+v", p)
	}
}

func TestThresholdHysteresis(t *testing.T) {
	fs, ev := &spaceFS{FS: disk.OS()}, &collector{}
	o := options(testDir(t))
	o.FS, o.OnEvent, o.LogIdle = fs, ev.add, time.Hour // the test looks by itself
	o.Pools = map[string]string{"a": o.Pools["a"]}
	a := open(t, o)
	for _, free := range []int64{101, 99, 101, 99, 109, 50, 110, 111, 99} {
		fs.free.Store(free * mib)
		a.watchRoom(a.pools["a"])
	}
	a.Close()
	if low, room := ev.count(PoolLow), ev.count(PoolRoom); low != 2 || room != 1 {
		t.Fatalf("told %d times that room is low, %d times that it is back", low, room)
	}
}

func TestPoolLimit(t *testing.T) {
	o := options(testDir(t))
	o.Limits = map[string]PoolLimit{"a": {Limit: 4 * mib}, "b": {Limit: 64 * mib}}
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "b") // thin: more than fits
	write(t, h, 0, 6*mib, '1')
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.AddMirror(t.Context(), info.ID, "a"); kindOf(err) != driver.NoSpace || !strings.Contains(err.Error(), "limited") {
		t.Fatalf("a mirror that does not fit: %v", err)
	}
	_, h2 := create(t, a, "web", 512*mib, "a")
	write(t, h2, 0, 4*mib, '2') // not held to the limit
	if err := h2.Sync(); err != nil {
		t.Fatal(err)
	}
	p := a.Pools()[0]
	if p.Used < 4*mib || p.Provisioned != 512*mib || p.Free != 0 || p.Size != 4*mib || p.Health != HealthFull {
		t.Fatalf("%+v", p)
	}
	if _, err := a.CreateVolume(t.Context(), CreateVolume{Name: "third", Size: mib, Pools: []string{"a"}}); kindOf(err) != driver.NoSpace {
		t.Fatalf("a volume in a pool at its limit: %v", err)
	}
	if _, err := a.GrowVolume(t.Context(), "web", 1024*mib); kindOf(err) != driver.NoSpace {
		t.Fatalf("growing in a pool at its limit: %v", err)
	}
	if _, err := a.GrowVolume(t.Context(), "db", 32*mib); err != nil {
		t.Fatal(err)
	}
}

// A disk that is unmounted and mounted again while the array runs.
func TestPoolVanishesAndComesBack(t *testing.T) {
	o, _, ev := faulty(t)
	o.LogIdle = 2 * time.Millisecond
	a := open(t, o)
	both, h := create(t, a, "both", 16*mib, "a", "b")
	_, alone := create(t, a, "alone", 16*mib, "b")
	write(t, h, 0, mib, '1')
	write(t, alone, 0, mib, '5')
	snapped, _ := create(t, a, "snapped", 16*mib, "a", "b")
	prepare(t, a, "t", snapped.ID)
	s := split(t, a, "t", snapped.ID)

	away := o.Pools["b"] + ".away"
	if err := os.Rename(o.Pools["b"], away); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(o.Pools["b"], 0o700); err != nil { // the mount point
		t.Fatal(err)
	}
	eventually(t, "the pool is offline", func() bool { return ev.count(PoolOffline) == 1 })
	eventually(t, "its mirror is dropped", func() bool { return ev.count(MirrorDropped) == 1 })
	write(t, h, mib, mib, '2')
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	if p := a.Pools()[1]; p.Health != HealthOffline || !strings.Contains(p.Reason, "mounted") {
		t.Fatalf("%+v", p)
	}
	eventually(t, "the split can't be used", func() bool { return ev.count(SnapshotInvalid) == 1 })
	if _, err := a.OpenSnapshot(s.ID, "test"); err == nil {
		t.Fatal("a split in a pool that is away was opened")
	}
	alone.Close()
	h.Close()
	a.Close()

	a = open(t, o) // now "alone" is offline
	if vi, _ := a.VolumeInfo("alone"); vi.State != driver.Broken {
		t.Fatalf("%+v", vi)
	}
	os.Remove(o.Pools["b"])
	if err := os.Rename(away, o.Pools["b"]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pool is back", func() bool { return ev.count(PoolBack) == 1 })
	d, err := a.OpenVolume("alone", "test")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := read(t, d, 0, mib); !bytes.Equal(got, bytes.Repeat([]byte{'5'}, mib)) {
		t.Fatal("content lost")
	}
	write(t, d, 0, 4096, '6')
	if r, err := a.OpenSnapshot(s.ID, "test"); err != nil {
		t.Fatal(err)
	} else {
		r.Close()
	}
	eventually(t, "the mirror has what it missed", func() bool {
		vi, _ := a.VolumeInfo(both.ID)
		return vi.Mirrors == 2
	})
	sameMirrors(t, a, both.ID)
}

func TestPoolBecomesReadOnly(t *testing.T) {
	o, fs, ev := faulty(t)
	o.LogIdle = 2 * time.Millisecond
	a := open(t, o)
	fs.set(func(op, path string) error {
		if op == "open" && strings.HasSuffix(path, "/b/"+poolFile) {
			return syscall.EROFS
		}
		return nil
	})
	eventually(t, "it is told", func() bool { return ev.count(PoolReadOnly) == 1 })
	if p := a.Pools()[1]; p.Health != HealthReadOnly {
		t.Fatalf("%+v", p)
	}
	_, err := a.CreateVolume(t.Context(), CreateVolume{Name: "db", Size: mib, Pools: []string{"b"}})
	wantKind(t, err, driver.NotPermitted)
	fs.set(nil)
	eventually(t, "it is told that it is back", func() bool { return ev.count(PoolBack) == 1 })
	create(t, a, "db", mib, "b")
}

func TestClockJumps(t *testing.T) {
	var skew atomic.Int64
	ev := &collector{}
	o := options(testDir(t))
	o.OnEvent, o.LogIdle = ev.add, 2*time.Millisecond
	o.Now = func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b", "c")
	for i, by := range []time.Duration{time.Hour, -48 * time.Hour, 0} {
		skew.Store(int64(by))
		eventually(t, "the jump is told", func() bool { return ev.count(ClockJumped) == i+1 })
		write(t, h, int64(i)*mib, mib, byte('1'+i))
		prepare(t, a, "t", info.ID)
		s := split(t, a, "t", info.ID)
		if err := a.Resync(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if err := a.WaitInSync(t.Context(), info.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	sameMirrors(t, a, info.ID)
	es := a.Events(EventFilter{})
	for i := 1; i < len(es); i++ {
		if es[i].Seq != es[i-1].Seq+1 {
			t.Fatalf("events out of order: %+v", es)
		}
	}
}

// reader prefers the mirror that has less to do.
func TestReadsGoToTheLeastBusyMirror(t *testing.T) {
	a := open(t, options(testDir(t)))
	info, h := create(t, a, "db", 16*mib, "a", "b", "c")
	write(t, h, 0, mib, '1')
	v, err := a.find(info.ID)
	if err != nil {
		t.Fatal(err)
	}
	e := v.enter()
	defer e.leave()
	for i, busy := range [][]int32{{0, 1, 1}, {2, 0, 1}, {2, 3, 1}} {
		for j, n := range busy {
			e.insync[j].busy.Store(n)
		}
		if got := e.reader(); got != e.insync[i] {
			t.Errorf("with %v reads under way it reads from %s", busy, got.pool)
		}
	}
	for _, p := range e.insync {
		p.busy.Store(0)
	}
}

// Reads that are under way at once are spread over all mirrors in sync, and
// none goes to one that a crash may have left different.
func TestReadsAreSpread(t *testing.T) {
	o, fs, _ := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b", "c")
	write(t, h, 0, 16*mib, '1')
	const n = 9
	arrived := make(chan string, n)
	release := make(chan struct{})
	hooked := make(chan error, n)
	fs.set(nil)
	v, _ := a.find(info.ID)
	v.state.Lock()
	for _, p := range v.cur.insync {
		p.f = &gatedFile{File: p.f, arrived: arrived, release: release, pool: p.pool}
	}
	v.state.Unlock()
	counts := map[string]int{}
	for range n { // one after the other, so that each sees those before it
		go func() {
			_, err := h.ReadAt(make([]byte, 4096), 0)
			hooked <- err
		}()
		counts[<-arrived]++
	}
	close(release)
	for range n {
		if err := <-hooked; err != nil {
			t.Fatal(err)
		}
	}
	for pool, k := range counts {
		if k != n/3 {
			t.Errorf("pool %s served %d of %d reads: %v", pool, k, n, counts)
		}
	}
}

type gatedFile struct {
	disk.File
	pool    string
	arrived chan string
	release chan struct{}
}

func (f *gatedFile) ReadAt(p []byte, off int64) (int, error) {
	f.arrived <- f.pool
	<-f.release
	return f.File.ReadAt(p, off)
}
