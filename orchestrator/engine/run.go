package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/machine"
)

// run is one set that is not final. Its loop is the only one that takes
// actions; readers see the record through snapshot.
type run struct {
	e  *Engine
	id orchestrator.SetID

	// ctx ends when the set is to be given back; actions obey it, undo does not.
	ctx    context.Context
	cancel context.CancelCauseFunc

	// op is held by whoever acts on a settled set: the loop, Expose, Unexpose.
	op sync.Mutex

	mu      sync.Mutex
	rec     journal.Record
	changed chan struct{} // closed and replaced when rec changes
	lease   *time.Timer

	vms    []*member              // what this attempt works on; the loop's own
	beside []bystander            // other VMs on its host's volumes
	armed  map[*arrays.Array]bool // which arrays of it are ready to commit

	turnErr error // what the last revert, break or recovery in place failed with; op guards it
}

func (e *Engine) newRun(rec journal.Record) *run {
	r := &run{e: e, id: rec.Set.ID, rec: rec, changed: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancelCause(e.ctx)
	return r
}

// errVMChanged says that a VM is no longer what the plan saw.
var errVMChanged = errors.New("changed its state in the middle")

// loop follows machine.Next until the set needs nothing more.
func (r *run) loop(ev machine.Event) {
	r.op.Lock()
	defer r.op.Unlock()
	if asked(ev) && !settled(r.state()) {
		return // somebody else was quicker
	}
	r.follow(ev)
}

// ask has ev happen to a set that has settled, unless admit refuses it, and
// returns what came of it.
func (r *run) ask(ev machine.Event, admit func() error) error {
	r.op.Lock()
	defer r.op.Unlock()
	if !settled(r.state()) {
		return nil // somebody else was quicker
	}
	if err := admit(); err != nil {
		return err
	}
	r.turnErr = nil
	r.follow(ev)
	return r.turnErr
}

// follow is loop with op held.
func (r *run) follow(ev machine.Event) {
	ctx, span := r.e.cfg.Tracer.Start(r.ctx, "snapshot-set", trace.WithAttributes(attribute.String("cleave.set", string(r.id))))
	defer span.End()
	if id := span.SpanContext().TraceID(); id.IsValid() && ev == machine.Begin {
		r.mu.Lock()
		r.rec.Set.TraceID = id.String() // journaled with the state that follows
		r.mu.Unlock()
	}
	for {
		from := r.state()
		to, do, err := machine.Next(from, ev)
		if err != nil {
			r.e.cfg.Logger.Error("snapshot set", "set", r.id, "error", err)
			return
		}
		if err := r.enter(from, to); err != nil && do != machine.Undo {
			r.fail(fmt.Errorf("journal: %w", err))
			ev = machine.Failed
			continue
		}
		if do == machine.Nothing {
			r.settle(to)
			return
		}
		ev = r.perform(ctx, do)
		if r.e.ctx.Err() != nil && ev != machine.Undone {
			return // the next engine takes it up from the journal
		}
	}
}

// perform takes one action and turns its outcome into the next event.
func (r *run) perform(ctx context.Context, do machine.Action) machine.Event {
	actions := map[machine.Action]struct {
		act  func(context.Context) error
		done machine.Event
	}{
		machine.Prepare:  {r.prepare, machine.Prepared},
		machine.Guest:    {r.guest, machine.GuestDone},
		machine.Split:    {r.split, machine.SplitDone},
		machine.Verify:   {r.verify, machine.Verified},
		machine.Recover:  {r.recover, machine.Recovered},
		machine.HandOver: {r.handOver, machine.HandedOver},
	}
	switch do {
	case machine.Undo:
		return r.undo(context.WithoutCancel(ctx))
	case machine.Revert, machine.Break:
		return r.turn(ctx, do)
	case machine.InPlace:
		return r.inPlace(ctx)
	default: // one of the actions
	}
	a := actions[do]
	err := r.step(ctx, string(do), "", a.act)
	if err == nil {
		return a.done
	}
	if cause := context.Cause(r.ctx); cause != nil && r.e.ctx.Err() == nil {
		err = cause
	}
	r.fail(err)
	if errors.Is(err, errVMChanged) && r.attemptsLeft() {
		return machine.Changed
	}
	return machine.Failed
}

// asked reports whether somebody asks for ev of a set that has settled.
func asked(ev machine.Event) bool {
	return ev == machine.ReleaseAsked || ev == machine.RevertAsked || ev == machine.BreakAsked || ev == machine.InPlaceAsked
}

// settled reports whether a set in state s is one that nothing happens to until
// somebody asks.
func settled(s orchestrator.State) bool {
	return s == orchestrator.StateReady || s == orchestrator.StateReverting || s == orchestrator.StateBreaking || s == orchestrator.StateRecovering
}

// settle ends the loop: in ready the lease runs, as in a recovery that failed,
// and a final set is forgotten.
func (r *run) settle(s orchestrator.State) {
	switch {
	case s == orchestrator.StateReady || s == orchestrator.StateRecovering:
		r.startLease()
	case s.Final():
		r.stopLease()
		r.cancel(nil)
		r.e.forget(r.id)
	}
}

func (r *run) state() orchestrator.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.Set.State
}

// enter journals the state that follows. Without a change of state there is
// nothing to journal.
func (r *run) enter(from, to orchestrator.State) error {
	if from == to {
		return nil
	}
	text := string(to)
	return r.update(func(rec *journal.Record) {
		s := &rec.Set
		s.State = to
		switch to {
		case orchestrator.StatePlanned: // again, after retrying
			s.Attempt++
			s.Reason, s.Code = "", ""
		case orchestrator.StateRetrying, orchestrator.StateAborting, orchestrator.StateAborted:
			if s.Reason != "" {
				text += ": " + s.Reason
			}
		default: // forward, with nothing to add
		}
		rec.Events = append(rec.Events, orchestrator.Event{Set: r.id, At: s.Updated, State: to, Text: text})
	})
}

// update changes the record and journals it. The change is seen by readers even
// if journaling fails.
func (r *run) update(change func(*journal.Record)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Set.Updated = now()
	change(&r.rec)
	close(r.changed)
	r.changed = make(chan struct{})
	return r.e.cfg.Journal.Put(r.rec)
}

// hold journals what the set is about to take.
func (r *run) hold(hs ...journal.Holding) error {
	return r.update(func(rec *journal.Record) { rec.Holdings = append(rec.Holdings, hs...) })
}

// released journals that a holding was given back.
func (r *run) released(h journal.Holding) error {
	return r.update(func(rec *journal.Record) {
		rec.Holdings = slices.DeleteFunc(rec.Holdings, func(x journal.Holding) bool {
			return x.Kind == h.Kind && x.VM == h.VM && x.Array == h.Array && x.Tag == h.Tag && x.Name == h.Name
		})
	})
}

// fail keeps the first reason why the attempt ends.
func (r *run) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rec.Set.Reason == "" {
		r.rec.Set.Reason, r.rec.Set.Code = err.Error(), codeOf(err)
	}
	r.e.cfg.Logger.Warn("snapshot set fails", "set", r.id, "state", r.rec.Set.State, "error", err)
}

// say tells watchers something that changes no state. It is kept in memory and
// journaled with the next change, so it may be called while a VM stands still.
func (r *run) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Events = append(r.rec.Events, orchestrator.Event{Set: r.id, At: now(), State: r.rec.Set.State, Text: fmt.Sprintf(format, args...)})
	close(r.changed)
	r.changed = make(chan struct{})
}

// step times act as a line of the timeline and a span of the trace.
func (r *run) step(ctx context.Context, name, vm string, act func(context.Context) error) error {
	ctx, span := r.e.cfg.Tracer.Start(ctx, name, trace.WithAttributes(attribute.String("cleave.set", string(r.id)), attribute.String("cleave.vm", vm)))
	defer span.End()
	s := orchestrator.Step{Name: name, VM: vm, Clock: "host", From: now()}
	err := act(ctx)
	s.To = now()
	if err != nil {
		s.Error = err.Error()
		span.SetStatus(codes.Error, s.Error)
	}
	r.addSteps(s)
	return err
}

// addSteps appends to the timeline; it is journaled with the next change.
func (r *run) addSteps(ss ...orchestrator.Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Set.Steps = append(r.rec.Set.Steps, ss...)
}

func (r *run) attemptsLeft() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.Set.Attempt < r.rec.Set.Request.Attempts
}

func (r *run) request() orchestrator.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.Set.Request
}

// now is the time that goes into documents: UTC, without a monotonic part.
func now() time.Time { return time.Now().UTC().Round(0) }
