package writertest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
	"github.com/cleave-san/cleave/orchestrator/writer"
)

// Subject is a host writer to test, with VMs that the suite may pause and
// snapshot. What a writer has no example of stays "", and its tests are skipped
// by name.
type Subject struct {
	Writer  writer.Writer
	Running string        // a VM that runs
	Off     string        // a VM that is known and does not run
	Guest   string        // a VM that runs and whose guest can make snapshots
	Wait    time.Duration // how long a call may take at most; 0: a minute
}

// Run puts a host writer through its contract. open is called for each test and
// cleans up by t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	run := func(name string, need func(Subject) string, test func(t *testing.T, ctx context.Context, s Subject)) {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			if need(s) == "" {
				t.Skip("the subject has no such VM")
			}
			if s.Wait == 0 {
				s.Wait = time.Minute
			}
			ctx, cancel := context.WithTimeout(t.Context(), s.Wait)
			defer cancel()
			test(t, ctx, s)
		})
	}
	running := func(s Subject) string { return s.Running }
	off := func(s Subject) string { return s.Off }
	guest := func(s Subject) string { return s.Guest }
	run("ListNamesEveryVM", running, testList)
	run("UnknownVM", running, testUnknown)
	run("PauseAndResume", running, testPause)
	run("PauseEndsAtItsLimit", running, testLimit)
	run("PauseTwice", running, testPauseTwice)
	run("OffVM", off, testOff)
	run("ContextEnds", running, testContext)
	run("SnapshotTwiceAndDrop", guest, testSnapshot)
	run("DropOfNothing", guest, testDropNothing)
}

func power(t *testing.T, ctx context.Context, s Subject, vm string) orchestrator.Power {
	t.Helper()
	vms, err := s.Writer.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(vms, func(v orchestrator.VM) bool { return v.Name == vm })
	if i < 0 {
		t.Fatalf("VM %s is missing from the list", vm)
	}
	return vms[i].Power
}

// becomes polls until a VM is what it should be.
func becomes(t *testing.T, ctx context.Context, s Subject, vm string, want orchestrator.Power) {
	t.Helper()
	for {
		p := power(t, ctx, s, vm)
		if p == want {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("VM %s is %s, not %s", vm, p, want)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func testList(t *testing.T, ctx context.Context, s Subject) {
	vms, err := s.Writer.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vms {
		if v.Name == "" || v.Writer != s.Writer.Name() || v.Power == "" {
			t.Errorf("VM without a name, a writer or a power: %+v", v)
		}
		if v.Power != orchestrator.Running && v.Guest.Requester != "" {
			t.Errorf("VM %s is %s, and its guest answered", v.Name, v.Power)
		}
		if v.Guest.Requester == "" && v.Guest.Silence == "" {
			t.Errorf("VM %s: no requester, and no reason", v.Name)
		}
		if v.Guest.Requester != "" && v.Guest.CanSnapshot == (v.Guest.Cannot != "") {
			t.Errorf("VM %s: CanSnapshot %v with Cannot %q", v.Name, v.Guest.CanSnapshot, v.Guest.Cannot)
		}
		for _, d := range v.Disks {
			if d.IQN == "" && d.Path == "" && d.NAA == "" && d.Serial == "" && v.Problem == "" {
				t.Errorf("VM %s: nobody knows where disk %s lies, and there is no problem", v.Name, d.Device)
			}
		}
	}
	if p := power(t, ctx, s, s.Running); p != orchestrator.Running {
		t.Errorf("VM %s is %s", s.Running, p)
	}
}

func testUnknown(t *testing.T, ctx context.Context, s Subject) {
	const none = "there is no such VM"
	if _, err := s.Writer.Pause(ctx, none, time.Second); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("pause: %v", err)
	}
	if err := s.Writer.Drop(ctx, none, "set-0123456789abcdef"); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("drop: %v", err)
	}
	if _, err := s.Writer.Snapshot(ctx, none, "set-0123456789abcdef", writer.GuestOptions{}); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("snapshot: %v", err)
	}
}

func testPause(t *testing.T, ctx context.Context, s Subject) {
	for range 3 {
		p, err := s.Writer.Pause(ctx, s.Running, s.Wait)
		if err != nil {
			t.Fatal(err)
		}
		if got := power(t, ctx, s, s.Running); got != orchestrator.Paused {
			t.Errorf("paused, and the list says %s", got)
		}
		out, err := p.Resume(ctx)
		if err != nil || out.ByGuard || out.For <= 0 || out.From.IsZero() || out.WasState != orchestrator.Running {
			t.Fatalf("resume: %+v, %v", out, err)
		}
		if got := power(t, ctx, s, s.Running); got != orchestrator.Running {
			t.Errorf("resumed, and the list says %s", got)
		}
		again, err := p.Resume(ctx)
		if err != nil || again != out {
			t.Errorf("resume again: %+v (was %+v), %v", again, out, err)
		}
	}
}

func testLimit(t *testing.T, ctx context.Context, s Subject) {
	p, err := s.Writer.Pause(ctx, s.Running, 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	becomes(t, ctx, s, s.Running, orchestrator.Running)
	out, err := p.Resume(ctx)
	if err != nil || !out.ByGuard {
		t.Fatalf("resume after the limit: %+v, %v", out, err)
	}
}

func testPauseTwice(t *testing.T, ctx context.Context, s Subject) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var pauses []writer.Pause
	for range 4 {
		wg.Go(func() {
			p, err := s.Writer.Pause(ctx, s.Running, s.Wait)
			if err == nil {
				// A second one that comes after the first resumed is right; none beside it.
				mu.Lock()
				pauses = append(pauses, p)
				mu.Unlock()
			} else if !errors.Is(err, orchestrator.ErrBusy) {
				t.Errorf("pause beside another: %v", err)
			}
		})
	}
	wg.Wait()
	if len(pauses) != 1 {
		t.Errorf("%d pauses of one VM at once", len(pauses))
	}
	for _, p := range pauses {
		if _, err := p.Resume(ctx); err != nil {
			t.Error(err)
		}
	}
	becomes(t, ctx, s, s.Running, orchestrator.Running)
}

func testOff(t *testing.T, ctx context.Context, s Subject) {
	if p := power(t, ctx, s, s.Off); p == orchestrator.Running {
		t.Fatalf("VM %s runs", s.Off)
	}
	if err := s.Writer.Drop(ctx, s.Off, "set-0123456789abcdef"); !errors.Is(err, writer.ErrGone) {
		t.Errorf("drop: %v", err)
	}
	if _, err := s.Writer.Snapshot(ctx, s.Off, "set-0123456789abcdef", writer.GuestOptions{}); !errors.Is(err, writer.ErrGone) {
		t.Errorf("snapshot: %v", err)
	}
	p, err := s.Writer.Pause(ctx, s.Off, time.Second)
	switch {
	case errors.Is(err, writer.ErrGone):
	case err != nil:
		t.Errorf("pause: %v", err)
	default:
		out, err := p.Resume(ctx)
		if err != nil || out.WasState == orchestrator.Running {
			t.Errorf("resume: %+v, %v", out, err)
		}
	}
	if p := power(t, ctx, s, s.Off); p == orchestrator.Running {
		t.Errorf("VM %s runs after a pause", s.Off)
	}
}

func testContext(t *testing.T, ctx context.Context, s Subject) {
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Writer.Pause(ended, s.Running, time.Second); err == nil {
		t.Error("a pause for a caller that has gone")
	}
	becomes(t, ctx, s, s.Running, orchestrator.Running)
}

func testSnapshot(t *testing.T, ctx context.Context, s Subject) {
	const set = "set-00000000c0ffee00"
	o := writer.GuestOptions{Limit: s.Wait, Keep: time.Hour}
	t.Cleanup(func() {
		if err := s.Writer.Drop(context.Background(), s.Guest, set); err != nil {
			t.Error(err)
		}
	})
	first, err := s.Writer.Snapshot(ctx, s.Guest, set, o)
	if err != nil {
		t.Fatal(err)
	}
	if first.Finished.IsZero() || first.Failed != "" || len(first.Completions) == 0 || first.Requester == "" {
		t.Fatalf("report: %+v", first)
	}
	for _, c := range first.Completions {
		if !c.OK() {
			t.Errorf("completion: %+v", c)
		}
	}
	for _, w := range first.Writers {
		if w.State == wire.WriterStable && w.Began.IsZero() {
			t.Errorf("writer: %+v", w)
		}
	}
	again, err := s.Writer.Snapshot(ctx, s.Guest, set, o)
	if err != nil || len(again.Completions) != len(first.Completions) {
		t.Fatalf("called again: %+v, %v", again, err)
	}
	for i, c := range again.Completions {
		if c.Snapshot != first.Completions[i].Snapshot {
			t.Errorf("called again, a new snapshot of %s", c.Volume)
		}
	}
	for range 3 {
		if err := s.Writer.Drop(ctx, s.Guest, set); err != nil {
			t.Fatal(err)
		}
	}
}

func testDropNothing(t *testing.T, ctx context.Context, s Subject) {
	if err := s.Writer.Drop(ctx, s.Guest, "set-00000000deadbeef"); err != nil {
		t.Error(err)
	}
}
