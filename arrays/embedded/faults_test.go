package embedded

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// faultyFS lets a rule fail calls: op is "write", "sync", "read", "punch",
// "syncdir" or "open".
type faultyFS struct {
	disk.FS
	mu   sync.Mutex
	rule func(op, path string) error
}

func (f *faultyFS) set(rule func(op, path string) error) {
	f.mu.Lock()
	f.rule = rule
	f.mu.Unlock()
}

func (f *faultyFS) check(op, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rule == nil {
		return nil
	}
	if err := f.rule(op, path); err != nil {
		return &os.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

func (f *faultyFS) OpenFile(name string, flag int) (disk.File, error) {
	if err := f.check("open", name); err != nil {
		return nil, err
	}
	file, err := f.FS.OpenFile(name, flag)
	if err != nil {
		return nil, err
	}
	return &faultyFile{file, f}, nil
}

func (f *faultyFS) Lock(name string) (io.Closer, error) {
	if err := f.check("lock", name); err != nil {
		return nil, err
	}
	return f.FS.Lock(name)
}

func (f *faultyFS) SyncDir(name string) error {
	if err := f.check("syncdir", name); err != nil {
		return err
	}
	return f.FS.SyncDir(name)
}

type faultyFile struct {
	disk.File
	fs *faultyFS
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.check("write", f.Name()); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.fs.check("read", f.Name()); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *faultyFile) Sync() error {
	if err := f.fs.check("sync", f.Name()); err != nil {
		return err
	}
	return f.File.Sync()
}

// failing fails one operation on raw files under a pool.
func failing(op, pool string, err error) func(string, string) error {
	return func(o, path string) error {
		if o == op && strings.Contains(path, "/"+pool+"/") && strings.HasSuffix(path, ".raw") {
			return err
		}
		return nil
	}
}

func faulty(t *testing.T) (Options, *faultyFS, *collector) {
	fs, ev := &faultyFS{FS: disk.OS()}, &collector{}
	o := options(testDir(t))
	o.FS, o.OnEvent = fs, ev.add
	return o, fs, ev
}

func TestErringMirrorIsDropped(t *testing.T) {
	for _, op := range []string{"write", "sync", "read"} {
		t.Run(op, func(t *testing.T) {
			o, fs, ev := faulty(t)
			a := open(t, o)
			info, h := create(t, a, "db", 16*mib, "a", "b")
			write(t, h, 0, 8192, '1')
			fs.set(failing(op, "a", syscall.EIO))
			write(t, h, 4096, 8192, '2')
			if err := h.Sync(); err != nil {
				t.Fatal(err)
			}
			if got := read(t, h, 4096, 8192); got[0] != '2' {
				t.Fatal("read after a mirror failed")
			}
			// That it was dropped is stable by now.
			b, err := os.ReadFile(filepath.Join(o.StateDir, "catalogue.json"))
			if err != nil {
				t.Fatal(err)
			}
			c, err := decodeCatalog(b)
			if err != nil || c.Volumes[0].Mirrors[0].State != broken || c.Volumes[0].Unmirrored.IsZero() {
				t.Fatalf("the catalogue does not have it: %+v, %v", c.Volumes[0], err)
			}
			fs.set(nil)
			h.Close()
			a.Close()
			if ev.count(MirrorDropped) != 1 { // Close has delivered all
				t.Fatalf("events: %+v", ev.events)
			}

			a = open(t, o)
			vi, _ := a.VolumeInfo(info.ID)
			if vi.Mirrors != 1 || vi.Replicas[0].State != driver.Broken || !strings.Contains(vi.Replicas[0].Reason, "input/output error") {
				t.Fatalf("after a restart: %+v", vi)
			}
			fs.set(failing("open", "a", syscall.EIO)) // it can't be repaired
			err = a.Prepare(t.Context(), []driver.VolumeID{info.ID}, driver.PrepareOptions{Tag: "t", AllowUnmirrored: true})
			wantKind(t, err, driver.NotSynchronized)
			if !strings.Contains(err.Error(), "remove it and add another") {
				t.Errorf("the error does not say what to do: %v", err)
			}
			if err := a.RemoveMirror(t.Context(), info.ID, vi.Replicas[0].ID); err != nil {
				t.Fatal(err)
			}
			if _, err := a.AddMirror(t.Context(), info.ID, "c"); err != nil {
				t.Fatal(err)
			}
			prepare(t, a, "t", info.ID)
			if got := mirrored(t, a, info.ID); got[4096] != '2' || got[0] != '1' {
				t.Fatal("content lost")
			}
		})
	}
}

func TestLastMirrorIsNotDropped(t *testing.T) {
	o, fs, _ := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b")
	write(t, h, 0, 4096, '1')
	fs.set(func(op, path string) error {
		return errors.Join(failing("write", "a", syscall.EIO)(op, path), failing("write", "b", syscall.EIO)(op, path))
	})
	if _, err := h.WriteAt(make([]byte, 4096), 0); !errors.Is(err, syscall.EIO) {
		t.Fatalf("write with all mirrors failing: %v", err)
	}
	fs.set(nil)
	write(t, h, 0, 4096, '2')
	if vi, _ := a.VolumeInfo(info.ID); vi.Mirrors != 2 {
		t.Fatalf("mirrors: %+v", vi)
	}
}

func TestFullPools(t *testing.T) {
	o, fs, ev := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b")
	write(t, h, 0, 4096, '1')
	fs.set(func(op, path string) error {
		if op == "write" && strings.HasSuffix(path, ".raw") {
			return syscall.ENOSPC
		}
		return nil
	})
	_, err := h.WriteAt(make([]byte, 4096), 8192)
	if !errors.Is(err, lun.ErrNoSpace) || kindOf(err) != driver.NoSpace {
		t.Fatalf("write to full pools: %v", err)
	}
	if ev.count(MirrorDropped) != 0 {
		t.Fatal("a mirror was dropped because all pools were full")
	}
	fs.set(nil)
	sameMirrors(t, a, info.ID)
}

func TestFilesDamagedByHand(t *testing.T) {
	o, _, ev := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b", "c")
	write(t, h, 0, 16*mib, '1')
	files := map[string]string{}
	for _, m := range info.Replicas {
		files[m.Pool] = m.File
	}
	if err := os.Truncate(files["a"], mib); err != nil { // while it runs
		t.Fatal(err)
	}
	eventually(t, "the truncated mirror is dropped", func() bool { return ev.count(MirrorDropped) == 1 })
	if got := read(t, h, 15*mib, 4096); got[0] != '1' {
		t.Fatal("content lost")
	}
	h.Close()
	a.Close()
	if err := os.Truncate(files["b"], mib); err != nil { // while it does not
		t.Fatal(err)
	}
	a = open(t, o)
	eventually(t, "the other one is dropped", func() bool { return ev.count(MirrorDropped) == 2 })
	vi, _ := a.VolumeInfo(info.ID)
	if vi.Mirrors != 1 || !strings.Contains(vi.Replicas[1].Reason, "truncated") {
		t.Fatalf("%+v", vi)
	}
	a.Close()

	// The last one gone: offline, and as it was when it is back.
	if err := os.Rename(files["c"], files["c"]+".away"); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	h2, _ := a.OpenVolume(info.ID, "t")
	if _, err := h2.ReadAt(make([]byte, 512), 0); !errors.Is(err, errOffline) {
		t.Fatalf("read of an offline volume: %v", err)
	}
	if _, err := h2.WriteAt(make([]byte, 512), 0); !errors.Is(err, errOffline) {
		t.Fatalf("write to an offline volume: %v", err)
	}
	h2.Close()
	a.Close()
	os.Rename(files["c"]+".away", files["c"])
	a = open(t, o)
	if got := mirrored(t, a, info.ID); !bytes.Equal(got, bytes.Repeat([]byte{'1'}, 16*mib)) {
		t.Fatal("content lost")
	}
}

func TestPoolAwaySwappedOrForeign(t *testing.T) {
	o, _, ev := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b")
	write(t, h, 0, 4096, '1')
	h.Close()
	a.Close()

	swapped := o
	swapped.Pools = map[string]string{"a": o.Pools["b"], "b": o.Pools["a"], "c": o.Pools["c"]}
	if _, err := Open(t.Context(), swapped); err == nil || !strings.Contains(err.Error(), "swapped") {
		t.Fatalf("swapped pools: %v", err)
	}
	foreign := o
	foreign.StateDir = o.StateDir + "2"
	if _, err := Open(t.Context(), foreign); err == nil || !strings.Contains(err.Error(), "belongs to array") {
		t.Fatalf("another array's pools: %v", err)
	}

	os.Rename(o.Pools["b"], o.Pools["b"]+".away")
	a = open(t, o)
	if vi, _ := a.VolumeInfo(info.ID); vi.Mirrors != 1 {
		t.Fatalf("%+v", vi)
	}
	eventually(t, "the mirror is dropped", func() bool { return ev.count(MirrorDropped) == 1 })
	if _, err := a.AddMirror(t.Context(), info.ID, "b"); kindOf(err) != driver.Unreachable {
		t.Fatalf("mirror in a pool that is away: %v", err)
	}
}

// A split whose record can't be written is undone: no snapshot, and the mirrors
// come back with all that was written meanwhile.
func TestSplitUndone(t *testing.T) {
	o, fs, ev := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b", "c")
	write(t, h, 0, mib, '1')
	older := split(t, a, "older", info.ID)
	prepare(t, a, "t", info.ID)
	n := 0
	hooked := &hookFS{faultyFS: fs, fn: func(op, path string) error {
		if n++; n == 2 { // the first is the pending record
			h.WriteAt(bytes.Repeat([]byte{'2'}, 4096), 8*mib) // goes past the mirror
			return syscall.ENOSPC
		}
		return nil
	}}
	a.store.write.Lock()
	a.store.fs = hooked // sees writes of the catalogue only
	a.store.write.Unlock()
	_, err := a.Split(t.Context(), "t", info.ID)
	wantKind(t, err, driver.NoSpace)
	a.store.write.Lock()
	a.store.fs = fs
	a.store.write.Unlock()
	if ss, err := a.Lookup(t.Context(), "t"); err != nil || len(ss) != 0 {
		t.Fatalf("Lookup: %v, %v", ss, err)
	}
	if err := a.WaitInSync(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	if got := mirrored(t, a, info.ID); got[8*mib] != '2' {
		t.Fatal("content lost")
	}
	eventually(t, "the event", func() bool { return ev.count(SplitUndone) == 1 })
	if len(a.store.read().Pending) != 0 {
		t.Fatalf("pending: %+v", a.store.read().Pending)
	}
	if err := a.Resync(t.Context(), older.ID); err != nil {
		t.Fatal(err)
	}
	prepare(t, a, "t2", info.ID)
	if vi, _ := a.VolumeInfo(info.ID); vi.Mirrors != 3 {
		t.Fatalf("%+v", vi)
	}
	sameMirrors(t, a, info.ID)
}

// hookFS calls fn before writes, without a lock of its own.
type hookFS struct {
	*faultyFS
	fn func(op, path string) error
}

func (f *hookFS) OpenFile(name string, flag int) (disk.File, error) {
	file, err := f.faultyFS.OpenFile(name, flag)
	if err != nil {
		return nil, err
	}
	return &hookFile{file, f.fn}, nil
}

type hookFile struct {
	disk.File
	fn func(op, path string) error
}

func (f *hookFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fn("write", f.Name()); err != nil {
		return 0, &os.PathError{Op: "write", Path: f.Name(), Err: err}
	}
	return f.File.WriteAt(p, off)
}

// Where it can't be known whether the record is stable, the outcome is unknown
// until a restart reads it.
func TestSplitOutcomeUnknown(t *testing.T) {
	o, fs, _ := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b", "c")
	write(t, h, 0, mib, '1')
	prepare(t, a, "t", info.ID)
	n := 0
	fs.set(func(op, path string) error {
		if op == "syncdir" && path == o.StateDir {
			if n++; n == 2 {
				return syscall.EIO
			}
		}
		return nil
	})
	_, err := a.Split(t.Context(), "t", info.ID)
	wantKind(t, err, driver.OutcomeUnknown)
	if _, err := a.Lookup(t.Context(), "t"); kindOf(err) != driver.OutcomeUnknown {
		t.Fatalf("Lookup without knowing: %v", err)
	}
	write(t, h, 2*mib, mib, '2') // production goes on
	fs.set(nil)
	h.Close()
	a.Close()
	a = open(t, o)
	ss, err := a.Lookup(t.Context(), "t")
	if err != nil || len(ss) != 1 {
		t.Fatalf("Lookup after a restart: %v, %v", ss, err)
	}
	if err := a.Resync(t.Context(), ss[0].ID); err != nil {
		t.Fatal(err)
	}
	prepare(t, a, "t2", info.ID)
	if got := mirrored(t, a, info.ID); got[2*mib] != '2' {
		t.Fatal("content lost")
	}
}

func TestDamagedMaps(t *testing.T) {
	for _, damage := range []string{"header", "block", "missing"} {
		t.Run(damage, func(t *testing.T) {
			o, _, ev := faulty(t)
			a := open(t, o)
			info, h := create(t, a, "db", 16*mib, "a", "b")
			prepare(t, a, "t", info.ID)
			s := split(t, a, "t", info.ID)
			write(t, h, 5*mib, 4096, '1')
			h.Close()
			a.Close()
			maps, _ := filepath.Glob(filepath.Join(o.StateDir, "maps", "*.dirty"))
			if len(maps) != 1 {
				t.Fatalf("maps: %v", maps)
			}
			b, _ := os.ReadFile(maps[0])
			switch damage {
			case "header":
				b[9] ^= 1
				os.WriteFile(maps[0], b, 0o600)
			case "block":
				b[sector+100] ^= 1
				os.WriteFile(maps[0], b, 0o600)
			case "missing":
				os.Remove(maps[0])
			}
			a = open(t, o)
			eventually(t, "the event", func() bool { return ev.count(MapDamaged) > 0 })
			if n := a.Snapshots()[0].ResyncBytes; n != 16*mib {
				t.Fatalf("resync would copy %d bytes, want all", n)
			}
			if err := a.Resync(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			}
			prepare(t, a, "t2", info.ID)
			if got := mirrored(t, a, info.ID); got[5*mib] != '1' {
				t.Fatal("content lost")
			}
		})
	}
}

func TestReadOnlyPool(t *testing.T) {
	o, fs, ev := faulty(t)
	a := open(t, o)
	info, h := create(t, a, "db", 16*mib, "a", "b")
	h.Close()
	a.Close()
	fs.set(func(op, path string) error {
		if (op == "open" || op == "lock") && strings.Contains(path, "/b/") {
			return syscall.EROFS
		}
		return nil
	})
	a = open(t, o)
	vi, _ := a.VolumeInfo(info.ID)
	if vi.Mirrors != 1 || !strings.Contains(vi.Replicas[1].Reason, "read-only") {
		t.Fatalf("%+v", vi)
	}
	eventually(t, "the mirror is dropped", func() bool { return ev.count(MirrorDropped) == 1 })
}
