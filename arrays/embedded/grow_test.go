package embedded

import (
	"bytes"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
)

// A volume grows while a mirror is being filled, and what is added and written
// meanwhile is on all of them.
func TestGrowWhileFilling(t *testing.T) {
	o := options(testDir(t))
	a := open(t, o)
	info, h := create(t, a, "db", 3*mib+512, "a")
	write(t, h, 0, 3*mib+512, '1')
	a.SetResyncRate(1) // the first chunk goes at once, the second never
	if _, err := a.AddMirror(t.Context(), info.ID, "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.GrowVolume(t.Context(), info.ID, 300*mib); err != nil {
		t.Fatal(err)
	}
	write(t, h, 3*mib, mib, '2')
	write(t, h, 299*mib, mib, '3')
	if v, _ := a.VolumeInfo(info.ID); v.State != driver.Unsynchronized {
		t.Fatalf("the mirror was not being filled: %+v", v)
	}
	h.Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = open(t, o)
	var err error
	if err = a.WaitInSync(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	sameMirrors(t, a, info.ID)
	if h, err = a.OpenVolume(info.ID, "test"); err != nil {
		t.Fatal(err)
	}
	if v, _ := a.VolumeInfo(info.ID); v.Mirrors != 2 || v.Size != 300*mib {
		t.Fatalf("%+v", v)
	}
	if got := read(t, h, 0, 6*mib); got[3*mib-1] != '1' || got[3*mib+511] != '2' || got[5*mib] != 0 {
		t.Fatal("content of what was there")
	}
	if !bytes.Equal(read(t, h, 299*mib, mib), bytes.Repeat([]byte{'3'}, mib)) {
		t.Fatal("content of what was added")
	}
}

// Copying says how far it is and how long it will take; what was never begun
// says what it would copy.
func TestEstimates(t *testing.T) {
	a := open(t, options(testDir(t)))
	info, h := create(t, a, "db", 64*mib, "a", "b")
	prepare(t, a, "t1", info.ID)
	s := split(t, a, "t1", info.ID)
	w, err := a.OpenWritable(s.ID, "writer")
	if err != nil {
		t.Fatal(err)
	}
	write(t, h, 0, 16*mib, '1')
	write(t, w, 8*mib, 16*mib, '2') // half of it changed on both sides
	w.Close()
	a.SetResyncRate(4 * mib)
	si := a.Snapshots()[0]
	if si.ResyncBytes != 24*mib || si.ResyncTime.Seconds() != 6 || si.UnmirroredSince.IsZero() {
		t.Fatalf("estimate: %+v", si)
	}
	if err := a.Resync(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	var m MirrorInfo
	var v VolumeInfo
	eventually(t, "a pace", func() bool {
		v, _ = a.VolumeInfo(info.ID)
		for _, m = range v.Replicas {
			if m.Rate > 0 && m.Copied > mib {
				return true
			}
		}
		return false
	})
	if m.ToCopy != 24*mib || m.Remaining <= 0 || v.Remaining != m.Remaining || m.Copied >= m.ToCopy {
		t.Fatalf("while copying: %+v of %+v", m, v)
	}
	a.SetResyncRate(0)
	if err := a.WaitInSync(t.Context(), info.ID); err != nil {
		t.Fatal(err)
	}
	if v, _ = a.VolumeInfo(info.ID); v.Remaining != 0 || !v.UnmirroredSince.IsZero() {
		t.Fatalf("in sync: %+v", v)
	}
}
