package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// Attachments are the block devices that this host has made of LUNs. Each says
// in a record of its own, kept from before its first step, which LUNs it is made
// of: so the engine keeps none, and finds after a crash of either side what
// there is. LUNs go by their NAA names ("naa.…").
type Attachments interface {
	// Devices lists what is attached of a LUN, whatever state it is in.
	Devices(ctx context.Context, naa string) ([]string, error)
	// Detach takes all of that away, flushed, also what a process that died has
	// left of it. While one is in use it is orchestrator.ErrBusy, says by whom,
	// and leaves that one as it was. That there is none is success.
	Detach(ctx context.Context, naa string) error
}

// detachAll takes the devices of the set's LUNs away, or says who uses them.
func (r *run) detachAll(ctx context.Context) error {
	return r.detach(ctx, func(orchestrator.LUN) bool { return true })
}

func (r *run) detach(ctx context.Context, of func(orchestrator.LUN) bool) error {
	if r.e.cfg.Attachments == nil {
		return nil
	}
	var errs []error
	for _, l := range r.document().LUNs {
		if l.NAA == "" || !of(l) {
			continue
		}
		if err := r.e.cfg.Attachments.Detach(ctx, l.NAA); err != nil {
			errs = append(errs, fmt.Errorf("snapshot set %s: devices of LUN %q: %w", r.id, l.Name, err))
		}
	}
	return errors.Join(errs...)
}

// withdraw takes a LUN away, and before that the devices of this host that are
// made of it. One that was being made meanwhile goes after it.
func (r *run) withdraw(ctx context.Context, h journal.Holding, take func() error) error {
	its := func(l orchestrator.LUN) bool {
		return h.Kind == journal.PublishedLUN && l.Name == h.Name || h.Kind == journal.ExposedSplit && l.Split == h.Name && !l.Hosted
	}
	if err := r.detach(ctx, its); err != nil {
		return err
	}
	if err := take(); err != nil {
		return wrap(h, err)
	}
	return r.detach(ctx, its)
}

// withDevices adds to a document what is attached of its LUNs now.
func (e *Engine) withDevices(ctx context.Context, set orchestrator.Set) orchestrator.Set {
	if e.cfg.Attachments == nil {
		return set
	}
	for i := range set.LUNs {
		l := &set.LUNs[i]
		if l.NAA == "" {
			continue
		}
		var err error
		if l.Devices, err = e.cfg.Attachments.Devices(ctx, l.NAA); err != nil {
			e.cfg.Logger.Warn("which devices are attached of a LUN is not known", "lun", l.Name, "error", err)
		}
	}
	return set
}
