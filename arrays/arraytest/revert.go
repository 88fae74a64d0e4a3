package arraytest

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// fill writes a part of a volume full of one byte.
func fill(t *testing.T, d lun.Device, off int64, n int, b byte) {
	t.Helper()
	if _, err := d.WriteAt(bytes.Repeat([]byte{b}, n), off); err != nil {
		t.Fatal(err)
	}
}

// testRevert puts a volume back to a split, and then to the safe point of that:
// each time it holds what it held, byte for byte.
func testRevert(t *testing.T, l *Lab) {
	a, v := l.array(), &l.Volumes[0]
	vs := []driver.VolumeID{v.ID}
	_, err := a.Revert(t.Context(), "no-such-snapshot")
	wantKind(t, "Revert to an unknown snapshot", err, driver.NotFound)
	fill(t, v.Device, 0, 1<<20, 1)
	prepare(t, a, "revert", vs)
	ss := split(t, a, "revert", vs)
	was := readAll(t, v.Device, v.Device.Size())
	fill(t, v.Device, 512<<10, 1<<20, 2)
	now := readAll(t, v.Device, v.Device.Size())
	_, err = a.Revert(t.Context(), ss[0].ID)
	wantKind(t, "Revert of a volume in use", err, driver.Busy)
	if got := readAll(t, v.Device, v.Device.Size()); !bytes.Equal(got, now) {
		t.Error("a Revert that was refused changed the volume")
	}

	// To the split, and from there to the safe point.
	to := ss[0].ID
	for _, want := range [][]byte{was, now} {
		before := readAll(t, v.Device, v.Device.Size())
		l.Detach(t, v.ID)
		safe, err := a.Revert(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		if safe.Volume != v.ID {
			t.Errorf("the safe point is of volume %q, want %q", safe.Volume, v.ID)
		}
		v.Device = l.Attach(t, v.ID)
		if got := readAll(t, v.Device, v.Device.Size()); !bytes.Equal(got, want) {
			t.Error("the volume holds something else than the snapshot did")
		}
		if a.CanOpen() && !bytes.Equal(content(t, a, safe.ID), before) {
			t.Error("the safe point holds something else than the volume did")
		}
		fill(t, v.Device, 2<<20, 4096, 7) // it is a volume as ever
		fill(t, v.Device, 2<<20, 4096, 0)
		to = safe.ID
	}
	found(t, a, "no-such-tag", nil)
	for _, s := range []driver.SnapshotID{ss[0].ID, to} { // the first may be used up
		if err := a.GiveBack(t.Context(), s); err != nil {
			wantKind(t, "GiveBack of what may be used up", err, driver.NotFound)
		}
	}
	prepare(t, a, "revert-again", vs)
}

// lifeReverted reverts to a split, and gives up what is left.
func lifeReverted(x *living) {
	vs := x.lab.ids(1)
	x.prepare(vs)
	v := &x.lab.Volumes[0] // a restart replaces it
	fill(x.T, v.Device, 0, 4096, 1)
	ss := x.split(vs)
	v = &x.lab.Volumes[0]
	fill(x.T, v.Device, 0, 4096, 2)
	if x.trouble.name == "Restarted" {
		x.lab.Restart(x.T) // once: it would attach the volume again
		v = &x.lab.Volumes[0]
		x.trouble.make = func(*living, func(context.Context, *arrays.Array) error) error { return nil }
	}
	x.lab.Detach(x.T, v.ID)
	var safe driver.Snapshot
	keep := result(x, &safe, func(a, b driver.Snapshot) bool { return a.ID == b.ID && a.Identity == b.Identity })
	x.do("Revert", func(ctx context.Context, a *arrays.Array) error { return keep(a.Revert(ctx, ss[0].ID)) })
	v.Device = x.lab.Attach(x.T, v.ID)
	if got := readAll(x.T, v.Device, 4096); !bytes.Equal(got, bytes.Repeat([]byte{1}, 4096)) {
		x.Error("the volume holds something else than the snapshot did")
	}
	x.do("GiveBack", func(ctx context.Context, a *arrays.Array) error { return a.GiveBack(ctx, safe.ID) })
	if ss, err := x.lab.array().Lookup(x.Context(), safe.Tag); err != nil || slices.ContainsFunc(ss, func(s driver.Snapshot) bool { return s.ID == safe.ID }) {
		x.Errorf("the safe point was given back and is there: %v, %v", ss, err)
	}
	for _, s := range ss { // it may be used up
		if err := x.lab.array().Delete(x.Context(), s.ID); err != nil {
			x.Error(err)
		}
	}
	x.found(nil)
}

// testBreak makes a snapshot a volume: no snapshot any more, the same content and
// identity, and a life of its own.
func testBreak(t *testing.T, l *Lab) {
	a, v := l.array(), l.Volumes[0]
	vs := []driver.VolumeID{v.ID}
	_, err := a.Break(t.Context(), "no-such-snapshot", "broken-off")
	wantKind(t, "Break of an unknown snapshot", err, driver.NotFound)
	fill(t, v.Device, 0, 1<<20, 1)
	prepare(t, a, "break", vs)
	ss := split(t, a, "break", vs)
	was := readAll(t, v.Device, v.Device.Size())
	fill(t, v.Device, 512<<10, 1<<20, 2)
	if a.CanExpose() {
		o := driver.ExposeOptions{Initiators: []string{l.Initiator}}
		if _, err := a.Expose(t.Context(), ss[0].ID, o); err != nil {
			t.Fatal(err)
		}
		_, err := a.Break(t.Context(), ss[0].ID, "broken-off")
		wantKind(t, "Break of what is exposed", err, driver.Busy)
		if err := a.Unexpose(t.Context(), ss[0].ID); err != nil {
			t.Fatal(err)
		}
	}
	n, err := a.Break(t.Context(), ss[0].ID, "broken-off")
	if err != nil {
		t.Fatal(err)
	}
	if n.ID == v.ID || n.Name != "broken-off" || n.Size != ss[0].Size || n.Identity != ss[0].Identity {
		t.Errorf("the new volume is %+v, the snapshot was %+v", n, ss[0])
	}
	found(t, a, "break", nil)
	if err := a.Delete(t.Context(), ss[0].ID); err != nil {
		t.Errorf("Delete of what was broken off: %v", err)
	}
	if !n.Identity.IsZero() {
		if r, err := a.Resolve(t.Context(), driver.Disk{Identity: n.Identity}); err != nil || r.ID != n.ID {
			t.Errorf("Resolve of the new volume: %+v, %v", r, err)
		}
	}
	if l.Attach != nil {
		d := l.Attach(t, n.ID)
		if got := readAll(t, d, d.Size()); !bytes.Equal(got, was) {
			t.Error("the new volume holds something else than the snapshot did")
		}
		fill(t, d, 0, 4096, 9)
		if got := readAll(t, v.Device, 4096); got[0] != 1 {
			t.Error("a write to the new volume reached the old one")
		}
	}
	prepare(t, a, "break-2", vs) // the volume is mirrored as before
}

func lifeBrokenOff(x *living) {
	vs := x.lab.ids(1)
	x.prepare(vs)
	ss := x.split(vs)
	var v driver.Volume
	keep := result(x, &v, func(a, b driver.Volume) bool { return a.ID == b.ID && a.Name == b.Name && a.Identity == b.Identity })
	name := "broken-" + string(x.tag)
	x.do("Break", func(ctx context.Context, a *arrays.Array) error { return keep(a.Break(ctx, ss[0].ID, name)) })
	x.found(nil)
}
