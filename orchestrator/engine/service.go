package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/machine"
)

// Get implements orchestrator.Service.
func (e *Engine) Get(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	if r := e.find(id); r != nil {
		return e.withDevices(ctx, r.document()), nil
	}
	rec, err := e.cfg.Journal.Get(id)
	return rec.Set, err
}

// List implements orchestrator.Service.
func (e *Engine) List(context.Context) ([]orchestrator.Set, error) {
	recs, err := e.cfg.Journal.All()
	if err != nil {
		return nil, err
	}
	slices.Reverse(recs)
	sets := make([]orchestrator.Set, 0, len(recs))
	for _, rec := range recs {
		sets = append(sets, rec.Set)
	}
	return sets, nil
}

// Wait implements orchestrator.Service.
func (e *Engine) Wait(ctx context.Context, id orchestrator.SetID, watch func(orchestrator.Event)) (orchestrator.Set, error) {
	seen := 0
	for {
		rec, changed, err := e.observe(id)
		if err != nil {
			return orchestrator.Set{}, err
		}
		for ; seen < len(rec.Events); seen++ {
			if watch != nil {
				watch(rec.Events[seen])
			}
		}
		if s := rec.Set.State; s == orchestrator.StateReady || s.Final() {
			return rec.Set, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return rec.Set, fmt.Errorf("waiting for snapshot set %s, which is %s: %w", id, rec.Set.State, contextError(ctx))
		case <-e.ctx.Done():
			return rec.Set, fmt.Errorf("waiting for snapshot set %s: %w: %w", id, orchestrator.ErrUnreachable, errStopping)
		}
	}
}

func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return orchestrator.ErrTimeout
	}
	return ctx.Err()
}

// observe returns a set's record and a channel that is closed when it changes.
func (e *Engine) observe(id orchestrator.SetID) (journal.Record, <-chan struct{}, error) {
	r := e.find(id)
	if r == nil {
		rec, err := e.cfg.Journal.Get(id)
		return rec, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return clone(r.rec), r.changed, nil
}

var (
	errReleased = errors.New("released while it was under way")
	errLease    = errors.New("its lease ran out")
)

// Release implements orchestrator.Service. It returns when everything was given
// back, or ctx ends; the giving back goes on in any case. A set of which a device
// is in use stays as it was. (A lease that ends does not ask: what it can't give
// back then, it tries again.)
func (e *Engine) Release(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	r := e.find(id)
	if r == nil {
		return e.Get(ctx, id) // final: asked again is as good
	}
	if settled(r.state()) {
		if err := r.detachAll(ctx); err != nil {
			return r.document(), err
		}
	}
	e.release(r, errReleased)
	return e.waitFinal(ctx, r)
}

// release has the set given back: a ready one at once, one under way as soon as
// its action has noticed.
func (e *Engine) release(r *run, why error) {
	r.stopLease()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	r.cancel(why)
	e.wg.Go(func() {
		r.op.Lock() // until the loop or an Expose has ended
		s := r.state()
		r.op.Unlock()
		if settled(s) {
			if errors.Is(why, errLease) {
				r.say("%v", errLease)
			}
			r.loop(machine.ReleaseAsked)
		}
	})
}

// waitFinal is Wait that goes past ready.
func (e *Engine) waitFinal(ctx context.Context, r *run) (orchestrator.Set, error) {
	for {
		rec, changed, err := e.observe(r.id)
		if err != nil || rec.Set.State.Final() {
			return rec.Set, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return rec.Set, fmt.Errorf("giving back snapshot set %s, which is %s: %w", r.id, rec.Set.State, contextError(ctx))
		case <-e.ctx.Done():
			return rec.Set, fmt.Errorf("giving back snapshot set %s: %w: %w", r.id, orchestrator.ErrUnreachable, errStopping)
		}
	}
}

// document returns the set's document as it is now.
func (r *run) document() orchestrator.Set {
	r.mu.Lock()
	defer r.mu.Unlock()
	return clone(r.rec).Set
}

// clone copies a record deep, the way the journal would.
func clone(rec journal.Record) journal.Record {
	var c journal.Record
	b, err := json.Marshal(rec)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		panic("snapshot set document can't be encoded: " + err.Error())
	}
	return c
}
