package embedded

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("CLEAVE_TEST_CRASH_WRITER"); dir != "" {
		crashWriter(dir) // until it is killed
	}
	goleak.VerifyTestMain(m)
}

// testDir is on tmpfs where there is one, so that thousands of syncs are cheap.
func testDir(t testing.TB) string {
	base := ""
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "cleave-embedded-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

type collector struct {
	mu     sync.Mutex
	events []Event
}

func (c *collector) add(e Event) {
	c.mu.Lock()
	c.events = append(c.events, e)
	c.mu.Unlock()
}

func (c *collector) count(k EventKind) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if e.Kind == k {
			n++
		}
	}
	return n
}

func options(dir string) Options {
	return Options{
		StateDir: filepath.Join(dir, "state"),
		Pools: map[string]string{
			"a": filepath.Join(dir, "a"), "b": filepath.Join(dir, "b"), "c": filepath.Join(dir, "c"),
		},
	}
}

func open(t testing.TB, o Options) *Array {
	t.Helper()
	a, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func create(t testing.TB, a *Array, name string, size int64, pools ...string) (VolumeInfo, *Volume) {
	t.Helper()
	info, err := a.CreateVolume(t.Context(), CreateVolume{Name: name, Size: size, Pools: pools})
	if err != nil {
		t.Fatal(err)
	}
	h, err := a.OpenVolume(info.ID, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return info, h
}

func write(t testing.TB, d lun.Device, off int64, n int, seed byte) []byte {
	t.Helper()
	p := bytes.Repeat([]byte{seed}, n)
	if _, err := d.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

func read(t testing.TB, d lun.Device, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if _, err := d.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

// sameMirrors compares the raw files of a volume's mirrors in sync.
func sameMirrors(t testing.TB, a *Array, v driver.VolumeID) (files []string) {
	t.Helper()
	info, err := a.VolumeInfo(v)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range info.Replicas {
		if m.State == driver.Synchronized {
			files = append(files, m.File)
		}
	}
	for _, f := range files[min(1, len(files)):] {
		if !sameContent(t, files[0], f) {
			t.Fatalf("mirrors of %s differ", info.Name)
		}
	}
	return files
}

// sameContent compares piece by piece: memory for whole files is what takes the
// race detector longest.
func sameContent(t testing.TB, x, y string) bool {
	t.Helper()
	var fs [2]*os.File
	var bufs [2][]byte
	for i, name := range []string{x, y} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fs[i], bufs[i] = f, make([]byte, 256<<10)
	}
	for {
		n, err := io.ReadFull(fs[0], bufs[0])
		m, merr := io.ReadFull(fs[1], bufs[1])
		if n != m || !bytes.Equal(bufs[0][:n], bufs[1][:n]) {
			return false
		}
		if err != nil || merr != nil {
			return err == merr && err != nil
		}
	}
}

// mirrored is what a volume holds, on all of its mirrors in sync.
func mirrored(t testing.TB, a *Array, v driver.VolumeID) []byte {
	t.Helper()
	b, err := os.ReadFile(sameMirrors(t, a, v)[0])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func prepare(t testing.TB, a *Array, tag driver.Tag, vs ...driver.VolumeID) {
	t.Helper()
	if err := a.Prepare(t.Context(), vs, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true}); err != nil {
		t.Fatal(err)
	}
}

func split(t testing.TB, a *Array, tag driver.Tag, v driver.VolumeID) driver.Snapshot {
	t.Helper()
	s, err := a.Split(t.Context(), tag, v)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantKind(t testing.TB, err error, k driver.Kind) {
	t.Helper()
	if err == nil || kindOf(err) != k {
		t.Fatalf("error %v is of kind %v, want %v", err, kindOf(err), k)
	}
}

const mib = 1 << 20

func TestLifeOfAVolume(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	info, h := create(t, a, "db", 8*mib, "a", "b")
	if info.State != driver.Synchronized || info.Mirrors != 2 {
		t.Fatalf("fresh volume: %+v", info)
	}
	x := write(t, h, 4096, 3*mib, 'x')
	if !bytes.Equal(read(t, h, 4096, 3*mib), x) {
		t.Fatal("read differs from what was written")
	}
	if err := h.Trim(mib, mib); err != nil {
		t.Fatal(err)
	}
	if err := h.WriteZeroes(2*mib, 4096); err != nil {
		t.Fatal(err)
	}
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	whole := mirrored(t, a, info.ID)
	if !bytes.Equal(whole[mib:2*mib+4096], make([]byte, mib+4096)) {
		t.Fatal("a trimmed or zeroed range does not read as zeroes")
	}
	if err := a.DeleteVolume(t.Context(), info.ID); kindOf(err) != driver.Busy {
		t.Fatalf("deleting a volume in use: %v", err)
	}
	if _, err := h.WriteAt(make([]byte, 512), 8*mib); !errors.Is(err, lun.ErrOutOfRange) {
		t.Fatalf("write beyond the end: %v", err)
	}
	if _, err := a.GrowVolume(t.Context(), info.ID, 16*mib); err != nil {
		t.Fatal(err)
	}
	write(t, h, 15*mib, mib, 'g')
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.WriteAt(make([]byte, 512), 0); !errors.Is(err, lun.ErrClosed) {
		t.Fatalf("write after Close: %v", err)
	}

	a = open(t, o)
	if got := mirrored(t, a, "db"); !bytes.Equal(got[:8*mib], whole) || got[15*mib] != 'g' {
		t.Fatal("content changed over a restart")
	}
	if err := a.DeleteVolume(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	if err := a.DeleteVolume(t.Context(), "db"); err != nil {
		t.Fatalf("deleting what is not there: %v", err)
	}
	a.Close()
	for _, p := range o.Pools {
		left, _ := filepath.Glob(filepath.Join(p, "*"))
		if len(left) > 2 { // the pool's own record and lock
			t.Errorf("files left after the volume was deleted: %v", left)
		}
	}
}

func TestSplitAndResync(t *testing.T) {
	o := options(testDir(t))
	var ev collector
	o.OnEvent = ev.add
	a := open(t, o)
	info, h := create(t, a, "db", 256*mib, "a", "b")
	write(t, h, 0, 8*mib, '1')

	if _, err := a.Split(t.Context(), "t1", info.ID); kindOf(err) != driver.NeedsConsent {
		t.Fatalf("split without consent: %v", err)
	}
	err := a.Prepare(t.Context(), []driver.VolumeID{info.ID}, driver.PrepareOptions{Tag: "t1"})
	wantKind(t, err, driver.NeedsConsent)
	prepare(t, a, "t1", info.ID)
	s := split(t, a, "t1", info.ID)
	if again := split(t, a, "t1", info.ID); again.ID != s.ID {
		t.Fatal("the same tag gave another snapshot")
	}
	if s.Identity == info.Identity || s.Identity.IsZero() || s.Group == "" {
		t.Fatalf("snapshot's identity or group: %+v", s)
	}
	write(t, h, mib, 100, '2')
	write(t, h, 200*mib, 100, '2')

	r, err := a.OpenSnapshot(s.ID, "reader")
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, r, 0, 8*mib); !bytes.Equal(got, bytes.Repeat([]byte{'1'}, 8*mib)) {
		t.Fatal("the snapshot changed after the split")
	}
	if _, err := r.WriteAt(make([]byte, 512), 0); !errors.Is(err, lun.ErrReadOnly) {
		t.Fatalf("write to a read-only snapshot: %v", err)
	}
	if _, err := r.File().WriteAt([]byte("x"), 0); err == nil {
		t.Fatal("the descriptor of a read-only snapshot can be written to")
	}
	wantKind(t, a.Resync(t.Context(), s.ID), driver.Busy)
	wantKind(t, a.Delete(t.Context(), s.ID), driver.Busy)
	r.Close()

	w, err := a.OpenWritable(s.ID, "writer")
	if err != nil {
		t.Fatal(err)
	}
	if ss, _ := a.Lookup(t.Context(), "t1"); ss[0].State != driver.Split {
		t.Fatal("opening for writing skewed the split")
	}
	write(t, w, 3*mib, 100, '3')
	if ss, _ := a.Lookup(t.Context(), "t1"); len(ss) != 1 || ss[0].State != driver.Skewed {
		t.Fatalf("a split that was written to: %+v", ss)
	}
	w.Close()
	if n := a.Snapshots()[0].ResyncBytes; n != 3*regionSize {
		t.Fatalf("resync would copy %d bytes, want three regions", n)
	}

	wantKind(t, a.Prepare(t.Context(), []driver.VolumeID{info.ID}, driver.PrepareOptions{Tag: "t2", AllowUnmirrored: true}), driver.Busy)
	if err := a.Resync(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if err := a.Resync(t.Context(), s.ID); err != nil {
		t.Fatalf("second resync: %v", err)
	}
	prepare(t, a, "t2", info.ID)
	sameMirrors(t, a, info.ID)
	if len(a.find1(t, info.ID).epochs) != 0 {
		t.Fatal("epochs are kept though no snapshot needs them")
	}
	if ss, err := a.Lookup(t.Context(), "t1"); err != nil || len(ss) != 0 {
		t.Fatalf("lookup after the resync: %v %v", ss, err)
	}

	// A split that is deleted instead: Prepare fills a new mirror.
	s = split(t, a, "t2", info.ID)
	write(t, h, 17*mib, 4096, '4')
	for range 3 {
		if err := a.Delete(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	prepare(t, a, "t3", info.ID)
	sameMirrors(t, a, info.ID)
	if got, _ := a.VolumeInfo(info.ID); got.Mirrors != 2 {
		t.Fatalf("after Prepare: %+v", got)
	}
}

func (a *Array) find1(t testing.TB, id driver.VolumeID) *volume {
	t.Helper()
	v, err := a.find(id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Generations of splits side by side, over restarts, each resynced by what
// changed since it was made.
func TestGenerations(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	info, h := create(t, a, "db", 8*mib, "a", "b", "c")
	rng := rand.New(rand.NewPCG(1, 2))
	scribble := func(d lun.Device) {
		for range 20 {
			write(t, d, rng.Int64N(7*mib)&^511, 512*(1+rng.IntN(400)), byte(rng.Int()))
		}
	}
	for round := range 6 {
		scribble(h)
		prepare(t, a, "one", info.ID)
		s1 := split(t, a, "one", info.ID)
		first, _ := os.ReadFile(a.Snapshots()[0].File)
		scribble(h)
		s2 := split2(t, a, info.ID)
		scribble(h)
		if round%2 == 0 {
			w, err := a.OpenWritable(s2.ID, "w")
			if err != nil {
				t.Fatal(err)
			}
			scribble(w)
			w.Close()
		}
		if round%3 == 0 {
			h.Close()
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			a = open(t, o)
			var err error
			if h, err = a.OpenVolume(info.ID, "test"); err != nil {
				t.Fatal(err)
			}
		}
		if now, _ := os.ReadFile(a.Snapshots()[0].File); !bytes.Equal(first, now) {
			t.Fatal("the older snapshot changed")
		}
		order := []driver.SnapshotID{s1.ID, s2.ID}
		if rng.IntN(2) == 0 {
			order[0], order[1] = order[1], order[0]
		}
		for _, id := range order {
			if err := a.Resync(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			scribble(h)
		}
		if err := a.WaitInSync(t.Context(), info.ID); err != nil {
			t.Fatal(err)
		}
		sameMirrors(t, a, info.ID)
		if info, _ := a.VolumeInfo(info.ID); info.Mirrors != 3 {
			t.Fatalf("round %d: %+v", round, info)
		}
	}
}

func split2(t testing.TB, a *Array, v driver.VolumeID) driver.Snapshot {
	prepare(t, a, "two", v)
	return split(t, a, "two", v)
}

func TestSecondDaemonIsLockedOut(t *testing.T) {
	o := options(testDir(t))
	open(t, o)
	if _, err := Open(t.Context(), o); err == nil {
		t.Fatal("a second daemon got the state directory")
	}
	o2 := o
	o2.StateDir = filepath.Join(testDir(t), "other")
	if _, err := Open(t.Context(), o2); err == nil {
		t.Fatal("a second daemon got the pools")
	}
}

func TestCancelledContext(t *testing.T) {
	a := open(t, options(testDir(t)))
	info, _ := create(t, a, "db", 16*mib, "a", "b", "c")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.Split(ctx, "t", info.ID)
	if k := kindOf(err); err == nil || k != driver.OutcomeUnknown && k != driver.Unreachable {
		t.Fatalf("split with an ended context: %v (%v)", err, k)
	}
	// Whatever came of it, Lookup knows, and a repetition agrees with it.
	ss, err := a.Lookup(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	s := split(t, a, "t", info.ID)
	if len(ss) == 1 && ss[0].ID != s.ID {
		t.Fatal("Lookup and Split disagree")
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
