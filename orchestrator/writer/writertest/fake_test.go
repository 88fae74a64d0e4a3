package writertest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/writer"
)

func fakeDB() *Fake {
	return NewFake("fake", orchestrator.VM{
		Name: "db",
		Guest: orchestrator.Guest{
			Requester: "fake 1", CanSnapshot: true,
			Volumes: []orchestrator.GuestVolume{{Name: "vg/data", UUID: "u1"}, {Name: "vg/wal", UUID: "u2"}},
			Writers: []orchestrator.GuestWriter{{App: "postgresql", Running: true, Volumes: []string{"vg/data", "vg/wal"}}},
		},
	})
}

func TestFakeSnapshotIsIdempotentAndDropped(t *testing.T) {
	f, ctx := fakeDB(), t.Context()
	a, err := f.Snapshot(ctx, "db", "set-1", writer.GuestOptions{})
	if err != nil || len(a.Completions) != 2 || !a.Completions[0].OK() || a.Finished.IsZero() {
		t.Fatalf("report %+v, %v", a, err)
	}
	b, err := f.Snapshot(ctx, "db", "set-1", writer.GuestOptions{})
	if err != nil || b.Completions[1].Snapshot != a.Completions[1].Snapshot {
		t.Fatalf("called again: %+v, %v", b, err)
	}
	if len(f.Left()) != 1 {
		t.Fatalf("left: %q", f.Left())
	}
	if err := f.Drop(ctx, "db", "set-1"); err != nil || len(f.Left()) != 0 {
		t.Fatalf("drop: %v, left %q", err, f.Left())
	}
}

func TestFakeFaults(t *testing.T) {
	f, ctx := fakeDB(), t.Context()
	lost := errors.New("lost")
	f.Add(Partial("db", 1), Unfinished("db"))
	r, err := f.Snapshot(ctx, "db", "set-1", writer.GuestOptions{})
	if err != nil || len(r.Completions) != 1 || !r.Finished.IsZero() {
		t.Fatalf("partial: %+v, %v", r, err)
	}
	f.Heal()
	f.Add(Fault{On: OpSnapshot, Hits: 1, Lost: lost})
	if _, err := f.Snapshot(ctx, "db", "set-2", writer.GuestOptions{}); !errors.Is(err, lost) {
		t.Fatalf("lost: %v", err)
	}
	if r, err := f.Snapshot(ctx, "db", "set-2", writer.GuestOptions{}); err != nil || len(r.Completions) != 2 {
		t.Fatalf("after the lost answer: %+v, %v", r, err)
	}
	f.Add(Silent("db")...)
	short, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := f.Snapshot(short, "db", "set-3", writer.GuestOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("silent guest: %v", err)
	}
	if vms, err := f.List(ctx); err != nil || vms[0].Guest.Silence == "" {
		t.Fatalf("list of a silent guest: %+v, %v", vms, err)
	}
}

func TestFakePauseIsEndedByTheGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fakeDB()
		p, err := f.Pause(t.Context(), "db", 3*time.Second)
		if err != nil || f.Power("db") != orchestrator.Paused {
			t.Fatalf("%v, %v", err, f.Power("db"))
		}
		time.Sleep(4 * time.Second)
		out, err := p.Resume(t.Context())
		if err != nil || !out.ByGuard || out.For != 3*time.Second || f.Power("db") != orchestrator.Running {
			t.Fatalf("%+v, %v, %v", out, err, f.Power("db"))
		}
	})
}
