package embedded

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk/loopfs"
	"github.com/cleave-san/cleave/lun"
)

// tmpfs is mounted for the test with the options, and remount changes them.
func tmpfs(t *testing.T, o string) (dir string, remount func(o string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir = t.TempDir()
	mount := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
			t.Fatalf("mount %v: %v\n%s", args, err, out)
		}
	}
	mount("-t", "tmpfs", "-o", o, "none", dir)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
			_ = exec.Command("umount", "-l", dir).Run()
		}
	})
	return dir, func(o string) { t.Helper(); mount("-o", "remount,"+o, dir) }
}

// A pool that is mounted read-only when the array starts is like one that is away,
// and is taken into use when it is mounted for writing. While it is in use the
// kernel refuses to take that away.
func TestPoolMountedReadOnly(t *testing.T) {
	dir, remount := tmpfs(t, "size=64m")
	ev := &collector{}
	o := options(testDir(t))
	o.OnEvent, o.LogIdle = ev.add, 2*time.Millisecond
	o.Pools = map[string]string{"a": filepath.Join(dir, "pool"), "b": o.Pools["b"]}
	a := open(t, o)
	both, h := create(t, a, "both", 4*mib, "a", "b")
	alone, g := create(t, a, "alone", 4*mib, "a")
	write(t, h, 0, 4*mib, '1')
	write(t, g, 0, 4*mib, '2')
	if out, err := exec.Command("mount", "-o", "remount,ro", dir).CombinedOutput(); err == nil {
		t.Fatalf("a pool in use was mounted read-only: %s", out)
	}
	h.Close()
	g.Close()
	a.Close()

	remount("ro")
	a = open(t, o)
	eventually(t, "all is told", func() bool { return ev.count(MirrorDropped) == 1 && ev.count(VolumeOffline) == 1 })
	if p := a.Pools()[0]; p.Health != HealthOffline || !strings.Contains(p.Reason, "read-only") || strings.Contains(p.Reason, "\n") {
		t.Fatalf("%+v", p)
	}
	h = openVolume(t, a, both.ID)
	write(t, h, 0, 2*mib, '3')
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	g = openVolume(t, a, alone.ID)
	if _, err := g.WriteAt(make([]byte, 512), 0); !errors.Is(err, errOffline) {
		t.Fatalf("a write to a volume that is offline: %v", err)
	}

	remount("rw")
	eventually(t, "the mirror is back", func() bool {
		vi, _ := a.VolumeInfo(both.ID)
		return vi.Mirrors == 2
	})
	if got := mirrored(t, a, both.ID); !bytes.Equal(got, append(bytes.Repeat([]byte{'3'}, 2*mib), bytes.Repeat([]byte{'1'}, 2*mib)...)) {
		t.Fatal("stable data lost")
	}
	wantContent(t, a, alone.ID, '2')
	write(t, g, 0, mib, '4')
	if err := g.Sync(); err != nil || ev.count(PoolBack) != 1 {
		t.Fatalf("%v, %+v", err, ev.events)
	}
	g.Close()
	h.Close()
	a.Close()
}

// The only pool of a volume gets full: a write that does not fit fails and says
// why, no mirror is dropped and nothing else is harmed, and with more room it goes
// on.
func TestOnlyPoolFull(t *testing.T) {
	dir, remount := tmpfs(t, "size=2m")
	ev := &collector{}
	o := options(testDir(t))
	o.OnEvent, o.LogIdle = ev.add, 2*time.Millisecond
	o.Pools = map[string]string{"a": filepath.Join(dir, "pool")}
	a := open(t, o)
	info, h := create(t, a, "db", 4*mib, "a")
	want := make([]byte, 4*mib)
	copy(want, write(t, h, 0, mib, '1'))
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	var full error
	off := int64(mib)
	for ; full == nil && off < 4*mib; off += 64 << 10 {
		_, full = h.WriteAt(bytes.Repeat([]byte{'2'}, 64<<10), off)
	}
	if !errors.Is(full, lun.ErrNoSpace) || kindOf(full) != driver.NoSpace || strings.Contains(full.Error(), "\n") {
		t.Fatalf("a write to a full pool: %v", full)
	}
	eventually(t, "low room is told", func() bool { return ev.count(PoolLow) == 1 })
	if got := read(t, h, 0, mib); !bytes.Equal(got, want[:mib]) {
		t.Fatal("stable data lost")
	}
	write(t, h, 0, 4096, '3') // where there is room already
	copy(want, bytes.Repeat([]byte{'3'}, 4096))
	remount("size=16m")
	copy(want[mib:], write(t, h, mib, 3*mib, '4'))
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "room is told", func() bool { return ev.count(PoolRoom) == 1 })
	if n := ev.count(MirrorDropped) + ev.count(VolumeOffline); n != 0 {
		t.Fatalf("%+v", ev.events)
	}
	h.Close()
	a.Close()
	a = open(t, o)
	if got := mirrored(t, a, info.ID); !bytes.Equal(got, want) {
		t.Fatal("stable data lost")
	}
	a.Close()
}

// The state directory's file system gets full. Volumes are written to until more
// regions changed than the log may mark, and say what is wrong then; a split is
// refused and leaves nothing; and with more room all goes on.
func TestStateFull(t *testing.T) {
	dir, remount := tmpfs(t, "size=4m")
	ev := &collector{}
	o := options(testDir(t))
	o.OnEvent, o.LogIdle, o.LogLimit = ev.add, 2*time.Millisecond, 8*mib
	o.StateDir = filepath.Join(dir, "state")
	a := open(t, o)
	const size = 64 << 30
	info, h := create(t, a, "db", size, "a", "b", "c", "a")
	older := split(t, a, "older", info.ID)
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 0))
	at := map[int64]byte{}
	scatter := func() (err error) {
		for i := 0; i < 400 && err == nil; i++ {
			off := rng.Int64N(size/4096) * 4096
			if _, err = h.WriteAt(bytes.Repeat([]byte{byte(i)}, 4096), off); err == nil {
				at[off] = byte(i)
			}
		}
		return err
	}
	if err := scatter(); len(at) < 8*mib/regionSize/2 || kindOf(err) != driver.NoSpace || !errors.Is(err, lun.ErrNoSpace) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("after %d writes: %v", len(at), err)
	}
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "low room is told", func() bool { return ev.count(StateLow) == 1 })
	if _, err := a.SplitGroup(t.Context(), "t", []driver.VolumeID{info.ID}); kindOf(err) != driver.NoSpace || strings.Contains(err.Error(), "\n") {
		t.Fatalf("a split without room for its record: %v", err)
	}
	if ss, err := a.Lookup(t.Context(), "t"); len(ss) != 0 || err != nil {
		t.Fatalf("%v, %v", ss, err)
	}
	remount("size=64m")
	if err := errors.Join(scatter(), h.Sync()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "room is told", func() bool { return ev.count(StateRoom) == 1 })
	prepare(t, a, "t", info.ID)
	split(t, a, "t", info.ID)
	if err := a.Resync(t.Context(), older.ID); err != nil {
		t.Fatal(err)
	}
	if err := a.WaitInSync(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	vi, err := a.VolumeInfo(info.ID)
	if err != nil || vi.Mirrors != 3 {
		t.Fatalf("%+v, %v", vi, err)
	}
	for _, m := range vi.Replicas {
		f, err := os.Open(m.File)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for off, c := range at {
			if got := make([]byte, 4096); readFull(f, got, off) != nil || !bytes.Equal(got, bytes.Repeat([]byte{c}, 4096)) {
				t.Fatalf("mirror in pool %s lost what was written at %d", m.Pool, off)
			}
		}
	}
	h.Close()
	a.Close()
}

// A pool's file system finds an error in itself while volumes are in use, and
// can't be written to any more. Volumes with a mirror elsewhere go on; one without
// can be read, and says why it can't be written to. The file system is taken away,
// checked and mounted again while the array goes on, and so does all that was on
// it.
func TestFileSystemTurnsReadOnly(t *testing.T) {
	sick := loopfs.Mount(t, loopfs.Ext4, 64*mib)
	ev := &collector{}
	o := options(testDir(t))
	o.OnEvent, o.LogIdle = ev.add, 2*time.Millisecond
	o.Pools = map[string]string{"a": filepath.Join(sick.Dir, "pool"), "b": o.Pools["b"]}
	a := open(t, o)
	both, h := create(t, a, "both", 16*mib, "a", "b")
	alone, g := create(t, a, "alone", 4*mib, "a")
	split, _ := create(t, a, "split", 4*mib, "b", "a")
	prepare(t, a, "t", split.ID)
	snaps, err := a.SplitGroup(t.Context(), "t", []driver.VolumeID{split.ID})
	if err != nil {
		t.Fatal(err)
	}
	want := write(t, h, 0, 4*mib, '1')
	stable := write(t, g, 0, 4*mib, '2')
	if err := errors.Join(h.Sync(), g.Sync()); err != nil {
		t.Fatal(err)
	}

	sick.Fail(t)
	write(t, h, mib, mib, '3')
	copy(want[mib:], bytes.Repeat([]byte{'3'}, mib))
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	_, err = g.WriteAt(make([]byte, 4096), 0)
	if err == nil {
		err = g.Sync()
	}
	if !errors.Is(err, syscall.EROFS) || kindOf(err) != driver.NotPermitted || strings.Contains(err.Error(), "\n") {
		t.Fatalf("a write to what can't be written to: %v", err)
	}
	eventually(t, "the pool is told to be read-only", func() bool { return ev.count(PoolReadOnly) == 1 })
	if ps := a.Pools(); ps[0].Health != HealthReadOnly || !strings.Contains(ps[0].Reason, "read-only") {
		t.Fatalf("%+v", ps)
	}
	eventually(t, "the mirror is told to be lost", func() bool { return ev.count(MirrorDropped) == 1 })
	vi, _ := a.VolumeInfo(both.ID)
	if vi.Mirrors != 1 || !strings.Contains(vi.Replicas[0].Reason, "read-only") {
		t.Fatalf("%+v\n%+v", vi, ev.events)
	}
	_, err = a.CreateVolume(t.Context(), CreateVolume{Name: "new", Size: mib, Pools: []string{"a"}})
	wantKind(t, err, driver.NotPermitted)

	// The operator stops who uses what is only there.
	g.Close()
	sick.Leave(t)
	eventually(t, "the pool is away", func() bool { return ev.count(PoolOffline) == 1 })
	sick.Mend(t)
	eventually(t, "the pool is back", func() bool { return ev.count(PoolBack) > 0 && a.Pools()[0].Health == HealthOK })
	wantContent(t, a, alone.ID, stable[0])
	g = openVolume(t, a, alone.ID)
	write(t, g, 0, mib, '4')
	if err := g.Sync(); err != nil {
		t.Fatal(err)
	}
	if got := snapContent(t, a, snaps[0].ID); len(got) != 4*mib {
		t.Fatal("the split is not there")
	}
	if err := a.Resync(t.Context(), snaps[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := a.RepairVolume(t.Context(), both.ID); err != nil {
		t.Fatal(err)
	}
	for _, v := range []driver.VolumeID{both.ID, split.ID} {
		eventually(t, "both mirrors are in sync", func() bool {
			vi, _ := a.VolumeInfo(v)
			return vi.Mirrors == 2
		})
	}
	if got := mirrored(t, a, both.ID); !bytes.Equal(got[:4*mib], want) {
		t.Fatal("stable data lost")
	}
}
