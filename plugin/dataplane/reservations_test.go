package dataplane

import (
	"bytes"
	"os"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

func TestReservationsAreKept(t *testing.T) {
	s := reservations{t.TempDir()}
	a, b := lun.NewIdentity(), lun.NewIdentity()
	load := func(id lun.Identity, want string) {
		t.Helper()
		if got, err := s.Load(id); err != nil || string(got) != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	load(a, "")
	for _, state := range []string{"one", "another", ""} {
		if err := s.Save(a, []byte(state)); err != nil {
			t.Fatal(err)
		}
		load(a, state)
		load(b, "")
	}
	if err := s.Save(a, nil); err != nil { // nothing twice
		t.Error(err)
	}
	if err := os.WriteFile(s.path(b), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(b); err == nil {
		t.Error("an empty file is taken for no reservations")
	}
}

// A LUN whose reservations are damaged is not served, the others are, and
// unexposing it clears the matter up.
func TestDamagedReservations(t *testing.T) {
	c := config(t)
	cl, stop := run(t, c)
	good, bad := volume(t, cl, "good", 1<<20), volume(t, cl, "bad", 1<<20)
	expose := func(v driver.VolumeID) driver.Path {
		t.Helper()
		path, err := cl.ExposeVolume(t.Context(), v, []string{alice}, false)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	expose(good.ID)
	path := expose(bad.ID)
	stop()
	s := reservations{c.StateDir + "/reservations"}
	if err := s.Save(path.Identity, bytes.Repeat([]byte("x"), 100)); err != nil {
		t.Fatal(err)
	}
	cl, _ = run(t, c)
	for _, v := range []struct {
		id      driver.VolumeID
		problem bool
	}{{good.ID, false}, {bad.ID, true}} {
		info, err := cl.Volume(t.Context(), v.id)
		if err != nil || info.LUN == nil || (info.LUN.Problem != "") != v.problem {
			t.Errorf("volume %s: %+v, %v", v.id, info.LUN, err)
		}
	}
	if err := cl.UnexposeVolume(t.Context(), bad.ID); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Load(path.Identity); err != nil || b != nil {
		t.Errorf("%q, %v", b, err)
	}
	expose(bad.ID)
}
