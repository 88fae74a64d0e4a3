//go:build lab

package mainjob

import (
	"slices"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/orchestrator"
)

// TestHoldDoesNotDependOnTheArray puts 5 s and 30 s of delay into the split, in
// turn with none, seven times. The largest gap between commits around a set must
// not grow with it, and the guest is released before the split call begins.
func TestHoldDoesNotDependOnTheArray(t *testing.T) {
	s := open(t, lab.Layout{Data: "700M"}, false)
	delays := []time.Duration{0, 5 * time.Second, 30 * time.Second}
	gaps := map[time.Duration][]time.Duration{}
	for range 7 {
		for _, d := range delays {
			s.stage.DelaySplit(d)
			set, err := s.stage.Set(s.ctx, "snapshot", "create", "--vm", "db", "--level", "application", "--wait")
			s.ok(err)
			released := guestReleased(t, set)
			t.Logf("delay %s: the guest was released %s before the split was asked for", d, released)
			record, err := lab.ReadRecord(s.db.Record())
			s.ok(err)
			began, ended := window(set)
			// From the guest's snapshot to well after the split, by the guest's clock.
			gap := lab.LargestGap(record, began.Add(-time.Second), ended.Add(d+2*time.Second))
			gaps[d] = append(gaps[d], gap)
			_, err = s.stage.Cleave(s.ctx, "snapshot", "delete", string(set.ID))
			s.ok(err)
		}
	}
	none := median(gaps[0])
	for _, d := range delays {
		m := median(gaps[d])
		t.Logf("FIGURE median of the largest gap with %s of delay: %s (%.2f of none)", d, m.Round(time.Millisecond), m.Seconds()/none.Seconds())
		if m > none*3/2 {
			t.Errorf("with %s of delay the largest gap is %s; %s without: %v", d, m, none, gaps)
		}
	}
	s.wantNothingLeft()
}

func median(ds []time.Duration) time.Duration {
	ds = slices.Sorted(slices.Values(ds))
	return ds[len(ds)/2]
}

// guestReleased is how long before the split the guest step had ended.
func guestReleased(t *testing.T, set orchestrator.Set) time.Duration {
	t.Helper()
	var guest, split orchestrator.Step
	for _, st := range set.Steps {
		switch st.Name {
		case "guest step":
			guest = st
		case "split":
			if split.From.IsZero() || st.From.After(split.From) {
				split = st
			}
		}
	}
	if guest.To.IsZero() || split.From.IsZero() || !guest.To.Before(split.From) {
		t.Fatalf("the split began at %s, the guest step ended at %s", split.From, guest.To)
	}
	return split.From.Sub(guest.To)
}
