package engine_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// unexposed asks for a set that nobody sees.
func unexposed() orchestrator.Request {
	return orchestrator.Request{VMs: []string{"db", "legacy"}}
}

// wantClean: the split of db is clean itself, the document says so, and that of
// legacy is as it came off.
func wantClean(t *testing.T, w *world, set orchestrator.Set) {
	t.Helper()
	wantState(t, set, orchestrator.StateReady)
	if set.Reason != "" || set.Code != "" {
		t.Errorf("a reason is left: %q, %q", set.Reason, set.Code)
	}
	for _, s := range set.Splits {
		want, recovery, state := "clean", orchestrator.RecoveredInPlace, string(driver.Skewed)
		if s.Volume == "vol-legacy-vda" {
			want, recovery, state = "at "+s.Volume, orchestrator.NotRecovered, string(driver.Split)
		}
		a := w.array
		if s.Array == "b" {
			a = w.second
		}
		if got := a.content[s.ID]; got != want || s.Recovery != recovery || s.State != state || (len(s.Rewritten) > 0) != (want == "clean") {
			t.Errorf("split of %s holds %q and is %q, %s, with %d regions rewritten", s.Volume, got, s.Recovery, s.State, len(s.Rewritten))
		}
	}
	var luns []string
	for _, l := range set.LUNs {
		luns = append(luns, fmt.Sprintf("%s clean=%v split=%v socket=%q", strings.TrimPrefix(l.Name, string(set.ID)), l.Clean, l.Split != "", l.Socket))
	}
	if got, want := strings.Join(luns, "\n"), "/db/vda clean=true split=true socket=\"\"\n/legacy/vda/split clean=false split=true socket=\"\""; got != want {
		t.Errorf("LUNs:\n%s\nwant\n%s", got, want)
	}
	for _, l := range w.left() {
		if strings.HasPrefix(l, "view") {
			t.Errorf("%s is still up", l)
		}
	}
	if v := set.VMs[0].Volumes; v[0].Mode != "overwrite" {
		t.Errorf("mode of %s: %q", v[0].Name, v[0].Mode)
	}
}

func TestRecoverInPlace(t *testing.T) {
	w := newWorld(t, online("db"), offline("legacy"))
	disk := journal.NewMemory()
	e := w.engine(disk)
	defer e.Close()
	set := create(t, e, unexposed())
	set, err := e.Recover(t.Context(), set.ID, orchestrator.RecoverRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantClean(t, w, set)
	if again, err := e.Recover(t.Context(), set.ID, orchestrator.RecoverRequest{}); err != nil || again.State != orchestrator.StateReady {
		t.Errorf("asked again: %v, %v", again.State, err)
	}
	// What is exposed now is the split itself, and it may be written to.
	set, err = e.Expose(t.Context(), set.ID, orchestrator.ExposeRequest{Initiators: []string{initiator}, Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if o := w.array.exposed[driver.SnapshotID(set.Splits[0].ID)]; !o.Writable {
		t.Errorf("the clean split is exposed as %+v", o)
	}
	if o := w.array.exposed[driver.SnapshotID(set.Splits[1].ID)]; o.Writable {
		t.Errorf("the dirty split is exposed as %+v", o)
	}
	// The diff knows where it was rewritten, after a restart as well.
	e.Close()
	e = w.engine(disk)
	d, err := e.Diff(t.Context(), set.ID, "")
	if err != nil || d.Disks[0].Total != (64+128+64)<<10 || d.Disks[0].Regions[0] != (orchestrator.Region{Offset: 0, Length: 64 << 10}) || d.Disks[1].Total != 128<<10 {
		t.Errorf("diff: %+v, %v", d, err)
	}
	if set, err = e.Release(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	wantState(t, set, orchestrator.StateReleased)
	w.wantNothingLeft()
	if _, err := e.Recover(t.Context(), set.ID, orchestrator.RecoverRequest{}); !errors.Is(err, orchestrator.ErrUsage) {
		t.Errorf("after the release: %v", err)
	}
}

// A recovery in place that is refused leaves the set as it was, its views
// included.
func TestRecoverInPlaceIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		request orchestrator.Request
		before  func(*world, orchestrator.Set)
		want    func(error) bool
	}{
		"exposed":       {request(), nil, isErr(orchestrator.ErrBusy)},
		"no snapshot":   {orchestrator.Request{VMs: []string{"legacy"}}, nil, isErr(orchestrator.ErrUsage)},
		"not consented": {unexposed(), func(w *world, _ orchestrator.Set) { w.views.discard = true }, isErr(orchestrator.ErrUsage)},
		"being read":    {unexposed(), func(w *world, _ orchestrator.Set) { w.views.readers = 2 }, isErr(orchestrator.ErrBusy)},
		"split in use": {unexposed(), func(w *world, s orchestrator.Set) { w.array.inUse = "vol-db-vda" },
			func(err error) bool { return arrays.KindOf(err) == driver.Busy }},
		"view does not end": {unexposed(), func(w *world, _ orchestrator.Set) { w.views.stuck = errors.New("it is stuck") },
			func(err error) bool { return err != nil && strings.Contains(err.Error(), "it is stuck") }},
		"nonsense": {unexposed(), func(w *world, _ orchestrator.Set) { w.views.wrote = []lun.Extent{{Off: 1 << 20, Len: 1}} },
			func(err error) bool { return err != nil && strings.Contains(err.Error(), "makes no sense") }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, online("db"), offline("legacy"))
			e := w.engine(journal.NewMemory())
			defer e.Close()
			set := create(t, e, tc.request)
			held := fmt.Sprint(w.left())
			if tc.before != nil {
				tc.before(w, set)
			}
			got, err := e.Recover(t.Context(), set.ID, orchestrator.RecoverRequest{})
			if !tc.want(err) {
				t.Fatalf("%v", err)
			}
			wantState(t, got, orchestrator.StateReady)
			if fmt.Sprint(w.left()) != held || got.Reason != "" || got.InPlace != nil || w.array.alone != "" {
				t.Errorf("the refusal touched something: %v, %q", w.left(), got.Reason)
			}
			for i, s := range got.Splits {
				if w.array.content[s.ID] != "at "+s.Volume || s.Recovery != set.Splits[i].Recovery {
					t.Errorf("split of %s holds %q, %q", s.Volume, w.array.content[s.ID], s.Recovery)
				}
			}
			for i, l := range got.LUNs {
				if l.Socket != set.LUNs[i].Socket {
					t.Errorf("LUN %s has socket %q", l.Name, l.Socket)
				}
			}
			w.views.stuck = nil
		})
	}
}

func isErr(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }

// One that fails in the middle says so, and goes on when it is asked again, or
// at the next start, or is left at that by release or by the lease.
func TestRecoverInPlaceStopsInTheMiddleAndGoesOn(t *testing.T) {
	for _, next := range []string{"recover", "restart", "release", "lease"} {
		t.Run(next, func(t *testing.T) {
			w := newWorld(t, online("db"), offline("legacy"))
			w.views.discard = true
			disk := journal.NewMemory()
			e := w.engine(disk)
			defer func() { e.Close() }()
			set := create(t, e, unexposed())
			w.views.broken = errors.New("the worker died")
			set, err := e.Recover(t.Context(), set.ID, orchestrator.RecoverRequest{DiscardOthers: true})
			if !errors.Is(err, w.views.broken) {
				t.Fatalf("recover: %v", err)
			}
			wantState(t, set, orchestrator.StateRecovering)
			if set.Splits[0].Recovery != orchestrator.RecoveringInPlace || len(set.Splits[0].Rewritten) == 0 || set.Reason == "" || set.LUNs[0].Socket != "" {
				t.Errorf("in the middle: %+v, %q", set.Splits[0], set.Reason)
			}
			for name, err := range map[string]error{
				"break":  second(e.Break(t.Context(), set.ID)),
				"expose": second(e.Expose(t.Context(), set.ID, orchestrator.ExposeRequest{Initiators: []string{initiator}})),
				"diff":   second(e.Diff(t.Context(), set.ID, "")),
			} {
				if !errors.Is(err, orchestrator.ErrBusy) {
					t.Errorf("%s in the middle: %v", name, err)
				}
			}
			if next != "lease" {
				w.views.broken = nil
			}
			switch next {
			case "recover":
				if set, err = e.Recover(t.Context(), set.ID, orchestrator.RecoverRequest{DiscardOthers: true}); err != nil {
					t.Fatal(err)
				}
				wantClean(t, w, set)
			case "restart": // the consent is in the journal
				e.Close()
				e = w.engine(disk)
				if set, err = e.Wait(t.Context(), set.ID, nil); err != nil {
					t.Fatal(err)
				}
				wantClean(t, w, set)
			case "release":
				if set, err = e.Release(t.Context(), set.ID); err != nil {
					t.Fatal(err)
				}
				wantState(t, set, orchestrator.StateReleased)
			case "lease": // it ran out while nobody was there, and what goes on fails again
				e.Close()
				rec, err := disk.Get(set.ID)
				if err != nil {
					t.Fatal(err)
				}
				rec.Set.Expires = time.Now().Add(-time.Second)
				if err := disk.Put(rec); err != nil {
					t.Fatal(err)
				}
				e = w.engine(disk)
				if set, err = e.Wait(t.Context(), set.ID, nil); err != nil {
					t.Fatal(err)
				}
				wantState(t, set, orchestrator.StateReleased)
			}
			if next == "release" || next == "lease" {
				w.wantNothingLeft()
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

// TestInPlaceKilledAtEveryJournalStep cuts the control plane off at every write
// of the journal that a recovery in place makes, on both sides of it, and around
// its writes to the splits. No split is written to that the journal does not say
// to be written; and the next control plane finishes what was begun.
func TestInPlaceKilledAtEveryJournalStep(t *testing.T) {
	vms := func() []orchestrator.VM { return []orchestrator.VM{online("db"), online("web"), offline("legacy")} }
	one := func(t *testing.T, prepare func(*world, *mortal)) (puts int) {
		w, disk := newMortalWorld(t, vms()...), journal.NewMemory()
		first := w.engine(disk)
		set := create(t, first, orchestrator.Request{VMs: []string{"db", "web", "legacy"}})
		wantState(t, set, orchestrator.StateReady)
		first.Close()
		m := &mortal{Journal: disk, died: make(chan struct{})}
		prepare(w, m)
		second := w.engine(m)
		whole := make(chan struct{})
		go func() {
			defer close(whole)
			second.Recover(context.Background(), set.ID, orchestrator.RecoverRequest{})
		}()
		died := false
		select {
		case <-m.died:
			died = true
		case <-whole:
			second.Close()
		}
		w.views.inPlace = nil
		w.array.mu.Lock()
		w.array.alone = "" // what a process had open goes with it
		w.array.mu.Unlock()

		rec, err := disk.Get(set.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range rec.Set.Splits {
			touched := w.array.content[s.ID] != "at "+s.Volume
			begun := s.Recovery == orchestrator.RecoveringInPlace || s.Recovery == orchestrator.RecoveredInPlace
			if touched && (!begun || len(s.Rewritten) == 0) {
				t.Errorf("the split of %s holds %q, and the journal says %q, %d regions", s.Volume, w.array.content[s.ID], s.Recovery, len(s.Rewritten))
			}
			if s.Recovery == orchestrator.RecoveredInPlace && w.array.content[s.ID] != "clean" {
				t.Errorf("the split of %s holds %q, and the journal says that it is clean", s.Volume, w.array.content[s.ID])
			}
		}
		if !died {
			return m.puts
		}
		third := w.engine(disk)
		defer third.Close()
		if set, err = third.Wait(t.Context(), set.ID, nil); err != nil {
			t.Fatal(err)
		}
		if set.InPlace == nil { // it was not begun
			if set, err = third.Recover(t.Context(), set.ID, orchestrator.RecoverRequest{}); err != nil {
				t.Fatal(err)
			}
		}
		wantState(t, set, orchestrator.StateReady)
		for _, s := range set.Splits {
			if got := w.array.content[s.ID]; s.Volume != "vol-legacy-vda" && got != "clean" {
				t.Errorf("the split of %s holds %q", s.Volume, got)
			}
		}
		if set, err = third.Release(t.Context(), set.ID); err != nil {
			t.Fatal(err)
		}
		wantState(t, set, orchestrator.StateReleased)
		w.wantNothingLeft()
		return m.puts
	}
	puts := one(t, func(*world, *mortal) {})
	if puts < 8 {
		t.Fatalf("a recovery in place writes the journal %d times only: the test cuts nothing", puts)
	}
	for n := 1; n <= puts; n++ {
		for _, before := range []bool{true, false} {
			t.Run(fmt.Sprintf("put %d before=%v", n, before), func(t *testing.T) {
				one(t, func(_ *world, m *mortal) { m.dieAt, m.before = n, before })
			})
		}
	}
	for _, word := range []string{"before", "half clean", "clean"} {
		for n := 1; n <= 2; n++ {
			t.Run(fmt.Sprintf("%s, VM %d", word, n), func(t *testing.T) {
				one(t, func(w *world, m *mortal) {
					seen := 0
					w.views.inPlace = func(at string) {
						if at == word {
							if seen++; seen == n {
								m.dieHere()
							}
						}
					}
				})
			})
		}
	}
}
