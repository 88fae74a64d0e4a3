package engine_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/writer"
	"github.com/cleave-san/cleave/orchestrator/writer/writertest"
)

type writerI = writer.Writer

const initiator = "iqn.2026-01.org.example:backup"

// create starts a set and waits until it is ready or final.
func create(t *testing.T, s orchestrator.Service, req orchestrator.Request) orchestrator.Set {
	t.Helper()
	set, err := s.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	set, err = s.Wait(t.Context(), set.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func wantState(t *testing.T, set orchestrator.Set, want orchestrator.State) {
	t.Helper()
	if set.State != want {
		t.Fatalf("set is %s (%s), want %s", set.State, set.Reason, want)
	}
}

func TestSetFromPlanToRelease(t *testing.T) {
	w := newWorld(t, online("db"), offline("legacy"))
	var atSplit []string
	w.array.onSplit = func() {
		if h := w.writer.Held(); len(h) > 0 {
			atSplit = append(atSplit, "held: "+strings.Join(h, ","))
		}
		if p := w.writer.Power("legacy"); p != orchestrator.Paused {
			atSplit = append(atSplit, "legacy is "+string(p))
		}
		if p := w.writer.Power("db"); p != orchestrator.Running {
			atSplit = append(atSplit, "db is "+string(p))
		}
	}
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db", "legacy"}, Initiators: []string{initiator}})
	wantState(t, set, orchestrator.StateReady)
	if len(atSplit) > 0 {
		t.Errorf("when the split was called: %q", atSplit)
	}
	db, legacy := set.VMs[0], set.VMs[1]
	if db.Reached != orchestrator.LevelApplication || db.Why != "" || len(db.Volumes) != 2 {
		t.Errorf("db reached %s (%s) with %d volumes; want application with 2", db.Reached, db.Why, len(db.Volumes))
	}
	if legacy.Reached != orchestrator.LevelCrash || legacy.Pause == nil || legacy.Why == "" {
		t.Errorf("legacy reached %s (%q), pause %v; want crash, why, and a pause", legacy.Reached, legacy.Why, legacy.Pause)
	}
	if got := w.left(); !slices.Equal(got, []string{
		"LUN " + string(set.ID) + "/db/vda",
		"exposed split " + string(set.ID) + "-1-of-vol-legacy-vda",
		"split " + string(set.ID) + "-1-of-vol-db-vda",
		"split " + string(set.ID) + "-1-of-vol-legacy-vda",
		"view " + string(set.ID) + "/db",
	}) {
		t.Errorf("a ready set holds %q", got)
	}
	set, err := e.Release(t.Context(), set.ID)
	if err != nil {
		t.Fatal(err)
	}
	wantState(t, set, orchestrator.StateReleased)
	w.wantNothingLeft()
	if again, err := e.Release(t.Context(), set.ID); err != nil || again.State != orchestrator.StateReleased {
		t.Errorf("Release again: %s, %v", again.State, err)
	}
}

// TestNoSplitWithoutEveryCompletion is C5 and C6 of the method: with a
// completion lost, late or partial, split is never called.
func TestNoSplitWithoutEveryCompletion(t *testing.T) {
	faults := map[string]func() []writertest.Fault{
		"lost": func() []writertest.Fault {
			return []writertest.Fault{writertest.LostReport("db", errors.New("agent gone"))}
		},
		"silent": func() []writertest.Fault {
			return []writertest.Fault{{On: writertest.OpSnapshot, VM: "db", Hang: true}}
		},
		"no end":   func() []writertest.Fault { return []writertest.Fault{writertest.Unfinished("db")} },
		"partial0": func() []writertest.Fault { return []writertest.Fault{writertest.Partial("db", 0)} },
		"partial1": func() []writertest.Fault { return []writertest.Fault{writertest.Partial("db", 1)} },
		"failed":   func() []writertest.Fault { return []writertest.Fault{writertest.FailedVolume("db", 1, "no space")} },
		"undone": func() []writertest.Fault {
			return []writertest.Fault{{On: writertest.OpSnapshot, VM: "db", Report: func(r *wire.Report) { r.Failed = "limit passed" }}}
		},
	}
	before := goleak.IgnoreCurrent()
	defer goleak.VerifyNone(t, before)
	names := []string{"lost", "silent", "no end", "partial0", "partial1", "failed", "undone"}
	rapid.Check(t, func(rt *rapid.T) {
		name := rapid.SampledFrom(names).Draw(rt, "fault")
		other := rapid.SampledFrom([]string{"none", "online", "offline"}).Draw(rt, "other VM")
		vms := []orchestrator.VM{online("db")}
		req := orchestrator.Request{VMs: []string{"db"}, GuestLimit: time.Millisecond}
		switch other {
		case "online":
			vms, req.VMs = append(vms, online("b")), append(req.VMs, "b")
		case "offline":
			vms, req.VMs = append(vms, offline("b")), append(req.VMs, "b")
		}
		w := newMortalWorld(t, vms...)
		w.writer.Add(faults[name]()...)
		e := w.engine(journal.NewMemory())
		defer e.Close()
		ctx := t.Context()
		if name == "silent" {
			// The host waits grace longer than the guest's limit; a release
			// while it waits is the shorter way to the same end.
			set, err := e.Create(ctx, req)
			if err != nil {
				rt.Fatal(err)
			}
			if _, err := e.Release(ctx, set.ID); err != nil {
				rt.Fatal(err)
			}
		} else {
			set := create(t, e, req)
			if set.State != orchestrator.StateAborted {
				rt.Fatalf("set is %s, want aborted", set.State)
			}
		}
		if w.array.splits != 0 {
			rt.Fatalf("split was called %d times", w.array.splits)
		}
		w.wantNothingLeft()
	})
}

// TestLadder: where crash will do, a guest that fails falls to a pause, and the
// result says so.
func TestLadder(t *testing.T) {
	w := newWorld(t, online("db"))
	w.writer.Add(writertest.Partial("db", 1))
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db"}, Level: orchestrator.LevelCrash})
	wantState(t, set, orchestrator.StateReady)
	vm := set.VMs[0]
	if vm.Reached != orchestrator.LevelCrash || vm.Why != "guest volume vg/wal: no completion was reported" || vm.Pause == nil {
		t.Errorf("reached %s: %q, pause %v", vm.Reached, vm.Why, vm.Pause)
	}
	if l := w.writer.Left(); len(l) > 0 {
		t.Errorf("the failed step left %q", l)
	}
	if _, err := e.Release(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	w.wantNothingLeft()
}

func TestSnapshotNotInTheSplit(t *testing.T) {
	w := newWorld(t, online("db"))
	w.views.missing = "its snapshot overflowed"
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db"}})
	wantState(t, set, orchestrator.StateAborted)
	if want := `VM "db": level not reached: application asked, crash reached: guest volume vg/data: its snapshot overflowed`; set.Reason != want {
		t.Errorf("reason %q\nwant   %q", set.Reason, want)
	}
	w.wantNothingLeft()
}

func TestLostReplyOfTheSplit(t *testing.T) {
	w := newWorld(t, online("db"), offline("legacy"))
	w.array.loseReply = true
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db", "legacy"}})
	wantState(t, set, orchestrator.StateReady) // Lookup by the tag found both
	if w.array.splits != 1 {
		t.Errorf("split was called %d times", w.array.splits)
	}
	if _, err := e.Release(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	w.wantNothingLeft()
}

func TestSplitFails(t *testing.T) {
	w := newWorld(t, online("db"), offline("legacy"))
	w.array.refuse = driver.Errorf(driver.NotSynchronized, "no mirror in sync")
	w.array.stuck = 3 // and giving back takes a few tries
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db", "legacy"}})
	wantState(t, set, orchestrator.StateAborted)
	if p := w.writer.Power("legacy"); p != orchestrator.Running {
		t.Errorf("legacy is %s after a failed split", p)
	}
	w.wantNothingLeft()
}

// TestVMChangesItsState is E38: the attempt fails and is made again, with new
// in-guest snapshots, until it succeeds or the attempts are used up.
func TestVMChangesItsState(t *testing.T) {
	w := newWorld(t, online("db"), offline("legacy"))
	once := true
	w.array.onSplit = func() {
		if once {
			once = false
			w.writer.SetPower("db", orchestrator.Paused)
		}
	}
	// Whoever paused it lets it run before the second attempt.
	w.writer.Add(writertest.Fault{On: writertest.OpDrop, VM: "db", Hits: 1, Before: func(f *writertest.Fake) { f.SetPower("db", orchestrator.Running) }})
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db", "legacy"}})
	wantState(t, set, orchestrator.StateReady)
	if set.Attempt != 2 || w.array.splits != 2 {
		t.Errorf("attempt %d, %d splits; want 2 of both", set.Attempt, w.array.splits)
	}
	if _, err := e.Release(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	w.wantNothingLeft()
}

func TestALaterAttemptAsksNoLess(t *testing.T) {
	w := newWorld(t, online("db"))
	w.array.onSplit = func() { w.writer.SetPower("db", orchestrator.Off) }
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db"}})
	wantState(t, set, orchestrator.StateAborted)
	if !strings.Contains(set.Reason, "application asked, crash is the best there is now") {
		t.Errorf("reason %q", set.Reason)
	}
}

func TestBusy(t *testing.T) {
	w := newWorld(t, online("db"), online("b"))
	release := make(chan struct{})
	w.array.onSplit = func() { <-release }
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set, err := e.Create(t.Context(), orchestrator.Request{VMs: []string{"db"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Create(t.Context(), orchestrator.Request{VMs: []string{"b", "db"}}); !errors.Is(err, orchestrator.ErrBusy) {
		t.Errorf("second set on a busy VM: %v, want ErrBusy", err)
	}
	close(release)
	if set, err = e.Wait(t.Context(), set.ID, nil); err != nil {
		t.Fatal(err)
	}
	wantState(t, set, orchestrator.StateReady)
	// Ready sets stand side by side.
	second := create(t, e, orchestrator.Request{VMs: []string{"db"}})
	wantState(t, second, orchestrator.StateReady)
}

func TestRequestsThatAreRefused(t *testing.T) {
	bad := offline("cd")
	bad.Disks[0].Cache = "unsafe"
	w := newWorld(t, online("db"), offline("legacy"), bad)
	e := w.engine(journal.NewMemory())
	defer e.Close()
	for _, row := range []struct {
		req  orchestrator.Request
		want error
		text string
	}{
		{orchestrator.Request{}, orchestrator.ErrUsage, "request can't be taken: it names no VM"},
		{orchestrator.Request{VMs: []string{"db", "db"}}, orchestrator.ErrUsage, `request can't be taken: VM "db" is named twice`},
		{orchestrator.Request{VMs: []string{"nope"}}, orchestrator.ErrNotFound, `VM "nope": not found: the host writers know ["cd" "db" "legacy"]`},
		{orchestrator.Request{VMs: []string{"cd"}}, orchestrator.ErrLevel, `VM "cd": level not reached: disk vda: cache mode is unsafe: what the guest flushes does not reach the volume`},
		{orchestrator.Request{VMs: []string{"legacy"}, Level: orchestrator.LevelApplication}, orchestrator.ErrLevel,
			`VM "legacy": level not reached: application asked, crash is the best there is: no guest requester answers: no agent channel`},
	} {
		if _, err := e.Create(t.Context(), row.req); !errors.Is(err, row.want) || err.Error() != row.text {
			t.Errorf("Create(%v): %v\nwant %s", row.req.VMs, err, row.text)
		}
	}
	w.wantNothingLeft()
}

func TestDryRunTouchesNothing(t *testing.T) {
	w := newWorld(t, online("db"))
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set, err := e.Create(t.Context(), orchestrator.Request{VMs: []string{"db"}, DryRun: true})
	if err != nil || set.ID != "" || set.VMs[0].Verdict.Best != orchestrator.LevelApplication {
		t.Fatalf("dry run: %+v, %v", set, err)
	}
	for _, c := range w.writer.Calls() {
		if c.Op != writertest.OpList {
			t.Errorf("a dry run called %s", c.Op)
		}
	}
	if l, _ := e.List(t.Context()); len(l) != 0 {
		t.Errorf("a dry run is in the journal: %v", l)
	}
}

func TestReleaseWhileUnderWay(t *testing.T) {
	w := newWorld(t, online("db"))
	w.writer.Add(writertest.Fault{On: writertest.OpSnapshot, Hang: true})
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set, err := e.Create(t.Context(), orchestrator.Request{VMs: []string{"db"}})
	if err != nil {
		t.Fatal(err)
	}
	set, err = e.Release(t.Context(), set.ID)
	if err != nil {
		t.Fatal(err)
	}
	wantState(t, set, orchestrator.StateAborted)
	if set.Reason != "released while it was under way" {
		t.Errorf("reason %q", set.Reason)
	}
	w.wantNothingLeft()
}

func TestLease(t *testing.T) {
	w := newWorld(t, online("db"))
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db"}, Lease: time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !set.State.Final() {
		var err error
		if set, err = e.Get(ctx, set.ID); err != nil || ctx.Err() != nil {
			t.Fatalf("the lease did not end the set: %s, %v", set.State, err)
		}
	}
	wantState(t, set, orchestrator.StateReleased)
	w.wantNothingLeft()
}

func TestExposeAndUnexpose(t *testing.T) {
	w := newWorld(t, online("db"))
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db"}})
	if len(w.luns.up) != 0 {
		t.Fatalf("a set without initiators published %v", w.luns.up)
	}
	set, err := e.Expose(t.Context(), set.ID, orchestrator.ExposeRequest{Initiators: []string{initiator}, Writable: true, Dirty: true})
	if err != nil {
		t.Fatal(err)
	}
	clean, dirty := set.LUNs[0], set.LUNs[1]
	if !clean.Clean || !clean.Writable || clean.IQN == "" || dirty.Clean || dirty.Writable || dirty.IQN == "" {
		t.Errorf("exposed: %+v\n%+v", clean, dirty)
	}
	if clean.UUID == dirty.UUID {
		t.Error("the view has the identity of its split")
	}
	if set, err = e.Unexpose(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	if len(w.luns.up)+len(w.array.exposed) != 0 || set.LUNs[0].IQN != "" {
		t.Errorf("after unexpose: %v, %v, %+v", w.luns.up, w.array.exposed, set.LUNs[0])
	}
	if _, err := e.Release(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	w.wantNothingLeft()
	if _, err := e.Expose(t.Context(), set.ID, orchestrator.ExposeRequest{Initiators: []string{initiator}}); !errors.Is(err, orchestrator.ErrUsage) {
		t.Errorf("Expose of a released set: %v", err)
	}
}

func TestWatchSeesEveryStateInOrder(t *testing.T) {
	w := newWorld(t, online("db"))
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set, err := e.Create(t.Context(), orchestrator.Request{VMs: []string{"db"}})
	if err != nil {
		t.Fatal(err)
	}
	var states []orchestrator.State
	if _, err := e.Wait(t.Context(), set.ID, func(ev orchestrator.Event) {
		if n := len(states); n == 0 || states[n-1] != ev.State {
			states = append(states, ev.State)
		}
	}); err != nil {
		t.Fatal(err)
	}
	want := []orchestrator.State{orchestrator.StatePlanned, orchestrator.StatePrepared, orchestrator.StateGuestDone, orchestrator.StateSplit,
		orchestrator.StateVerified, orchestrator.StateRecovered, orchestrator.StateReady}
	if !slices.Equal(states, want) {
		t.Errorf("states %q\nwant   %q", states, want)
	}
}
