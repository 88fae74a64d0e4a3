package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/classify"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/writer"
)

// grace is how much longer than the guest's own limit the host waits for the
// report, so that a guest which undid its step can say so.
const grace = 15 * time.Second

// keepFor is after how long a guest drops its snapshots by itself, should nobody
// come back for them.
const keepFor = 24 * time.Hour

// guest has every VM that can snapshot itself do so, and returns when each has
// reported every volume. A VM that did not falls a rung of the ladder if the
// level asked of it allows that, and else fails the set: the split is never
// asked for with a completion missing.
func (r *run) guest(ctx context.Context) error {
	id := r.stepID()
	var hs []journal.Holding
	for _, m := range r.vms {
		if m.verdict.How == orchestrator.ByGuest {
			hs = append(hs, m.guestHolding(id))
		}
	}
	if len(hs) == 0 {
		return nil
	}
	if err := r.hold(hs...); err != nil {
		return err
	}
	limit := r.request().GuestLimit
	ctx, cancel := context.WithTimeout(ctx, limit+grace)
	defer cancel()
	var wg sync.WaitGroup
	for _, m := range r.vms {
		if m.verdict.How != orchestrator.ByGuest {
			continue
		}
		wg.Go(func() {
			_ = r.step(ctx, "guest step", m.vm.Name, func(ctx context.Context) error {
				m.ask(ctx, id, writer.GuestOptions{Limit: limit, Keep: keepFor})
				return m.stepError()
			})
		})
	}
	wg.Wait()
	var errs []error
	for _, m := range r.vms {
		if m.verdict.How == orchestrator.ByGuest {
			r.addSteps(guestSteps(m)...)
			r.tracePhases(ctx, m)
			errs = append(errs, r.settleGuest(ctx, m, id))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return r.update(func(rec *journal.Record) { rec.Set.VMs = results(r.vms) })
}

// ask relays the step through the host writer, and keeps what came back.
func (m *member) ask(ctx context.Context, id orchestrator.SetID, o writer.GuestOptions) {
	report, err := m.writer.Snapshot(ctx, m.vm.Name, id, o)
	m.report = report
	if err != nil {
		m.problem = "the guest step failed: " + err.Error()
		m.gone = errors.Is(err, writer.ErrGone)
		return
	}
	m.problem = classify.Incomplete(m.vm.Guest.Volumes, report)
	m.reported = m.problem == ""
}

func (m *member) stepError() error {
	if m.problem == "" {
		return nil
	}
	return fmt.Errorf("VM %q: %s", m.vm.Name, m.problem)
}

// settleGuest decides about a VM whose step did not complete: down a rung, by a
// pause, if the level asked allows; its half-made snapshots are dropped first.
func (r *run) settleGuest(ctx context.Context, m *member, id orchestrator.SetID) error {
	if m.problem == "" {
		return nil
	}
	if m.gone {
		return fmt.Errorf("VM %q %w: %s", m.vm.Name, errVMChanged, m.problem)
	}
	if context.Cause(r.ctx) != nil || m.asked > orchestrator.LevelCrash {
		return fmt.Errorf("%w: %w", orchestrator.ErrLevel, m.stepError())
	}
	if err := m.writer.Drop(ctx, m.vm.Name, id); err != nil && !errors.Is(err, writer.ErrGone) {
		return fmt.Errorf("VM %q: its snapshots can't be dropped after a failed guest step: %w", m.vm.Name, err)
	}
	m.verdict.Class, m.verdict.How = orchestrator.SomeDowntime, orchestrator.ByPause
	m.verdict.Reason = m.problem
	r.say("VM %s falls back to a pause: %s", m.vm.Name, m.problem)
	return r.released(m.guestHolding(id))
}

// guestHolding is what a guest step leaves to be given back.
func (m *member) guestHolding(id orchestrator.SetID) journal.Holding {
	return journal.Holding{Kind: journal.GuestSnapshot, VM: m.vm.Name, Writer: m.writer.Name(), Tag: string(id)}
}

// guestSteps puts the guest's own account on the timeline, by the guest's clock.
func guestSteps(m *member) []orchestrator.Step {
	var ss []orchestrator.Step
	for _, w := range m.report.Writers {
		if !w.Began.IsZero() {
			ss = append(ss, orchestrator.Step{Name: "writer " + w.App, VM: m.vm.Name, Clock: "guest", From: w.Began, To: w.Ended, Error: w.Error})
		}
	}
	for _, c := range m.report.Completions {
		ss = append(ss, orchestrator.Step{Name: "snapshot of " + c.Volume, VM: m.vm.Name, Clock: "guest", From: c.Began, To: c.Ended, Error: c.Error})
	}
	return ss
}

// tracePhases puts what the guest did, phase by phase, into the trace: spans by
// the guest's clock.
func (r *run) tracePhases(ctx context.Context, m *member) {
	for i, p := range m.report.Phases {
		end := m.report.Finished
		if i+1 < len(m.report.Phases) {
			end = m.report.Phases[i+1].At
		}
		_, span := r.e.cfg.Tracer.Start(ctx, p.Name, trace.WithTimestamp(p.At),
			trace.WithAttributes(attribute.String("cleave.vm", m.vm.Name), attribute.String("cleave.clock", "guest")))
		span.End(trace.WithTimestamp(end))
	}
}

// dropGuests has the guests drop their snapshots, which are safe in the split
// now. One that does not is left to undo, and to the guest's own day.
func (r *run) dropGuests(ctx context.Context) {
	var wg sync.WaitGroup
	for _, m := range r.vms {
		if m.verdict.How != orchestrator.ByGuest {
			continue
		}
		wg.Go(func() {
			h := m.guestHolding(r.stepID())
			err := r.step(ctx, "drop in-guest snapshots", m.vm.Name, func(ctx context.Context) error {
				return r.undoOne(ctx, h)
			})
			if err == nil {
				err = r.released(h)
			}
			if err != nil {
				r.say("VM %s: in-guest snapshots are not dropped yet: %v", m.vm.Name, err)
			}
		})
	}
	wg.Wait()
}
