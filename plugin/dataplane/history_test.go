package dataplane

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/lun"
)

func TestHistoryIsKept(t *testing.T) {
	h := history{t.TempDir()}
	a, b := iscsi.Name("iqn.2026-01.test:a"), iscsi.Name("iqn.2026-01.test:b")
	if got, err := h.Load(a); err != nil || got != nil {
		t.Errorf("of a new target: %q %v", got, err)
	}
	if err := h.Save(a, []byte("state of a")); err != nil {
		t.Fatal(err)
	}
	if got, err := (history{h.dir}).Load(a); err != nil || string(got) != "state of a" {
		t.Errorf("%q %v", got, err)
	}
	if got, err := h.Load(b); err != nil || got != nil {
		t.Errorf("of another target: %q %v", got, err)
	}
	if err := os.WriteFile(h.path(a), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Load(a); err == nil {
		t.Error("an empty file is taken for a new target")
	}
}

// TestNumbersOverRestart: what an initiator has seen and not given back by a
// logout is not shown another LUN under the same number, over a restart and with
// the count of numbers lost.
func TestNumbersOverRestart(t *testing.T) {
	need(t, "qemu-io")
	c := config(t)
	cl, stop := run(t, c)
	v := volume(t, cl, "one", 1<<20)
	path, err := cl.ExposeVolume(t.Context(), v.ID, []string{alice}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := qemuIO(t, disk(path, alice), nil, "read 0 4k"); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { // the answer to a logout is sent before the session has gone
		s, err := cl.Status(t.Context())
		if err == nil && len(s.Sessions) > 0 {
			err = fmt.Errorf("still logged in: %+v", s.Sessions)
		}
		return err
	})
	if err := cl.UnexposeVolume(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	stop()
	r, err := loadRecord(c.StateDir + "/target.json")
	if err != nil {
		t.Fatal(err)
	}
	r.Next = int(path.LUN) // as if it had come round
	if err := r.save(c.StateDir + "/target.json"); err != nil {
		t.Fatal(err)
	}
	// It logged out: the number may be used again.
	cl, stop = run(t, c)
	again, err := cl.ExposeVolume(t.Context(), volume(t, cl, "two", 1<<20).ID, []string{alice}, false)
	if err != nil || again.LUN != path.LUN {
		t.Errorf("after a logout: LUN %d %v, want %d", again.LUN, err, path.LUN)
	}
	stop()

	// It did not: no other LUN gets it.
	seen := fmt.Sprintf(`{"version":1,"numbers":[{"lun":%d,"identity":%q,"initiators":[%q],"removed":%q}]}`,
		path.LUN+1, lun.NewIdentity(), alice, time.Now().Format(time.RFC3339))
	if err := (history{c.StateDir + "/history"}).Save(c.IQN, []byte(seen)); err != nil {
		t.Fatal(err)
	}
	cl, stop = run(t, c)
	defer stop()
	other, err := cl.ExposeVolume(t.Context(), volume(t, cl, "three", 1<<20).ID, []string{alice}, false)
	if err != nil || other.LUN != path.LUN+2 {
		t.Errorf("cut off: LUN %d %v, want %d", other.LUN, err, path.LUN+2)
	}
}
