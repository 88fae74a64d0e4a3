package arraytest

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

func testResolve(t *testing.T, l *Lab) {
	a := l.array()
	for range 3 {
		v, err := a.Resolve(t.Context(), l.Disk)
		if err != nil || v.ID != l.Volumes[0].ID || v.Size < MinVolume {
			t.Fatalf("Resolve: %+v, %v; want volume %q", v, err, l.Volumes[0].ID)
		}
	}
	_, err := a.Resolve(t.Context(), driver.Disk{Identity: lun.NewIdentity()})
	wantKind(t, "Resolve of another's disk", err, driver.NotMine)
	_, err = a.Resolve(t.Context(), driver.Disk{Path: "/dev/nowhere-at-all"})
	wantKind(t, "Resolve of an unknown path", err, driver.NotMine)
}

func testRepeated(t *testing.T, l *Lab) {
	a, vs := l.array(), l.ids(1)
	found(t, a, "repeated", nil)
	prepare(t, a, "repeated", vs)
	first := split(t, a, "repeated", vs)
	for range 9 {
		if again := split(t, a, "repeated", vs); again[0].ID != first[0].ID || again[0].Identity != first[0].Identity {
			t.Fatalf("Split with the same tag: %+v, then %+v", first[0], again[0])
		}
		found(t, a, "repeated", first)
	}
	if v, err := a.Resolve(t.Context(), l.Disk); err == nil && !v.Identity.IsZero() && v.Identity == first[0].Identity {
		t.Error("the snapshot has its volume's identity")
	}
	prepare(t, a, "repeated", vs) // of a set that is split already
	for range 10 {
		if err := a.Delete(t.Context(), first[0].ID); err != nil {
			t.Fatalf("Delete: %v", err)
		}
	}
	found(t, a, "repeated", nil)
	wantKind(t, "Split of an unknown volume", a.Prepare(t.Context(), []driver.VolumeID{"no-such-volume"}, driver.PrepareOptions{Tag: "x"}), driver.NotFound)
	_, err := a.Split(t.Context(), "x", []driver.VolumeID{"no-such-volume"})
	wantKind(t, "Split of an unknown volume", err, driver.NotFound)
	if err := a.Delete(t.Context(), "no-such-snapshot"); err != nil {
		t.Errorf("Delete of what is not there: %v", err)
	}
}

func testGroup(t *testing.T, l *Lab) {
	a := l.array()
	vs := l.ids(len(l.Volumes))
	prepare(t, a, "group", vs)
	ss := split(t, a, "group", vs)
	seen := map[lun.Identity]bool{}
	for _, s := range ss {
		if !s.Identity.IsZero() && seen[s.Identity] {
			t.Errorf("identity %s occurs twice in a group", s.Identity)
		}
		seen[s.Identity] = true
	}
	found(t, a, "group", ss)
	again := split(t, a, "group", vs)
	for i := range ss {
		if again[i].ID != ss[i].ID {
			t.Errorf("group split again: %s, then %s", ss[i].ID, again[i].ID)
		}
	}
	_, err := a.Split(t.Context(), "group", vs[:1])
	if err != nil { // one of them alone may be given or refused, never made anew
		wantKind(t, "a part of a group", err, driver.InvalidRequest)
	}
	found(t, a, "group", ss)
	giveBack(t, a, ss)

	// All or nothing: one bad volume, and none is split.
	prepare(t, a, "half", vs)
	if _, err := a.Split(t.Context(), "half", append(l.ids(len(vs)), "no-such-volume")); err == nil {
		t.Error("a group with an unknown volume was split")
	}
	found(t, a, "half", nil)
}

func testAgain(t *testing.T, l *Lab) {
	a, vs := l.array(), l.ids(1)
	dev := l.Volumes[0].Device
	for i := range 4 {
		tag := driver.Tag(fmt.Sprintf("again-%d", i))
		prepare(t, a, tag, vs)
		mark := func(b byte) {
			if _, err := dev.WriteAt(append(make([]byte, 511), b), int64(i)*(1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		mark(byte(10 + i))
		ss := split(t, a, tag, vs)
		mark(99)
		if a.CanOpen() {
			for range 2 {
				d, err := a.Open(t.Context(), ss[0].ID)
				if err != nil {
					t.Fatal(err)
				}
				var b [1]byte
				if _, err := d.ReadAt(b[:], int64(i)*(1<<20)+511); err != nil || b[0] != byte(10+i) {
					t.Errorf("round %d: the snapshot holds %d, want what was written before the split; %v", i, b[0], err)
				}
				if i > 0 {
					if _, err := d.ReadAt(b[:], int64(i-1)*(1<<20)+511); err != nil || b[0] != 99 {
						t.Errorf("round %d: the snapshot holds %d, want what was written after the last split; %v", i, b[0], err)
					}
				}
				if c, ok := d.(io.Closer); ok {
					c.Close()
				}
			}
		}
		for range 3 {
			giveBack(t, a, ss)
		}
		found(t, a, tag, nil)
	}
}

func testExpose(t *testing.T, l *Lab) {
	a, vs := l.array(), l.ids(1)
	prepare(t, a, "expose", vs)
	ss := split(t, a, "expose", vs)
	id, to := ss[0].ID, []string{l.Initiator}
	if err := a.Unexpose(t.Context(), id); err != nil {
		t.Errorf("Unexpose of what is not exposed: %v", err)
	}
	_, err := a.Expose(t.Context(), id, driver.ExposeOptions{})
	wantKind(t, "Expose to nobody", err, driver.InvalidRequest)
	p, err := a.Expose(t.Context(), id, driver.ExposeOptions{Initiators: to})
	if err != nil {
		t.Fatal(err)
	}
	same := func(q driver.Path, err error) {
		t.Helper()
		if err != nil || q.IQN != p.IQN || q.LUN != p.LUN || q.Identity != p.Identity {
			t.Errorf("Expose again: %+v, %v; the first was %+v", q, err, p)
		}
	}
	same(a.Expose(t.Context(), id, driver.ExposeOptions{Initiators: to}))
	wantKind(t, "Delete of what is exposed", a.Delete(t.Context(), id), driver.Busy)
	same(a.Expose(t.Context(), id, driver.ExposeOptions{Initiators: to, Writable: true}))
	for range 3 {
		if err := a.Unexpose(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	giveBack(t, a, ss)
}

// testWithout switches options off and sees that callers get by.
func testWithout(t *testing.T, l *Lab) {
	a := l.array(arrays.Capabilities()...)
	vs := l.ids(2)
	if len(vs) == 2 {
		_, err := a.Split(t.Context(), "without", vs)
		wantKind(t, "a group where none can be split", err, driver.NotSupported)
	}
	prepare(t, a, "without", vs[:1])
	ss := split(t, a, "without", vs[:1])
	id := ss[0].ID
	wantKind(t, "Arm", a.Arm(t.Context(), "without-2", vs[:1], time.Minute), driver.NotSupported)
	wantKind(t, "Resync", a.Resync(t.Context(), id), driver.NotSupported)
	_, err := a.Open(t.Context(), id)
	wantKind(t, "Open", err, driver.NotSupported)
	_, err = a.Expose(t.Context(), id, driver.ExposeOptions{Initiators: []string{"iqn.2026-01.org.example:x"}})
	wantKind(t, "Expose", err, driver.NotSupported)
	_, err = a.Revert(t.Context(), id)
	wantKind(t, "Revert", err, driver.NotSupported)
	_, err = a.Break(t.Context(), id, "broken-off")
	wantKind(t, "Break", err, driver.NotSupported)
	_, err = a.Changes(t.Context(), vs[0], id, "")
	wantKind(t, "Changes", err, driver.NotSupported)
	found(t, a, "without", ss)
	giveBack(t, a, ss) // by deletion
	found(t, a, "without", nil)
	prepare(t, a, "without-2", vs[:1]) // what was deleted is replaced
}
