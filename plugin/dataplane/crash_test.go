package dataplane

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
)

// TestKillDuringExposing: whatever was acknowledged holds after kill -9, and
// what was not is either done or not, and can be done or undone again.
func TestKillDuringExposing(t *testing.T) {
	cfg := config(t)
	cfg.Portals = []Portal{{Addr: port(t)}}
	cmd := spawn(t, cfg)
	c := remote.New(cfg.Socket)
	v := volume(t, c, "db", 8<<20)
	given := map[uint64]bool{} // LUN numbers of acknowledged exposures
	for range 6 {
		done := make(chan struct{})
		var acked *driver.Path // the last acknowledged state; nil: not exposed
		var asked string       // what had no answer
		go func() {
			defer close(done)
			for {
				p, err := c.ExposeVolume(t.Context(), v.ID, []string{alice}, false)
				if err != nil {
					asked = "expose"
					return
				}
				if given[p.LUN] {
					t.Errorf("LUN %d was given again", p.LUN)
				}
				given[p.LUN] = true
				acked = &p
				if err := c.UnexposeVolume(t.Context(), v.ID); err != nil {
					asked = "unexpose"
					return
				}
				acked = nil
			}
		}()
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond) // at any moment
		cmd.Process.Kill()
		cmd.Wait()
		<-done
		cmd = spawn(t, cfg)
		s, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case len(s.LUNs) > 1:
			t.Errorf("one volume, LUNs %+v", s.LUNs)
		case len(s.LUNs) == 0 && acked != nil && asked != "unexpose":
			t.Errorf("LUN %d was acknowledged and is gone", acked.LUN)
		case len(s.LUNs) == 1 && acked == nil && asked != "expose":
			t.Errorf("LUN %+v was taken away and is there", s.LUNs[0])
		case len(s.LUNs) == 1 && acked != nil && s.LUNs[0].LUN != acked.LUN:
			t.Errorf("LUN %d became %d", acked.LUN, s.LUNs[0].LUN)
		}
		if len(s.LUNs) == 1 {
			given[s.LUNs[0].LUN] = true
		}
		if err := c.UnexposeVolume(t.Context(), v.ID); err != nil {
			t.Error(err)
		}
	}
	if len(given) == 0 {
		t.Error("nothing was ever exposed: the test proves nothing")
	}
}
