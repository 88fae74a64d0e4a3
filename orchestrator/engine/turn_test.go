package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/engine"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// shutDown turns the VMs of request off.
func shutDown(w *world) {
	w.writer.SetPower("db", orchestrator.Off)
	w.writer.SetPower("legacy", orchestrator.Off)
}

// wantReverted: volumes hold what the set did, and safe points what they held.
func wantReverted(t *testing.T, w *world, set orchestrator.Set) {
	t.Helper()
	wantState(t, set, orchestrator.StateReleased)
	for _, s := range set.Splits {
		a := w.array
		if s.Array == "b" {
			a = w.second
		}
		if got := a.content[s.Volume]; got != "at "+s.Volume {
			t.Errorf("volume %s holds %q", s.Volume, got)
		}
		if got := a.content[s.SafePoint]; got != "after "+s.Volume {
			t.Errorf("safe point %q of %s holds %q", s.SafePoint, s.Volume, got)
		}
	}
	w.wantNothingLeft()
}

func wantBroken(t *testing.T, w *world, set orchestrator.Set) {
	t.Helper()
	wantState(t, set, orchestrator.StateReleased)
	names := map[string]bool{}
	for _, s := range set.Splits {
		a := w.array
		if s.Array == "b" {
			a = w.second
		}
		if got := a.content[s.Became]; got != "at "+s.Volume || names[s.Became] {
			t.Errorf("volume %q, which the split of %s became, holds %q", s.Became, s.Volume, got)
		}
		names[s.Became] = true
		if got := a.content[s.Volume]; got != "after "+s.Volume {
			t.Errorf("volume %s holds %q", s.Volume, got)
		}
	}
	w.wantNothingLeft()
}

func TestRevertPutsAllVolumesBack(t *testing.T) {
	w := newWorld(t, online("db"), offline("legacy"))
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, request())
	held := fmt.Sprint(w.left())

	got, err := e.Revert(t.Context(), set.ID)
	if !errors.Is(err, orchestrator.ErrBusy) || !strings.Contains(err.Error(), `VM "db" is running`) {
		t.Fatalf("with the VMs running: %v", err)
	}
	if wantState(t, got, orchestrator.StateReady); fmt.Sprint(w.left()) != held {
		t.Errorf("the refusal touched something: %v", w.left())
	}
	shutDown(w)
	if set, err = e.Revert(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	wantReverted(t, w, set)
	again, err := e.Revert(t.Context(), set.ID)
	if err != nil || again.Splits[0].SafePoint != set.Splits[0].SafePoint {
		t.Errorf("asked again: %v", err)
	}
	if _, err := e.Break(t.Context(), set.ID); !errors.Is(err, orchestrator.ErrUsage) {
		t.Errorf("break after the revert: %v", err)
	}
}

func TestBreakMakesVolumes(t *testing.T) {
	w := newWorld(t, online("db"), offline("legacy"))
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, request())
	set, err := e.Break(t.Context(), set.ID) // the VMs run on
	if err != nil {
		t.Fatal(err)
	}
	wantBroken(t, w, set)
	if name := set.Splits[0].Became; name != string(set.ID)+"-db-vda" {
		t.Errorf("the volume is named %q", name)
	}
}

// A revert that an array refuses in the middle says so, stays, and goes on when
// it is asked again; or the rest is given back.
func TestRevertStopsInTheMiddleAndGoesOn(t *testing.T) {
	for _, next := range []string{"revert", "release", "restart"} {
		t.Run(next, func(t *testing.T) {
			w := newWorld(t, online("db"), offline("legacy"))
			disk := journal.NewMemory()
			e := w.engine(disk)
			defer func() { e.Close() }()
			set := create(t, e, request())
			shutDown(w)
			w.array.inUse = "vol-legacy-vda"
			set, err := e.Revert(t.Context(), set.ID)
			if arrays.KindOf(err) != driver.Busy {
				t.Fatalf("in use: %v", err)
			}
			wantState(t, set, orchestrator.StateReverting)
			if set.Splits[0].SafePoint == "" || set.Splits[1].SafePoint != "" || set.Reason == "" || set.Code != orchestrator.CodeBusy {
				t.Errorf("in the middle: %+v, %q, %q", set.Splits, set.Reason, set.Code)
			}
			if _, err := e.Break(t.Context(), set.ID); !errors.Is(err, orchestrator.ErrBusy) {
				t.Errorf("break in the middle: %v", err)
			}
			w.array.mu.Lock()
			w.array.inUse = ""
			w.array.mu.Unlock()
			switch next {
			case "revert":
				if set, err = e.Revert(t.Context(), set.ID); err != nil {
					t.Fatal(err)
				}
				wantReverted(t, w, set)
				if set.Reason != "" {
					t.Errorf("the reason stayed: %s", set.Reason)
				}
			case "restart":
				e.Close()
				e = w.engine(disk)
				if set, err = e.Wait(t.Context(), set.ID, nil); err != nil {
					t.Fatal(err)
				}
				wantReverted(t, w, set)
			case "release":
				if set, err = e.Release(t.Context(), set.ID); err != nil {
					t.Fatal(err)
				}
				wantState(t, set, orchestrator.StateReleased)
				if got := w.array.content["vol-legacy-vda"]; got != "after vol-legacy-vda" {
					t.Errorf("the volume that was not put back holds %q", got)
				}
				w.wantNothingLeft()
			}
		})
	}
}

// TestTurnKilledAtEveryJournalStep cuts the control plane off at every write of
// the journal that a revert or break makes, on both sides of it, and after each
// act of the array. The next one finishes what was begun, or has not begun it.
func TestTurnKilledAtEveryJournalStep(t *testing.T) {
	for name, turn := range map[string]struct {
		do   func(*engine.Engine, context.Context, orchestrator.SetID) (orchestrator.Set, error)
		want func(*testing.T, *world, orchestrator.Set)
	}{
		"revert": {(*engine.Engine).Revert, wantReverted},
		"break":  {(*engine.Engine).Break, wantBroken},
	} {
		for _, two := range []bool{false, true} {
			open := func(t *testing.T) *world {
				if two {
					return twoArrays(t, true)
				}
				return newMortalWorld(t, online("db"), offline("legacy"))
			}
			one := func(t *testing.T, prepare func(*world, *mortal)) (puts int) {
				w, disk := open(t), journal.NewMemory()
				first := w.engine(disk)
				set := create(t, first, request())
				wantState(t, set, orchestrator.StateReady)
				first.Close()
				shutDown(w)
				m := &mortal{Journal: disk, died: make(chan struct{})}
				prepare(w, m)
				second := w.engine(m)
				whole := make(chan struct{})
				go func() {
					defer close(whole)
					turn.do(second, context.Background(), set.ID)
				}()
				select {
				case <-m.died:
				case <-whole:
					second.Close()
					return m.puts
				}
				for _, a := range w.arrays() {
					a.mu.Lock()
					a.turning = nil
					a.mu.Unlock()
				}
				third := w.engine(disk)
				defer third.Close()
				set, err := third.Wait(t.Context(), set.ID, nil)
				if err != nil {
					t.Fatal(err)
				}
				if set.State == orchestrator.StateReady { // it was not begun
					if set, err = turn.do(third, t.Context(), set.ID); err != nil {
						t.Fatal(err)
					}
				}
				turn.want(t, w, set)
				return m.puts
			}
			puts := one(t, func(*world, *mortal) {})
			if puts < 6 {
				t.Fatalf("a %s writes the journal %d times only: the test cuts nothing", name, puts)
			}
			for n := 1; n <= puts; n++ {
				for _, before := range []bool{true, false} {
					t.Run(fmt.Sprintf("%s two=%v put %d before=%v", name, two, n, before), func(t *testing.T) {
						one(t, func(_ *world, m *mortal) { m.dieAt, m.before = n, before })
					})
				}
			}
			for n := 1; n <= 2; n++ {
				t.Run(fmt.Sprintf("%s two=%v after act %d", name, two, n), func(t *testing.T) {
					one(t, func(w *world, m *mortal) {
						acts := 0
						for _, a := range w.arrays() {
							a.turning = func() {
								if acts++; acts == n {
									a.mu.Unlock() // of the process that dies here
									m.dieHere()
								}
							}
						}
					})
				})
			}
		}
	}
}

func TestDiff(t *testing.T) {
	w := newWorld(t, online("db"), offline("legacy"))
	e := w.engine(journal.NewMemory())
	defer e.Close()
	first := create(t, e, orchestrator.Request{VMs: []string{"db", "legacy"}})
	second := create(t, e, orchestrator.Request{VMs: []string{"db", "legacy"}})
	d, err := e.Diff(t.Context(), first.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Disks) != 2 || d.Disks[0].VM != "db" || d.Disks[0].Device != "vda" || d.Disks[0].Total != (64+128+64)<<10 || d.Disks[1].Total != 128<<10 || d.From != first.ID || d.To != "" {
		t.Errorf("since then: %+v", d)
	}
	if d, err = e.Diff(t.Context(), second.ID, first.ID); err != nil || len(d.Disks) != 2 || d.Disks[1].Total != 64<<10 || d.From != first.ID || d.To != second.ID {
		t.Errorf("between two sets: %+v, %v", d, err)
	}
	third := create(t, e, orchestrator.Request{VMs: []string{"legacy"}})
	if _, err := e.Diff(t.Context(), second.ID, third.ID); !errors.Is(err, orchestrator.ErrUsage) {
		t.Errorf("against a set without one of the volumes: %v", err)
	}
	if _, err := e.Release(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Diff(t.Context(), second.ID, first.ID); !errors.Is(err, orchestrator.ErrUsage) {
		t.Errorf("against a set that was released: %v", err)
	}
}
