package embedded

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

func arm(t testing.TB, a *Array, tag driver.Tag, vs ...driver.VolumeID) {
	t.Helper()
	if err := a.Arm(t.Context(), tag, vs, time.Hour); err != nil {
		t.Fatal(err)
	}
}

func commit(t testing.TB, a *Array, tag driver.Tag) []driver.Snapshot {
	t.Helper()
	ss, err := a.Commit(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	return ss
}

// notArmed checks that nothing is left of an arming, and that the volume can be
// administered again.
func notArmed(t testing.TB, a *Array, tag driver.Tag, vs ...driver.VolumeID) {
	t.Helper()
	_, err := a.Commit(t.Context(), tag)
	wantKind(t, err, driver.NotArmed)
	if ss, err := a.Lookup(t.Context(), tag); err != nil || len(ss) != 0 {
		t.Fatalf("Lookup: %v, %v", ss, err)
	}
	if n := len(a.store.read().Pending); n != 0 {
		t.Fatalf("%d pending records are left", n)
	}
	for _, v := range vs {
		if err := a.find1(t, v).lockAdmin(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.find1(t, v).unlockAdmin()
	}
	left, err := filepath.Glob(filepath.Join(a.maps, "*.dirty"))
	if err != nil || len(left) != 0 {
		t.Fatalf("bitmaps are left: %v, %v", left, err)
	}
}

// same checks that two answers are of one split, in one order.
func same(t testing.TB, want, got []driver.Snapshot) {
	t.Helper()
	if !slices.EqualFunc(want, got, func(x, y driver.Snapshot) bool { return x.ID == y.ID && x.Volume == y.Volume && x.Group == y.Group }) {
		t.Fatalf("got %v\nwant %v", got, want)
	}
}

// Between Arm and Commit production writes and nobody administers; Commit is
// the instant. Repeated, each says the same, also after a restart.
func TestArmAndCommit(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	v1, h1 := create(t, a, "v1", 8*mib, "a", "b", "c")
	v2, h2 := create(t, a, "v2", 8*mib, "a", "b", "c")
	vs := []driver.VolumeID{v2.ID, v1.ID} // whatever the order of their IDs
	arm(t, a, "t", vs...)
	arm(t, a, "t", vs...)
	if ss, err := a.Lookup(t.Context(), "t"); err != nil || len(ss) != 0 {
		t.Fatalf("Lookup while armed: %v, %v", ss, err)
	}
	for what, fn := range map[string]func(context.Context) error{
		"grow":   func(ctx context.Context) error { _, err := a.GrowVolume(ctx, v1.ID, 16*mib); return err },
		"split":  func(ctx context.Context) error { _, err := a.Split(ctx, "other", v1.ID); return err },
		"arm":    func(ctx context.Context) error { return a.Arm(ctx, "other", vs, time.Hour) },
		"mirror": func(ctx context.Context) error { _, err := a.AddMirror(ctx, v2.ID, "a"); return err },
		"delete": func(ctx context.Context) error { return a.DeleteVolume(ctx, v2.ID) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		err := fn(ctx)
		cancel()
		if kindOf(err) != driver.Busy {
			t.Errorf("%s while armed: %v", what, err)
		}
	}
	err := a.Arm(t.Context(), "t", vs[:1], time.Hour)
	wantKind(t, err, driver.InvalidRequest)
	write(t, h1, 0, mib, '1')
	write(t, h2, 0, mib, '2')
	ss := commit(t, a, "t")
	write(t, h1, 0, mib, '3')
	if ss[0].Volume != v2.ID || ss[1].Volume != v1.ID {
		t.Fatalf("not in the order asked for: %v", ss)
	}
	for i, want := range []byte{'2', '1'} {
		d, err := a.OpenSnapshot(ss[i].ID, "test")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(read(t, d, 0, mib), bytes.Repeat([]byte{want}, mib)) {
			t.Errorf("snapshot %d holds something else than was written before the commit", i)
		}
		d.Close()
	}
	again := func() {
		t.Helper()
		same(t, ss, commit(t, a, "t"))
		arm(t, a, "t", vs...) // nothing to do
		same(t, ss, commit(t, a, "t"))
		got, err := a.SplitGroup(t.Context(), "t", vs)
		if err != nil {
			t.Fatal(err)
		}
		same(t, ss, got)
		wantKind(t, a.Abort(t.Context(), "t"), driver.InvalidRequest)
	}
	again()
	h1.Close()
	h2.Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	again()
}

func TestAbort(t *testing.T) {
	a := open(t, options(testDir(t)))
	v, _ := create(t, a, "v", 8*mib, "a", "b", "c")
	if err := a.Abort(t.Context(), "t"); err != nil {
		t.Fatalf("of what never was armed: %v", err)
	}
	for range 3 {
		arm(t, a, "t", v.ID)
		for range 2 {
			if err := a.Abort(t.Context(), "t"); err != nil {
				t.Fatal(err)
			}
		}
		notArmed(t, a, "t", v.ID)
	}
	if vi, _ := a.VolumeInfo(v.ID); vi.Mirrors != 3 {
		t.Errorf("%+v", vi)
	}
	arm(t, a, "t", v.ID)
	ss, err := a.SplitGroup(t.Context(), "t", []driver.VolumeID{v.ID})
	if err != nil {
		t.Fatalf("splitting what is armed: %v", err)
	}
	same(t, ss, commit(t, a, "t"))
}

func TestArmRefuses(t *testing.T) {
	a := open(t, options(testDir(t)))
	v, _ := create(t, a, "v", 8*mib, "a", "b")
	ctx, vs := t.Context(), []driver.VolumeID{v.ID}
	for _, d := range []time.Duration{-1, 0, maxArmed + 1} {
		wantKind(t, a.Arm(ctx, "t", vs, d), driver.InvalidRequest)
	}
	wantKind(t, a.Arm(ctx, "T", vs, time.Second), driver.InvalidRequest)
	wantKind(t, a.Arm(ctx, "t", nil, time.Second), driver.InvalidRequest)
	wantKind(t, a.Arm(ctx, "t", []driver.VolumeID{"nope"}, time.Second), driver.NotFound)
	wantKind(t, a.Arm(ctx, "t", vs, time.Second), driver.NeedsConsent)
	notArmed(t, a, "t", v.ID)
}

// What is not committed in time is aborted by the array. The wall clock has no
// say in it; Arm again extends.
func TestArmingTimesOut(t *testing.T) {
	dir := testDir(t)
	synctest.Test(t, func(t *testing.T) {
		ev := &collector{}
		o := options(dir)
		o.OnEvent = ev.add
		var leaps atomic.Int64
		o.Now = func() time.Time { return time.Now().Add(time.Duration(leaps.Add(1)) * 24 * time.Hour) }
		a := open(t, o)
		v, _ := create(t, a, "v", 8*mib, "a", "b", "c")
		vs := []driver.VolumeID{v.ID}
		again := func() {
			t.Helper()
			if err := a.Arm(t.Context(), "t", vs, 10*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		again()
		for range 3 {
			time.Sleep(9 * time.Second)
			again()
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		notArmed(t, a, "t", v.ID)
		if n := ev.count(SplitUndone); n != 1 {
			t.Errorf("%d events", n)
		}
		again()
		time.Sleep(9 * time.Second)
		commit(t, a, "t")
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(commit(t, a, "t")) != 1 {
			t.Error("the time-out took a committed split back")
		}
	})
}

// A commit that meets the time-out is either the whole split or none.
func TestCommitMeetsTimeOut(t *testing.T) {
	a := open(t, options(testDir(t)))
	v, h := create(t, a, "v", 8*mib, "a", "b", "c")
	for i := range 40 {
		if err := a.Arm(t.Context(), "t", []driver.VolumeID{v.ID}, time.Duration(i)*20*time.Microsecond+1); err != nil {
			t.Fatal(err)
		}
		write(t, h, 0, 4096, byte(i))
		ss, err := a.Commit(t.Context(), "t")
		found, lerr := a.Lookup(t.Context(), "t")
		if lerr != nil {
			t.Fatal(lerr)
		}
		same(t, ss, found)
		if err != nil {
			notArmed(t, a, "t", v.ID)
			continue
		}
		if err := a.Resync(t.Context(), ss[0].ID); err != nil {
			t.Fatal(err)
		}
		if err := a.WaitInSync(t.Context(), v.ID); err != nil {
			t.Fatal(err)
		}
	}
	sameMirrors(t, a, v.ID)
}

// A mirror that fails while armed is dropped; what is left decides.
func TestMirrorBreaksWhileArmed(t *testing.T) {
	lose := func(t *testing.T, a *Array, fs *faultyFS, h *Volume, pool string) {
		t.Helper()
		fs.set(failing("write", pool, syscall.EIO))
		write(t, h, 0, 4096, 'x')
		fs.set(nil)
	}
	for name, c := range map[string]struct {
		lose    string
		consent bool
		want    driver.Kind
	}{
		"the one to split off":       {"c", true, driver.NotSynchronized},
		"another, without consent":   {"a", false, driver.NeedsConsent},
		"another, with the consent":  {"a", true, driver.Unknown},
		"the first before the group": {"b", false, driver.NeedsConsent},
	} {
		t.Run(name, func(t *testing.T) {
			o, fs, _ := faulty(t)
			a := open(t, o)
			v, h := create(t, a, "v", 8*mib, "a", "b", "c")
			w, _ := create(t, a, "w", 8*mib, "a", "b", "c")
			if c.consent {
				prepare(t, a, "t", v.ID, w.ID)
			}
			arm(t, a, "t", w.ID, v.ID)
			lose(t, a, fs, h, c.lose)
			ss, err := a.Commit(t.Context(), "t")
			if c.want == driver.Unknown {
				if err != nil || len(ss) != 2 {
					t.Fatalf("%v, %v", ss, err)
				}
				return
			}
			wantKind(t, err, c.want)
			notArmed(t, a, "t", v.ID, w.ID)
			if vi, _ := a.VolumeInfo(w.ID); vi.Mirrors != 3 {
				t.Errorf("the other volume of the group: %+v", vi)
			}
			write(t, h, 0, 4096, 'y')
		})
	}
}

// Killed while armed, the array starts with nothing armed and all mirrors; what
// was written is there.
func TestKilledWhileArmed(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	v, h := create(t, a, "v", 8*mib, "a", "b", "c")
	write(t, h, 0, mib, '1')
	arm(t, a, "t", v.ID)
	write(t, h, mib, mib, '2')
	// What a kill leaves is what is on the disk now.
	killed := testDir(t)
	if err := os.CopyFS(killed, os.DirFS(filepath.Dir(o.StateDir))); err != nil {
		t.Fatal(err)
	}
	ev := &collector{}
	o = options(killed)
	o.OnEvent = ev.add
	b := open(t, o)
	if err := b.WaitInSync(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	notArmed(t, b, "t", v.ID)
	if n := ev.count(SplitUndone); n != 1 {
		t.Errorf("%d events of the split that was undone", n)
	}
	if got := mirrored(t, b, v.ID); got[0] != '1' || got[mib] != '2' {
		t.Error("content lost")
	}
	arm(t, b, "t", v.ID)
	commit(t, b, "t")

	// A clean end aborts by itself and leaves nothing to undo.
	h.Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := a.Commit(t.Context(), "t")
	if err == nil {
		t.Error("committed on a closed array")
	}
	ev = &collector{}
	o = options(filepath.Dir(a.o.StateDir))
	o.OnEvent = ev.add
	a = open(t, o)
	notArmed(t, a, "t", v.ID)
	if vi, _ := a.VolumeInfo(v.ID); vi.Mirrors != 3 || ev.count(SplitUndone) != 0 {
		t.Errorf("%+v, %d events", vi, ev.count(SplitUndone))
	}
}

// Where the record of a commit can't be known to be stable, neither a repeated
// Commit nor Abort pretends to know.
func TestCommitOutcomeUnknown(t *testing.T) {
	o, fs, _ := faulty(t)
	a := open(t, o)
	v, _ := create(t, a, "v", 8*mib, "a", "b", "c")
	arm(t, a, "t", v.ID)
	fs.set(func(op, path string) error {
		if op == "syncdir" && path == o.StateDir {
			return syscall.EIO
		}
		return nil
	})
	for range 2 {
		_, err := a.Commit(t.Context(), "t")
		wantKind(t, err, driver.OutcomeUnknown)
		wantKind(t, a.Abort(t.Context(), "t"), driver.OutcomeUnknown)
	}
	fs.set(nil)
	if err := a.Close(); err != nil && !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	a = open(t, o)
	if ss, err := a.Lookup(t.Context(), "t"); err != nil || len(ss) != 1 {
		t.Fatalf("Lookup after a restart: %v, %v", ss, err)
	}
	commit(t, a, "t")
}
