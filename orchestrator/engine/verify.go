package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/classify"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// verify looks into the splits: each is who it says it is, and each in-guest
// snapshot is there by its UUID and valid. What was reached is decided here,
// from that evidence; only then do the guests drop their snapshots.
func (r *run) verify(ctx context.Context) error {
	var errs []error
	for _, m := range r.vms {
		if err := m.checkIdentity(); err != nil {
			return err
		}
	}
	if err := r.lookAtContainers(ctx); err != nil {
		return err
	}
	for _, m := range r.vms {
		if m.verdict.How == orchestrator.ByGuest && m.unreadable == "" {
			err := r.step(ctx, "look for in-guest snapshots", m.vm.Name, func(ctx context.Context) error {
				return r.look(ctx, m)
			})
			if err != nil {
				return err
			}
		}
		m.reached = classify.Reach(m.evidence())
		if m.reached.Level < m.asked {
			errs = append(errs, fmt.Errorf("VM %q: %w: %s asked, %s reached: %s", m.vm.Name, orchestrator.ErrLevel, m.asked, m.reached.Level, m.reached.Why))
		}
	}
	if err := r.update(func(rec *journal.Record) {
		rec.Set.VMs = results(r.vms)
		rec.Set.Splits = r.splits()
	}); err != nil {
		return err
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r.dropGuests(ctx)
	return nil
}

// checkIdentity refuses a split that is not new, or not of its volume.
func (m *member) checkIdentity() error {
	for p := range m.parts() {
		switch s := p.split; {
		case !s.Identity.IsZero() && s.Identity == p.volume.Identity:
			return fmt.Errorf("array %q: split %q has the identity of its source %q", p.array.Name(), s.ID, s.Volume)
		case s.Size != p.volume.Size:
			return fmt.Errorf("array %q: split %q has %d bytes, volume %q %d", p.array.Name(), s.ID, s.Size, s.Volume, p.volume.Size)
		}
	}
	return nil
}

// look asks a worker for the in-guest snapshots on the VM's splits.
func (r *run) look(ctx context.Context, m *member) error {
	disks, done, err := openDisks(ctx, m.disks)
	if err != nil {
		return err
	}
	defer done()
	want := m.inGuest()
	whys, err := r.e.cfg.Recoverer.Check(ctx, disks, want)
	if err != nil {
		return fmt.Errorf("VM %q: looking into its splits: %w", m.vm.Name, err)
	}
	if len(whys) != len(want) {
		return fmt.Errorf("VM %q: looking into its splits: %d answers to %d questions", m.vm.Name, len(whys), len(want))
	}
	m.found = map[string]string{}
	for i, w := range want {
		m.found[w.Snapshot] = whys[i]
	}
	return nil
}

// inGuest lists the snapshots that the guest reported.
func (m *member) inGuest() []InGuest {
	var w []InGuest
	for _, c := range m.report.Completions {
		if c.OK() {
			w = append(w, InGuest{Volume: c.VolumeID, Snapshot: c.Snapshot})
		}
	}
	return w
}

func (m *member) evidence() classify.Evidence {
	e := classify.Evidence{
		Verdict: m.verdict, Expected: m.vm.Guest.Volumes, Report: m.report, Problem: m.problem,
		ReportedBeforeSplit: m.reported, Found: m.found, Pause: m.pause, PauseHolds: m.holds,
		Unreadable: m.unreadable, Flushed: m.flushed, Unflushed: m.unflushed,
	}
	seen := map[splitKey]bool{}
	for p := range m.parts() {
		if seen[p.key()] {
			continue
		}
		seen[p.key()] = true
		e.Groups = append(e.Groups, p.split.Group)
		e.SplitMethod = string(p.split.Method)
	}
	return e
}
