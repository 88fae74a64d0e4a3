package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/arrays/embedded/disk/loopfs"
	"github.com/cleave-san/cleave/lun"
)

// reflinks are options of an array on a file system with reflinks.
func reflinks(t testing.TB) Options { return options(loopfs.Mount(t, loopfs.XFS, 1<<30).Dir) }

func createBy(t testing.TB, a *Array, name string, size int64, policy SnapshotPolicy, pools ...string) (VolumeInfo, *Volume) {
	t.Helper()
	info, err := a.CreateVolume(t.Context(), CreateVolume{Name: name, Size: size, Pools: pools, Snapshots: policy})
	if err != nil {
		t.Fatal(err)
	}
	return info, openVolume(t, a, info.ID)
}

// cloningFS is a file system with a rule that sees each clone before it is made
// and may fail it, and each sync.
type cloningFS struct {
	disk.FS
	mu    sync.Mutex
	rule  func(op, path string) error
	calls []string // "sync …", "clone …" of raw files, by the source's name
}

func (f *cloningFS) set(rule func(op, path string) error) {
	f.mu.Lock()
	f.rule, f.calls = rule, nil
	f.mu.Unlock()
}

func (f *cloningFS) check(op, path string) error {
	f.mu.Lock()
	rule := f.rule
	if strings.HasSuffix(path, ".raw") {
		f.calls = append(f.calls, op+" "+path)
	}
	f.mu.Unlock()
	if rule == nil {
		return nil
	}
	return rule(op, path)
}

func (f *cloningFS) OpenFile(name string, flag int) (disk.File, error) {
	file, err := f.FS.OpenFile(name, flag)
	if err != nil {
		return nil, err
	}
	return &cloningFile{file, f}, nil
}

type cloningFile struct {
	disk.File
	fs *cloningFS
}

func (f *cloningFile) CloneFrom(src disk.File) error {
	if err := f.fs.check("clone", src.Name()); err != nil {
		return err
	}
	return disk.Clone(f.File, src)
}

func (f *cloningFile) Sync() error {
	if err := f.fs.check("sync", f.Name()); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *cloningFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fs.check("write", f.Name()); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func TestSnapshotPolicy(t *testing.T) {
	xfs, ext4 := loopfs.Mount(t, loopfs.XFS, 512*mib).Dir, loopfs.Mount(t, loopfs.Ext4, 64*mib).Dir
	var ev collector
	a := open(t, Options{
		StateDir: filepath.Join(ext4, "state"), OnEvent: ev.add,
		Pools: map[string]string{"x": filepath.Join(xfs, "x"), "y": filepath.Join(xfs, "y"), "e": filepath.Join(ext4, "e")},
	})
	for _, p := range a.Pools() {
		if p.Reflink != (p.Name != "e") {
			t.Errorf("pool %s in %s: reflink is %v", p.Name, p.Dir, p.Reflink)
		}
	}
	if d, err := a.Describe(t.Context()); err != nil || !d.Snapshot || !d.MirrorSplit {
		t.Errorf("Describe: %+v, %v", d, err)
	}
	const none = driver.Method("")
	for i, c := range []struct {
		policy  SnapshotPolicy
		pools   []string
		consent bool
		want    driver.Method
		pool    string
	}{
		{"", []string{"x", "y"}, false, none, ""},
		{ByMirror, []string{"x", "y"}, true, driver.MirrorSplit, "y"},
		{ByReflink, []string{"x", "y"}, false, driver.ArraySnapshot, "y"},
		{ByReflink, []string{"x", "y"}, true, driver.ArraySnapshot, "y"},
		{ByReflink, []string{"x"}, false, driver.ArraySnapshot, "x"},
		{ByReflink, []string{"x", "e"}, false, driver.ArraySnapshot, "x"},
		{AutoSnapshot, []string{"x", "y"}, false, driver.ArraySnapshot, "y"},
		{AutoSnapshot, []string{"x", "y"}, true, driver.MirrorSplit, "y"},
		{AutoSnapshot, []string{"x", "y", "e"}, false, driver.MirrorSplit, "e"},
		{AutoSnapshot, []string{"x"}, false, driver.ArraySnapshot, "x"},
		{AutoSnapshot, []string{"e"}, false, none, ""},
		{AutoSnapshot, []string{"e", "e"}, false, none, ""},
	} {
		info, err := a.CreateVolume(t.Context(), CreateVolume{Name: fmt.Sprintf("v%d", i), Size: mib, Pools: c.pools, Snapshots: c.policy})
		if err != nil {
			t.Fatal(err)
		}
		tag := driver.Tag(fmt.Sprintf("t%d", i))
		err = a.Prepare(t.Context(), []driver.VolumeID{info.ID}, driver.PrepareOptions{Tag: tag, AllowUnmirrored: c.consent})
		if (err == nil) != (c.want != none) {
			t.Errorf("%+v: Prepare: %v", c, err)
		}
		s, err := a.Split(t.Context(), tag, info.ID)
		if (err == nil) != (c.want != none) || s.Method != c.want {
			t.Errorf("%+v: %+v, %v", c, s, err)
		}
		if err != nil {
			if k := kindOf(err); k != driver.NeedsConsent && k != driver.NotSynchronized {
				t.Errorf("%+v: %v is of kind %v", c, err, k)
			}
			continue
		}
		if got := a.Snapshots()[len(a.Snapshots())-1]; got.Pool != c.pool {
			t.Errorf("%+v: the snapshot is in pool %s", c, got.Pool)
		}
		now, err := a.VolumeInfo(info.ID)
		if err != nil {
			t.Fatal(err)
		}
		if c.want == driver.ArraySnapshot && (now.Mirrors != len(c.pools) || now.State != driver.Synchronized) {
			t.Errorf("%+v: a snapshot by reflink took a mirror: %+v", c, now)
		}
	}

	// What can't be is refused when it is asked for.
	for _, c := range []struct {
		o    CreateVolume
		kind driver.Kind
	}{
		{CreateVolume{Name: "no", Size: mib, Pools: []string{"e", "e"}, Snapshots: ByReflink}, driver.NotSupported},
		{CreateVolume{Name: "no", Size: mib, Pools: []string{"x"}, Snapshots: "copy"}, driver.InvalidRequest},
		{CreateVolume{Name: "v0", Size: mib, Pools: []string{"x", "y"}, Snapshots: ByReflink}, driver.InvalidRequest},
	} {
		_, err := a.CreateVolume(t.Context(), c.o)
		wantKind(t, err, c.kind)
	}
	_, err := a.SetSnapshotPolicy(t.Context(), "v11", ByReflink)
	wantKind(t, err, driver.NotSupported)
	_, err = a.SetSnapshotPolicy(t.Context(), "v0", "copy")
	wantKind(t, err, driver.InvalidRequest)
	_, err = a.SetSnapshotPolicy(t.Context(), "nobody", ByReflink)
	wantKind(t, err, driver.NotFound)
	info, err := a.SetSnapshotPolicy(t.Context(), "v0", ByReflink)
	if err != nil || info.Policy != ByReflink {
		t.Fatalf("%+v, %v", info, err)
	}
	if s, err := a.Split(t.Context(), "t0", info.ID); err != nil || s.Method != driver.ArraySnapshot {
		t.Errorf("after the change: %+v, %v", s, err)
	}
	snaps := a.Snapshots()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for _, e := range ev.events {
		for _, s := range snaps {
			if e.Kind == Unmirrored && s.Method == driver.ArraySnapshot && strings.Contains(e.Text, string(s.ID)) {
				t.Errorf("a snapshot by reflink: %s", e.Text)
			}
		}
	}
}

// A snapshot by reflink is one like all others: it can be written to, outlives
// restarts and its volume, is told from others by changed regions, and can be
// reverted to, reversed and broken off. Only back to its volume it can't go.
func TestReflinkLife(t *testing.T) {
	o := reflinks(t)
	a := open(t, o)
	info, h := createBy(t, a, "db", 8*mib, ByReflink, "a", "b")
	write(t, h, 0, mib, '1')
	first := split(t, a, "t1", info.ID)
	write(t, h, 2*mib, 4096, '2')
	second := split(t, a, "t2", info.ID)
	write(t, h, 4*mib, 4096, '3')
	if first.Method != driver.ArraySnapshot || first.Held <= 0 || first.Identity == info.Identity {
		t.Errorf("%+v", first)
	}
	regions := func(from, to driver.SnapshotID) []lun.Extent {
		c, err := a.Changes(t.Context(), info.ID, from, to)
		if err != nil {
			t.Fatal(err)
		}
		return c.Regions
	}
	if r := regions(first.ID, second.ID); !slices.Equal(r, []lun.Extent{{Off: 2 * mib, Len: regionSize}}) {
		t.Errorf("changed between the two: %+v", r)
	}
	if r := regions(second.ID, ""); !slices.Equal(r, []lun.Extent{{Off: 4 * mib, Len: regionSize}}) {
		t.Errorf("changed since the second: %+v", r)
	}
	w, err := a.OpenWritable(second.ID, "writer")
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, 6*mib, 4096, 'w')
	w.Close()
	now := content(t, h)
	wantKind(t, a.Resync(t.Context(), first.ID), driver.NotSupported)

	h.Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	if ss, err := a.Lookup(t.Context(), "t2"); err != nil || len(ss) != 1 || ss[0].Method != driver.ArraySnapshot || ss[0].State != driver.Skewed {
		t.Fatalf("after a restart: %+v, %v", ss, err)
	}
	then := snapContent(t, a, first.ID)
	if then[0] != '1' || then[2*mib] != 0 || then[6*mib] != 0 {
		t.Error("the first snapshot does not hold what was there")
	}

	safe, err := a.Revert(t.Context(), first.ID)
	if err != nil || safe.Method != driver.ArraySnapshot {
		t.Fatalf("revert: %+v, %v", safe, err)
	}
	if err := a.Prepare(t.Context(), []driver.VolumeID{info.ID}, driver.PrepareOptions{Tag: "t3"}); err != nil {
		t.Fatal(err)
	}
	h = openVolume(t, a, info.ID)
	if !bytes.Equal(content(t, h), then) || !bytes.Equal(snapContent(t, a, safe.ID), now) {
		t.Error("the revert did not exchange the contents")
	}
	if v, _ := a.VolumeInfo(info.ID); v.Mirrors != 2 || len(v.Replicas) != 2 {
		t.Errorf("after a revert: %+v", v)
	}
	sameMirrors(t, a, info.ID)
	h.Close()
	if back, err := a.Reverse(t.Context(), safe.ID); err != nil || !bytes.Equal(snapContent(t, a, back.ID), then) {
		t.Errorf("reversal: %+v, %v", back, err)
	}
	if !bytes.Equal(content(t, openVolume(t, a, info.ID)), now) {
		t.Error("the reversal did not exchange the contents")
	}

	if v, err := a.Break(t.Context(), second.ID, "other"); err != nil || v.Identity != second.Identity {
		t.Fatalf("break: %+v, %v", v, err)
	}
	other := openVolume(t, a, "other")
	if c := content(t, other); c[2*mib] != '2' || c[4*mib] != 0 || c[6*mib] != 'w' {
		t.Error("what was broken off does not hold what the snapshot did")
	}
	if s := split(t, a, "t4", "other"); s.Method != driver.ArraySnapshot {
		t.Errorf("a snapshot of it: %+v", s)
	}
	for _, s := range a.Snapshots() {
		for range 2 {
			if err := a.Delete(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := noStrays(a); err != nil {
		t.Error(err)
	}
	if c := a.store.read(); len(c.Volumes[0].Epochs) != 0 || len(c.Trash) != 0 {
		t.Errorf("left behind: epochs %v, trash %v", c.Volumes[0].Epochs, c.Trash)
	}
}

// nothingLeft checks that a split that failed left neither record nor file.
func nothingLeft(t *testing.T, a *Array) {
	t.Helper()
	c := a.store.read()
	if len(c.Pending) != 0 || len(c.Trash) != 0 || len(c.Snapshots) != 0 {
		t.Errorf("left behind: pending %+v, trash %+v, snapshots %+v", c.Pending, c.Trash, c.Snapshots)
	}
	for _, v := range c.Volumes {
		for _, m := range v.Mirrors {
			if m.State != inSync {
				t.Errorf("mirror %s of %s is %s", m.ID, v.Name, m.State)
			}
		}
	}
	if err := noStrays(a); err != nil {
		t.Error(err)
	}
}

// A clone that takes too long lets writes go on, and the group is split not at
// all; so does a write that does not end.
func TestHoldLimit(t *testing.T) {
	for _, slow := range []string{"clone", "write"} {
		t.Run(slow, func(t *testing.T) {
			o, fs := reflinks(t), &cloningFS{FS: disk.OS()}
			o.FS, o.HoldLimit = fs, 10*time.Millisecond
			a := open(t, o)
			info, h := createBy(t, a, "db", 8*mib, ByReflink, "a")
			other, _ := createBy(t, a, "log", 8*mib, ByMirror, "a", "b", "c")
			write(t, h, 0, mib, '1')

			begun, end := make(chan bool), make(chan bool)
			var met atomic.Bool
			fs.set(func(op, path string) error {
				if op == slow && strings.Contains(path, "/db/") && !met.Swap(true) {
					close(begun)
					<-end
				}
				return nil
			})
			var stuck sync.WaitGroup
			if slow == "write" {
				stuck.Go(func() { write(t, h, 0, 4096, '2') })
				<-begun
			}
			failed := make(chan error)
			go func() {
				_, err := a.SplitGroup(t.Context(), "t", []driver.VolumeID{info.ID, other.ID})
				failed <- err
			}()
			if slow == "clone" {
				<-begun
				write(t, h, 4*mib, 4096, '3') // returns while the clone is still under way
				close(end)
			}
			wantKind(t, <-failed, driver.Busy)
			if slow == "write" {
				write(t, h, 4*mib, 4096, '3') // nobody waits for the stuck one
				close(end)
			}
			stuck.Wait()
			fs.set(nil)
			if err := a.WaitInSync(t.Context(), other.ID); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, a)

			a.o.HoldLimit = time.Minute
			ss, err := a.SplitGroup(t.Context(), "t", []driver.VolumeID{info.ID, other.ID})
			if err != nil || ss[0].Method != driver.ArraySnapshot || ss[1].Method != driver.MirrorSplit || ss[0].Group != ss[1].Group || !ss[0].At.Equal(ss[1].At) {
				t.Fatalf("again: %+v, %v", ss, err)
			}
			if c := snapContent(t, a, ss[0].ID); c[4*mib] != '3' {
				t.Error("the snapshot lacks a write from before it")
			}
		})
	}
}

// What is dirty is flushed before writes are held, and the clone is stable
// before the split is certain.
func TestCloneOrder(t *testing.T) {
	o, fs := reflinks(t), &cloningFS{FS: disk.OS()}
	o.FS = fs
	a := open(t, o)
	info, h := createBy(t, a, "db", 8*mib, ByReflink, "a")
	write(t, h, 0, mib, '1')
	var atClone, atSync []string
	fs.set(func(op, path string) error {
		if op == "clone" {
			fs.mu.Lock()
			atClone = slices.Clone(fs.calls)
			fs.mu.Unlock()
		}
		if op == "sync" && atClone != nil && path != info.Replicas[0].File && strings.HasSuffix(path, ".raw") {
			if ss := a.store.read().Snapshots; len(ss) != 0 {
				t.Error("the split was certain before its clone was stable")
			}
			atSync = append(atSync, path)
		}
		return nil
	})
	split(t, a, "t", info.ID)
	if !slices.Contains(atClone, "sync "+info.Replicas[0].File) {
		t.Errorf("before the clone was made: %q", atClone)
	}
	if !slices.Equal(atSync, []string{a.Snapshots()[0].File}) {
		t.Errorf("synced after the clone was made: %q", atSync)
	}
}

// A clone that fails, or can't be made stable, leaves nothing behind, and the
// older snapshots' maps hold what was written meanwhile.
func TestCloneFails(t *testing.T) {
	for _, c := range []struct {
		op   string
		err  error
		kind driver.Kind
	}{{"clone", syscall.ENOSPC, driver.NoSpace}, {"clone", syscall.EIO, driver.Unknown}, {"settle", syscall.EIO, driver.Unknown}, {"settle", syscall.ENOSPC, driver.NoSpace}} {
		t.Run(fmt.Sprint(c.op, " ", c.err), func(t *testing.T) {
			o, fs := reflinks(t), &cloningFS{FS: disk.OS()}
			o.FS = fs
			a := open(t, o)
			info, h := createBy(t, a, "db", 8*mib, ByReflink, "a", "b")
			fs.set(func(op, path string) error {
				fs.mu.Lock()
				cloned := slices.ContainsFunc(fs.calls, func(s string) bool { return strings.HasPrefix(s, "clone ") })
				fs.mu.Unlock()
				known := slices.ContainsFunc(info.Replicas, func(m MirrorInfo) bool { return m.File == path })
				if op == c.op || c.op == "settle" && op == "sync" && cloned && strings.HasSuffix(path, ".raw") && !known {
					return &os.PathError{Op: op, Path: path, Err: c.err}
				}
				return nil
			})
			_, err := a.Split(t.Context(), "t", info.ID)
			if !errors.Is(err, c.err) {
				t.Fatal(err)
			}
			wantKind(t, err, c.kind)
			fs.set(nil)
			nothingLeft(t, a)
			write(t, h, 0, 4096, '1')
			older := split(t, a, "older", info.ID)
			fs.set(func(op, path string) error {
				if op == "clone" {
					return c.err
				}
				return nil
			})
			if _, err := a.Split(t.Context(), "t", info.ID); err == nil {
				t.Fatal("no error")
			}
			write(t, h, 2*mib, 4096, '2')
			if r, err := a.Changes(t.Context(), info.ID, older.ID, ""); err != nil || !slices.Equal(r.Regions, []lun.Extent{{Off: 2 * mib, Len: regionSize}}) {
				t.Errorf("changed since the older snapshot: %+v, %v", r, err)
			}
		})
	}
}

// In a pool that is full no snapshot is made, and production goes on; one that
// fills up afterwards takes no stable byte from a snapshot.
func TestReflinkFullPool(t *testing.T) {
	dir := loopfs.Mount(t, loopfs.XFS, 300*mib).Dir
	o := options(dir)
	o.StateDir = filepath.Join(testDir(t), "state") // on another disk, as it should be
	a := open(t, o)
	info, h := createBy(t, a, "db", 64*mib, ByReflink, "a")
	write(t, h, 0, 8*mib, '1')
	s := split(t, a, "before", info.ID)
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for n := mib; n >= 4096; {
		if _, err := fill.Write(make([]byte, n)); err == nil {
			continue
		} else if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		n /= 2
	}
	if err := fill.Sync(); err != nil {
		t.Fatal(err)
	}
	// Writing over what the snapshot shares needs room, which the guest is told.
	var werr error
	for off := int64(0); off < 8*mib && werr == nil; off += mib {
		_, werr = h.WriteAt(bytes.Repeat([]byte{'2'}, mib), off)
	}
	if !errors.Is(werr, lun.ErrNoSpace) {
		t.Errorf("writing over 8 MiB that are shared in a full pool: %v", werr)
	}
	_, err = a.Split(t.Context(), "full", info.ID)
	wantKind(t, err, driver.NoSpace)
	if c := snapContent(t, a, s.ID); !bytes.Equal(c[:8*mib], bytes.Repeat([]byte{'1'}, 8*mib)) {
		t.Error("the snapshot changed")
	}
	if err := fill.Truncate(0); err != nil {
		t.Fatal(err)
	}
	write(t, h, 0, 8*mib, '3')
	split(t, a, "full", info.ID)
	if err := noStrays(a); err != nil {
		t.Error(err)
	}
}

// After a power cut a snapshot that was made is there and whole, and one whose
// file was cloned but not yet stable is not there, in no part. The pools lose
// what they had not written; the records are on another disk and do not.
func TestReflinkPowerCut(t *testing.T) {
	mnt := loopfs.Mount(t, loopfs.XFS, 512*mib)
	o, fs := options(mnt.Dir), &cloningFS{FS: disk.OS()}
	o.StateDir, o.FS = filepath.Join(testDir(t), "state"), fs
	a := open(t, o)
	info, h := createBy(t, a, "db", 8*mib, ByReflink, "a", "b")
	cut := func() {
		mnt.Cut(t, func() {
			h.Close()
			a.Close() // tells of errors
		})
		a = open(t, o)
		h = openVolume(t, a, info.ID)
		if err := a.WaitInSync(t.Context(), info.ID); err != nil {
			t.Fatal(err)
		}
		sameMirrors(t, a, info.ID)
	}
	for i := range 5 {
		want := write(t, h, 0, 3*mib, byte('1'+i))
		s := split(t, a, driver.Tag(fmt.Sprintf("t%d", i)), info.ID)
		write(t, h, mib, mib, 'x')
		cut()
		if got := snapContent(t, a, s.ID); !bytes.Equal(got[:len(want)], want) {
			t.Fatalf("split %d does not hold what was written before it", i)
		}
	}
	before := a.Snapshots()
	write(t, h, 0, 3*mib, 'z')
	files := map[string]bool{}
	for _, m := range info.Replicas {
		files[m.File] = true
	}
	fs.set(func(op, path string) error {
		fs.mu.Lock()
		cloned := slices.ContainsFunc(fs.calls, func(s string) bool { return strings.HasPrefix(s, "clone ") })
		fs.mu.Unlock()
		if op == "sync" && cloned && strings.HasSuffix(path, ".raw") && !files[path] {
			fs.set(nil)
			if err := mnt.Stop(); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	if s, err := a.Split(t.Context(), "never", info.ID); err == nil {
		t.Fatalf("a split without power: %+v", s)
	}
	cut()
	if ss, err := a.Lookup(t.Context(), "never"); err != nil || len(ss) != 0 {
		t.Errorf("what was not certain is there: %+v, %v", ss, err)
	}
	if err := noStrays(a); err != nil {
		t.Error(err)
	}
	if len(a.Snapshots()) != len(before) {
		t.Errorf("%d snapshots, there were %d", len(a.Snapshots()), len(before))
	}
	split(t, a, "again", info.ID)
}
