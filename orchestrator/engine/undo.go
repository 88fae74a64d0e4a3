package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/machine"
	"github.com/cleave-san/cleave/orchestrator/writer"
)

// undoLimit bounds the undoing of one holding before it counts as failed and is
// tried again.
const undoLimit = 2 * time.Minute

// holdings returns what the set holds, newest first.
func (r *run) holdings() []journal.Holding {
	r.mu.Lock()
	defer r.mu.Unlock()
	hs := slices.Clone(r.rec.Holdings)
	slices.Reverse(hs)
	return hs
}

// undo gives back everything the set holds, newest first. It is the same after
// a release, a failure and a crash. What can't be given back now is tried again
// after a while, until it is, or the engine stops.
func (r *run) undo(ctx context.Context) machine.Event {
	r.vms = nil // a later attempt plans anew
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(r.e.ctx, cancel)()
	defer cancel()
	err := r.step(ctx, "undo", "", func(ctx context.Context) error {
		said := ""
		for {
			err := r.undoAll(ctx)
			if err == nil || ctx.Err() != nil {
				return err
			}
			if said != err.Error() {
				said = err.Error()
				r.say("not everything could be given back, tried again every %s: %v", r.e.cfg.UndoRetry, err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(r.e.cfg.UndoRetry):
			}
		}
	})
	if err != nil {
		return machine.Failed
	}
	return machine.Undone
}

func (r *run) undoAll(ctx context.Context) error {
	if err := r.clear(ctx, func(journal.Holding) bool { return true }); err != nil {
		return err
	}
	return r.update(func(rec *journal.Record) { unserve(rec.Set.LUNs) })
}

// clear gives back those of the set's holdings that go, newest first. It tries
// each, so that one that resists does not keep the others; but nothing is taken
// from under what still stands on it.
func (r *run) clear(ctx context.Context, goes func(journal.Holding) bool) error {
	var errs []error
	served := false // a LUN is still up
	for _, h := range r.holdings() {
		switch {
		case !goes(h), h.Kind == journal.View && served, h.Kind == journal.ArraySplit && len(errs) > 0:
			continue
		}
		one, cancel := context.WithTimeout(ctx, undoLimit)
		err := r.undoOne(one, h)
		cancel()
		if err == nil {
			err = r.released(h)
		}
		if err != nil {
			errs = append(errs, err)
			served = served || h.Kind == journal.PublishedLUN
		}
	}
	return errors.Join(errs...)
}

// unserve notes that nobody serves the LUNs any more.
func unserve(luns []orchestrator.LUN) {
	for i := range luns {
		l := &luns[i]
		l.Portals, l.IQN, l.LUN, l.Writable, l.Socket, l.Export = nil, "", 0, false, "", ""
	}
}

// undoOne gives one holding back. That it is not there is success: it may never
// have been made.
func (r *run) undoOne(ctx context.Context, h journal.Holding) error {
	switch h.Kind {
	case journal.GuestSnapshot:
		return r.undoGuest(ctx, h)
	case journal.ArraySplit:
		return r.undoSplit(ctx, h)
	case journal.View:
		return wrap(h, r.e.cfg.Recoverer.Stop(ctx, h.Name))
	case journal.PublishedLUN:
		return r.withdraw(ctx, h, func() error { return r.e.cfg.Publisher.Withdraw(ctx, h.Name) })
	case journal.ExposedSplit:
		a := r.e.array(h.Array)
		if a == nil {
			return wrap(h, errArrayGone)
		}
		return r.withdraw(ctx, h, func() error {
			err := a.Unexpose(ctx, driver.SnapshotID(h.Name))
			if arrays.KindOf(err) == driver.NotFound {
				return nil
			}
			return err
		})
	}
	return wrap(h, fmt.Errorf("holding of kind %q is not known to this version", h.Kind))
}

var errArrayGone = errors.New("the array is not configured any more: put it back into the configuration")

func wrap(h journal.Holding, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("giving back %s: %w", h, err)
}

// undoGuest has the guest drop its snapshots. A VM that is off or gone can't be
// asked; its guest's own timer ends with it, so this is said aloud.
func (r *run) undoGuest(ctx context.Context, h journal.Holding) error {
	i := slices.IndexFunc(r.e.cfg.Writers, func(w writer.Writer) bool { return w.Name() == h.Writer })
	if i < 0 {
		return wrap(h, fmt.Errorf("host writer %q is not configured any more: put it back into the configuration", h.Writer))
	}
	err := r.e.cfg.Writers[i].Drop(ctx, h.VM, orchestrator.SetID(h.Tag))
	switch {
	case errors.Is(err, writer.ErrGone):
		r.say("VM %s does not run; its in-guest snapshots (%s) stay until the guest removes them", h.VM, h.Tag)
		return nil
	case errors.Is(err, orchestrator.ErrNotFound):
		r.say("VM %s is gone; its in-guest snapshots (%s) went with its disks or stay in them", h.VM, h.Tag)
		return nil
	}
	return wrap(h, err)
}

// undoSplit puts the set's splits back under their volumes, or deletes them
// where that was asked or the array can't. What the array holds under the tag
// is asked of the array: the reply to the split may have been lost. What is
// armed under it is aborted first.
func (r *run) undoSplit(ctx context.Context, h journal.Holding) error {
	a := r.e.array(h.Array)
	if a == nil {
		return wrap(h, errArrayGone)
	}
	if err := disarm(ctx, a, driver.Tag(h.Tag)); err != nil {
		return wrap(h, err)
	}
	snaps, err := a.Lookup(ctx, driver.Tag(h.Tag))
	if err != nil {
		return wrap(h, err)
	}
	for _, s := range snaps {
		if a.CanResync() && s.Method == driver.MirrorSplit && !r.request().DeleteSplits {
			err = a.Resync(ctx, s.ID)
		} else {
			err = a.Delete(ctx, s.ID)
		}
		if err != nil {
			return wrap(h, err)
		}
	}
	return nil
}

// array finds an array by name, nil if it is not configured.
func (e *Engine) array(name string) *arrays.Array {
	for _, a := range e.cfg.Arrays {
		if a.Name() == name {
			return a
		}
	}
	return nil
}
