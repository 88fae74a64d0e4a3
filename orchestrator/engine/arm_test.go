package engine_test

import (
	"slices"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// calls notes the order of what two arrays are asked to do.
func (w *world) calls() func() []string {
	var mu sync.Mutex
	var seen []string
	for i, a := range w.arrays() {
		note := func(op string) {
			mu.Lock()
			seen = append(seen, op+" "+string(rune('a'+i)))
			mu.Unlock()
		}
		a.on = note
		a.onSplit = func() { note("split") }
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

// A set over two arrays has both ready before the first one splits.
func TestTwoArraysArmThenCommit(t *testing.T) {
	w := twoArrays(t, true)
	calls := w.calls()
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, request())
	wantState(t, set, orchestrator.StateReady)
	seen := calls()
	ready := max(slices.Index(seen, "after arm a"), slices.Index(seen, "after arm b"))
	begun := slices.IndexFunc(seen, func(s string) bool { return s == "before commit a" || s == "before commit b" })
	if len(seen) != 10 || ready < 0 || begun < ready {
		t.Errorf("the arrays were asked %q", seen)
	}
	if len(set.Splits) != 2 {
		t.Errorf("%d splits", len(set.Splits))
	}
	if _, err := e.Release(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	w.wantNothingLeft()
}

// Whatever fails in the middle, a set over two arrays leaves nothing armed and
// nothing split; a lost reply is looked up.
func TestTwoArraysFailInTheMiddle(t *testing.T) {
	refusal := driver.Errorf(driver.NotSynchronized, "a mirror broke")
	for name, c := range map[string]struct {
		fail   func(w *world)
		want   orchestrator.State
		splits int // that were made, or tried
	}{
		"the second does not arm":     {func(w *world) { w.second.refuseArm = refusal }, orchestrator.StateAborted, 0},
		"the first does not arm":      {func(w *world) { w.array.refuseArm = refusal }, orchestrator.StateAborted, 0},
		"the second does not commit":  {func(w *world) { w.second.refuse = refusal }, orchestrator.StateAborted, 2},
		"the second's reply is lost":  {func(w *world) { w.second.loseReply = true }, orchestrator.StateReady, 2},
		"the second is an old server": {func(w *world) { w.second.refuseArm = driver.Errorf(driver.NotSupported, "unknown call") }, orchestrator.StateReady, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := twoArrays(t, true)
			c.fail(w)
			e := w.engine(journal.NewMemory())
			defer e.Close()
			set := create(t, e, request())
			wantState(t, set, c.want)
			if got := w.array.splits + w.second.splits; got != c.splits {
				t.Errorf("%d splits were tried, want %d", got, c.splits)
			}
			if set.State == orchestrator.StateReady {
				if _, err := e.Release(t.Context(), set.ID); err != nil {
					t.Fatal(err)
				}
			}
			if p := w.writer.Power("legacy"); p != orchestrator.Running {
				t.Errorf("legacy is %s", p)
			}
			w.wantNothingLeft()
		})
	}
}

// Arrays that can't arm split without.
func TestTwoArraysWithoutArming(t *testing.T) {
	w := twoArrays(t, false)
	calls := w.calls()
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, request())
	wantState(t, set, orchestrator.StateReady)
	seen := calls()
	slices.Sort(seen)
	if !slices.Equal(seen, []string{"split a", "split b"}) {
		t.Errorf("the arrays were asked %q", seen)
	}
	if _, err := e.Release(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	w.wantNothingLeft()
}

// Killed while one array or both are armed, half committed or committed, the
// next control plane leaves nothing of it.
func TestKilledWhileArmed(t *testing.T) {
	for _, which := range []int{0, 1} {
		for _, at := range []string{"before arm", "after arm", "before commit", "after commit"} {
			t.Run(string(rune('a'+which))+" "+at, func(t *testing.T) {
				w := twoArrays(t, true)
				disk := journal.NewMemory()
				m := &mortal{Journal: disk, died: make(chan struct{})}
				for _, a := range w.arrays() {
					a.callerDead = m.isDead
				}
				w.arrays()[which].on = func(op string) {
					if op == at {
						m.dieHere()
					}
				}
				kill(t, w, disk, m)
				if recs, err := disk.All(); err != nil || len(recs) != 1 || recs[0].Set.State != orchestrator.StateAborted {
					t.Errorf("%+v, %v", recs, err)
				}
			})
		}
	}
}
