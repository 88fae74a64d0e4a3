package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

// armSlack is how much longer than pauses may last an array keeps a split armed
// before it aborts it by itself.
const armSlack = 30 * time.Second

// arm has the arrays of a set that spans several make their splits ready, while
// all VMs run. An array that can't is split as ever, before the others commit.
// If one fails to arm, the undoing of the attempt aborts those that did; if
// nobody is left to undo, their time-out does.
func (r *run) arm(ctx context.Context) error {
	gs := r.byArray()
	r.armed = map[*arrays.Array]bool{}
	if len(gs) < 2 {
		return nil
	}
	abortAfter := r.request().PauseLimit + armSlack
	return r.step(ctx, "arm", "", func(ctx context.Context) error {
		var mu sync.Mutex
		return each(gs, func(g group) error {
			if !g.array.CanArm() {
				return nil
			}
			err := g.array.Arm(ctx, r.tag(), g.volumes, abortAfter)
			if arrays.KindOf(err) == driver.NotSupported {
				return nil // what is behind the client is older than it
			}
			mu.Lock()
			defer mu.Unlock()
			r.armed[g.array] = err == nil
			return err
		})
	})
}

// splitAll splits each array's volumes as one group: arrays that were not armed
// first, since they may fail yet, and then all others at once.
func (r *run) splitAll(ctx context.Context) error {
	var plain, armed []group
	for _, g := range r.byArray() {
		if r.armed[g.array] {
			armed = append(armed, g)
		} else {
			plain = append(plain, g)
		}
	}
	err := r.splitEach(ctx, plain, func(g group) ([]driver.Snapshot, error) { return g.array.Split(ctx, r.tag(), g.volumes) })
	if err != nil {
		return err
	}
	return r.splitEach(ctx, armed, func(g group) ([]driver.Snapshot, error) { return g.array.Commit(ctx, r.tag()) })
}

// splitEach splits on several arrays at once. Where no answer comes, it asks
// the array what it did.
func (r *run) splitEach(ctx context.Context, gs []group, split func(group) ([]driver.Snapshot, error)) error {
	var mu sync.Mutex
	return each(gs, func(g group) error {
		snaps, err := split(g)
		if arrays.KindOf(err) == driver.OutcomeUnknown {
			found, lerr := g.array.Lookup(ctx, r.tag())
			if lerr != nil || len(found) == 0 {
				return errors.Join(err, lerr)
			}
			snaps, err = found, nil
		}
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		return r.assign(g, snaps)
	})
}

// each runs fn for all groups at once.
func each(gs []group, fn func(group) error) error {
	errs := make([]error, len(gs))
	var wg sync.WaitGroup
	for i, g := range gs {
		wg.Go(func() { errs[i] = fn(g) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// disarm makes sure that nothing of the tag is split any more: a Commit whose
// reply was lost has come to its end, or never will. What was committed is
// found by Lookup.
func disarm(ctx context.Context, a *arrays.Array, tag driver.Tag) error {
	err := a.Abort(ctx, tag)
	switch arrays.KindOf(err) {
	case driver.InvalidRequest, driver.NotSupported: // committed, or never armed
		return nil
	}
	if err != nil {
		return fmt.Errorf("disarming: %w", err)
	}
	return nil
}
