package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// Expose implements orchestrator.Service.
func (e *Engine) Expose(ctx context.Context, id orchestrator.SetID, req orchestrator.ExposeRequest) (orchestrator.Set, error) {
	if len(req.Initiators) == 0 {
		return orchestrator.Set{}, fmt.Errorf("%w: it names no initiator", orchestrator.ErrUsage)
	}
	var err error
	if req.Initiators, err = e.initiators(req.Initiators); err != nil {
		return orchestrator.Set{}, err
	}
	return e.onReady(id, func(r *run) error { return r.expose(ctx, req) })
}

// Unexpose implements orchestrator.Service.
func (e *Engine) Unexpose(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return e.onReady(id, func(r *run) error { return r.unexpose(ctx) })
}

// onReady lets act work on a set that is ready, and on nothing else.
func (e *Engine) onReady(id orchestrator.SetID, act func(*run) error) (orchestrator.Set, error) {
	r := e.find(id)
	if r == nil {
		set, err := e.Get(context.Background(), id)
		if err == nil {
			err = notReady(id, set.State)
		}
		return set, err
	}
	if err := r.checkReady(); err != nil {
		return orchestrator.Set{}, err // without waiting for what is under way
	}
	r.op.Lock()
	defer r.op.Unlock()
	if err := r.checkReady(); err != nil {
		return orchestrator.Set{}, err // it was released meanwhile
	}
	err := act(r)
	return r.document(), err
}

func (r *run) checkReady() error {
	if s := r.state(); s != orchestrator.StateReady {
		return notReady(r.id, s)
	}
	return nil
}

// notReady tells a set that may become ready from one that never will.
func notReady(id orchestrator.SetID, s orchestrator.State) error {
	why := orchestrator.ErrBusy
	if s.Final() {
		why = orchestrator.ErrUsage
	}
	return fmt.Errorf("snapshot set %s is %s, not ready: %w", id, s, why)
}

var errDirtyIdentity = fmt.Errorf("%w: splits as they came off have the identity of the originals", orchestrator.ErrUsage)

// expose serves the clean views and the splits that were recovered in place; and
// with req.Dirty (or where there is nothing cleaner) what is as it came off,
// read-only. A host's volume itself takes req.Dirty. With req.NewIdentity it serves
// views that have that, and nothing else.
func (r *run) expose(ctx context.Context, req orchestrator.ExposeRequest) error {
	switch {
	case req.NewIdentity && req.Dirty:
		return errDirtyIdentity
	case req.NewIdentity:
		if err := r.newViews(ctx); err != nil {
			return err
		}
	default:
		if err := r.apart(ctx, req); err != nil {
			return err
		}
	}
	luns := r.document().LUNs
	for i, l := range luns {
		if l.NewIdentity != req.NewIdentity {
			continue
		}
		var (
			p   driver.Path
			err error
		)
		as := req
		if !l.Clean && !l.NewIdentity {
			if !req.Dirty && hasBetter(luns, l) {
				continue
			}
			as.Writable = false
		}
		if l.Socket != "" {
			p, err = r.publish(ctx, l, as)
		} else {
			p, err = r.exposeSplit(ctx, l, as)
		}
		if err != nil {
			return err
		}
		l.Portals, l.IQN, l.LUN, l.Writable = p.Portals, p.IQN, p.LUN, p.Writable
		if err := r.update(func(rec *journal.Record) { rec.Set.LUNs[i] = l }); err != nil {
			return err
		}
		r.say("LUN %s: %s LUN %d at %v", l.Name, p.IQN, p.LUN, p.Portals)
	}
	return nil
}

// apart refuses initiators that see an original of what they would get, before one
// of them has got anything.
func (r *run) apart(ctx context.Context, req orchestrator.ExposeRequest) error {
	var of []original
	set := r.document()
	for _, l := range set.LUNs {
		if o, ok := originalOf(set, l); ok && (l.Clean || req.Dirty || !hasBetter(set.LUNs, l)) && !slices.Contains(of, o) {
			of = append(of, o)
		}
	}
	unknown, err := r.e.apart(ctx, of, req.Initiators)
	if err == nil && len(unknown) > 0 {
		r.say("whether %s have originals before them is not known: %s", strings.Join(req.Initiators, ", "), strings.Join(unknown, ", "))
	}
	return err
}

// hasBetter reports whether there is a LUN that is meant to be used instead of
// one that is not clean: the clean one of the same disk, or those of the disks that
// lie on a host's volume.
func hasBetter(luns []orchestrator.LUN, dirty orchestrator.LUN) bool {
	return slices.ContainsFunc(luns, func(l orchestrator.LUN) bool {
		return l.Clean && l.Name+ofDirty == dirty.Name || l.Hosted && !dirty.Hosted && l.Split == dirty.Split
	})
}

func (r *run) publish(ctx context.Context, l orchestrator.LUN, req orchestrator.ExposeRequest) (driver.Path, error) {
	id, err := lun.ParseIdentity(l.UUID)
	if err != nil {
		return driver.Path{}, err
	}
	if err := r.holdOnce(journal.Holding{Kind: journal.PublishedLUN, Name: l.Name}); err != nil {
		return driver.Path{}, err
	}
	p, err := r.e.cfg.Publisher.Publish(ctx, Publication{
		Name: l.Name, Socket: l.Socket, Export: l.Export, Identity: id, Initiators: req.Initiators, Writable: req.Writable,
	})
	if err != nil {
		return p, fmt.Errorf("exposing LUN %q: %w", l.Name, err)
	}
	return p, nil
}

func (r *run) exposeSplit(ctx context.Context, l orchestrator.LUN, req orchestrator.ExposeRequest) (driver.Path, error) {
	i := slices.IndexFunc(r.document().Splits, func(s orchestrator.Split) bool { return s.ID == l.Split })
	s := r.document().Splits[i]
	a := r.e.array(s.Array)
	if a == nil {
		return driver.Path{}, fmt.Errorf("exposing split %q: array %q is not configured any more", s.ID, s.Array)
	}
	if err := r.holdOnce(journal.Holding{Kind: journal.ExposedSplit, Array: s.Array, Name: s.ID}); err != nil {
		return driver.Path{}, err
	}
	return a.Expose(ctx, driver.SnapshotID(s.ID), driver.ExposeOptions{Initiators: req.Initiators, Writable: req.Writable})
}

// holdOnce journals a holding unless it is there: exposing again holds nothing
// new.
func (r *run) holdOnce(h journal.Holding) error {
	r.mu.Lock()
	there := slices.ContainsFunc(r.rec.Holdings, func(x journal.Holding) bool {
		return x.Kind == h.Kind && x.Name == h.Name && x.Array == h.Array
	})
	r.mu.Unlock()
	if there {
		return nil
	}
	return r.hold(h)
}

// unexpose takes all LUNs away, newest first.
func (r *run) unexpose(ctx context.Context) error {
	if err := r.detachAll(ctx); err != nil {
		return err // nobody has lost anything
	}
	var errs []error
	for _, h := range r.holdings() {
		if h.Kind != journal.PublishedLUN && h.Kind != journal.ExposedSplit {
			continue
		}
		err := r.undoOne(ctx, h)
		if err == nil {
			err = r.released(h)
		}
		errs = append(errs, err)
	}
	errs = append(errs, r.update(func(rec *journal.Record) {
		for i := range rec.Set.LUNs {
			l := &rec.Set.LUNs[i]
			l.Portals, l.IQN, l.LUN, l.Writable = nil, "", 0, false
		}
	}))
	return errors.Join(errs...)
}
