package embedded

import (
	"bytes"
	"os"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// content is all that a volume or snapshot holds.
func content(t testing.TB, d lun.Device) []byte {
	t.Helper()
	return read(t, d, 0, int(d.Size()))
}

func snapContent(t testing.TB, a *Array, id driver.SnapshotID) []byte {
	t.Helper()
	d, err := a.OpenSnapshot(id, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return content(t, d)
}

func openVolume(t testing.TB, a *Array, id driver.VolumeID) *Volume {
	t.Helper()
	h, err := a.OpenVolume(id, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestRevert(t *testing.T) {
	o := options(testDir(t))
	var ev collector
	o.OnEvent = ev.add
	a := open(t, o)
	info, h := create(t, a, "db", 8*mib, "a", "b", "c")
	write(t, h, 0, mib, '1')
	s := split(t, a, "t1", info.ID)
	w, err := a.OpenWritable(s.ID, "writer")
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, 5*mib, 4096, 'w')
	then := content(t, w)
	write(t, h, mib/2, mib, '2')
	if _, err := a.GrowVolume(t.Context(), info.ID, 10*mib); err != nil {
		t.Fatal(err)
	}
	write(t, h, 9*mib, mib, '3')
	before := content(t, h)

	_, err = a.Revert(t.Context(), s.ID)
	wantKind(t, err, driver.Busy) // the volume
	h.Close()
	_, err = a.Revert(t.Context(), s.ID)
	wantKind(t, err, driver.Busy) // the snapshot
	w.Close()
	safe, err := a.Revert(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Revert(t.Context(), s.ID)
	if err != nil || again.ID != safe.ID || safe.Tag != "safe-"+driver.Tag(s.ID) || safe.ID == s.ID {
		t.Fatalf("repeated: %+v, %v; first %+v", again, err, safe)
	}
	_, err = a.Reverse(t.Context(), s.ID)
	wantKind(t, err, driver.NotFound)
	if ss, _ := a.Lookup(t.Context(), "t1"); len(ss) != 0 {
		t.Fatalf("the snapshot is still there: %+v", ss)
	}
	h = openVolume(t, a, info.ID)
	want := append(bytes.Clone(then), make([]byte, 2*mib)...)
	if !bytes.Equal(content(t, h), want) {
		t.Fatal("the volume does not hold what the snapshot did")
	}
	if !bytes.Equal(snapContent(t, a, safe.ID), before) {
		t.Fatal("the safe point does not hold what the volume did")
	}
	if err := a.WaitInSync(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	if now, _ := a.VolumeInfo(info.ID); now.Mirrors != 2 || now.Identity != info.Identity {
		t.Fatalf("after the revert: %+v", now)
	}
	sameMirrors(t, a, info.ID)

	// And back again, which is a revert to the safe point; over a restart.
	h.Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if ev.count(Unmirrored) != 1 {
		t.Error("nobody was told that the volume is unmirrored")
	}
	a = open(t, o)
	if _, err := a.Revert(t.Context(), safe.ID); err != nil {
		t.Fatal(err)
	}
	h = openVolume(t, a, info.ID)
	if !bytes.Equal(content(t, h), before) {
		t.Fatal("reverting to the safe point does not bring the content back")
	}
	if err := a.Resync(t.Context(), a.Snapshots()[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := a.WaitInSync(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mirrored(t, a, info.ID), before) {
		t.Fatal("content changed with the resync")
	}
}

func TestReverse(t *testing.T) {
	a := open(t, options(testDir(t)))
	info, h := create(t, a, "db", 8*mib, "a", "b")
	write(t, h, 0, mib, '1')
	prepare(t, a, "t1", info.ID)
	s := split(t, a, "t1", info.ID)
	write(t, h, 3*mib, mib, '2')
	then, before := snapContent(t, a, s.ID), content(t, h)
	h.Close()
	r, err := a.Reverse(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Reverse(t.Context(), s.ID)
	if err != nil || again.ID != r.ID || r.Tag != "t1" || r.ID == s.ID {
		t.Fatalf("repeated: %+v, %v; first %+v", again, err, r)
	}
	h = openVolume(t, a, info.ID)
	if !bytes.Equal(content(t, h), then) || !bytes.Equal(snapContent(t, a, r.ID), before) {
		t.Fatal("contents were not exchanged")
	}
	h.Close()
	back, err := a.Reverse(t.Context(), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	h = openVolume(t, a, info.ID)
	if !bytes.Equal(content(t, h), before) || !bytes.Equal(snapContent(t, a, back.ID), then) {
		t.Fatal("contents were not exchanged back")
	}
	if v, _ := a.VolumeInfo(info.ID); v.UnmirroredSince.IsZero() {
		t.Fatalf("not unmirrored: %+v", v)
	}
}

func TestBreak(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	info, h := create(t, a, "db", 8*mib, "a", "b", "c")
	write(t, h, 0, mib, '1')
	s := split(t, a, "t1", info.ID)
	r, err := a.OpenSnapshot(s.ID, "reader")
	if err != nil {
		t.Fatal(err)
	}
	want := content(t, r)
	_, err = a.Break(t.Context(), s.ID, "copy")
	wantKind(t, err, driver.Busy)
	r.Close()
	for _, bad := range []string{"db", "", "Copy", "../x"} {
		_, err = a.Break(t.Context(), s.ID, bad)
		wantKind(t, err, driver.InvalidRequest)
	}
	for range 3 {
		v, err := a.Break(t.Context(), s.ID, "copy")
		if err != nil || v.Identity != s.Identity || v.Name != "copy" || v.Size != s.Size || v.Mirrors != 1 {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	_, err = a.Break(t.Context(), s.ID, "other")
	wantKind(t, err, driver.InvalidRequest)
	if len(a.Snapshots()) != 0 || len(a.find1(t, info.ID).epochs) != 0 {
		t.Fatal("the snapshot or its epochs are still there")
	}
	c := openVolume(t, a, "copy")
	write(t, c, 4*mib, mib, 'c')
	copy(want[4*mib:], bytes.Repeat([]byte{'c'}, mib))
	h.Close()
	c.Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	if !bytes.Equal(content(t, openVolume(t, a, "copy")), want) {
		t.Fatal("content changed over a restart")
	}
	prepare(t, a, "t2", info.ID) // the source gets a third mirror again
	if v, _ := a.VolumeInfo(info.ID); v.Mirrors != 3 {
		t.Fatalf("source: %+v", v)
	}
	if _, err := a.AddMirror(t.Context(), "copy", "b"); err != nil {
		t.Fatal(err)
	}
	if err := a.WaitInSync(t.Context(), "copy"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mirrored(t, a, "copy"), want) {
		t.Fatal("the new mirror differs")
	}
}

// A snapshot goes on when its volume is deleted, and becomes one itself.
func TestOrphan(t *testing.T) {
	a := open(t, options(testDir(t)))
	info, h := create(t, a, "db", 8*mib, "a", "b", "c")
	write(t, h, 0, mib, '1')
	s := split(t, a, "t1", info.ID)
	h.Close()
	if err := a.DeleteVolume(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	_, err := a.Changes(t.Context(), info.ID, s.ID, "")
	wantKind(t, err, driver.NotSupported)
	_, err = a.Revert(t.Context(), s.ID)
	wantKind(t, err, driver.InvalidRequest)
	if _, err := a.Break(t.Context(), s.ID, "db"); err != nil {
		t.Fatal(err)
	}
	if got := content(t, openVolume(t, a, "db")); got[0] != '1' {
		t.Fatal("content lost")
	}
}

func TestChanges(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	info, h := create(t, a, "db", 8*mib, "a", "b", "c")
	check := func(from, to driver.SnapshotID, want ...lun.Extent) {
		t.Helper()
		for range 2 { // either way round
			c, err := a.Changes(t.Context(), info.ID, from, to)
			if err != nil || c.Granularity != regionSize || len(c.Regions) != len(want) {
				t.Fatalf("%+v, %v; want %+v", c, err, want)
			}
			for i := range want {
				if c.Regions[i] != want[i] {
					t.Fatalf("%+v; want %+v", c, want)
				}
			}
			from, to = to, from
		}
	}
	region := func(first, n int64) lun.Extent { return lun.Extent{Off: first * regionSize, Len: n * regionSize} }
	check("", "")
	s1 := split(t, a, "t1", info.ID)
	write(t, h, regionSize-512, 1024, 'x')
	prepare(t, a, "t2", info.ID)
	s2 := split(t, a, "t2", info.ID)
	if err := h.Trim(10*regionSize, 512); err != nil {
		t.Fatal(err)
	}
	w, err := a.OpenWritable(s1.ID, "writer")
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, 20*regionSize, 512, 'w')
	verify := func() {
		t.Helper()
		check(s1.ID, s1.ID)
		check(s1.ID, s2.ID, region(0, 2), region(20, 1))
		check(s2.ID, "", region(10, 1))
		check(s1.ID, "", region(0, 2), region(10, 1), region(20, 1))
	}
	verify()
	w.Close()
	h.Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	// Offline: both remaining pools' files are gone, and the maps are not.
	a = open(t, o)
	verify()
	if _, err := a.GrowVolume(t.Context(), info.ID, 9*mib+512); err != nil {
		t.Fatal(err)
	}
	check(s2.ID, "", region(10, 1), lun.Extent{Off: 8 * mib, Len: mib + 512})
	vi, _ := a.VolumeInfo(info.ID)
	a.Close()
	for _, m := range vi.Replicas {
		if err := os.Rename(m.File, m.File+".away"); err != nil {
			t.Fatal(err)
		}
	}
	a = open(t, o)
	if vi, _ := a.VolumeInfo(info.ID); vi.State != driver.Broken {
		t.Fatalf("not offline: %+v", vi)
	}
	check(s1.ID, s2.ID, region(0, 2), region(20, 1))
	check(s2.ID, "", region(10, 1), lun.Extent{Off: 8 * mib, Len: mib + 512})
	if got := snapContent(t, a, s2.ID); got[regionSize] != 'x' {
		t.Fatal("a snapshot can't be read while its volume is offline")
	}
	_, err = a.Revert(t.Context(), s2.ID)
	wantKind(t, err, driver.NotSynchronized)

	other, _ := create(t, a, "other", mib, "a")
	_, err = a.Changes(t.Context(), other.ID, s1.ID, "")
	wantKind(t, err, driver.InvalidRequest)
	_, err = a.Changes(t.Context(), info.ID, "nonsense", "")
	wantKind(t, err, driver.NotFound)
}
