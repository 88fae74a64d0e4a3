package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/machine"
)

const (
	// rewriteLimit bounds the opening of a split for writing: whoever had it
	// before us, if that was an earlier process of ours, is gone by then.
	rewriteLimit = 10 * time.Second
	// maxRewritten is how many extents the document keeps of what was rewritten
	// in one split; beyond that they are told more coarsely.
	maxRewritten = 4096
	// sector is what recovery counts in.
	sector = 512
)

// Recover implements orchestrator.Service.
func (e *Engine) Recover(ctx context.Context, id orchestrator.SetID, req orchestrator.RecoverRequest) (orchestrator.Set, error) {
	if set, err := e.Get(ctx, id); err != nil || set.State == orchestrator.StateReady && recoveredInPlace(set) {
		return set, err // asked again is as good
	}
	return e.turn(ctx, id, machine.InPlaceAsked, orchestrator.StateRecovering, func(r *run) error {
		if err := r.rewritable(); err != nil {
			return err
		}
		if err := r.unread(ctx); err != nil {
			return err
		}
		r.mu.Lock()
		r.rec.Set.InPlace = &req // journaled with the state that follows, or with the first VM that begins
		r.mu.Unlock()
		return nil
	})
}

// recoveredInPlace reports whether all that could be recovered in place was.
func recoveredInPlace(set orchestrator.Set) bool {
	return len(toRecover(set)) == 0 &&
		slices.ContainsFunc(set.Splits, func(s orchestrator.Split) bool { return s.Recovery == orchestrator.RecoveredInPlace })
}

// rewritable refuses a set in which nothing is to be recovered, or not by us.
func (r *run) rewritable() error {
	vms := toRecover(r.document())
	if len(vms) == 0 {
		return fmt.Errorf("snapshot set %s: %w: none of its VMs has made a snapshot of its own, so there is nothing to recover", r.id, orchestrator.ErrUsage)
	}
	for _, m := range vms {
		for _, d := range m.Disks {
			switch a := r.e.array(d.Array); {
			case d.Host != nil:
				return fmt.Errorf("snapshot set %s: %w: disk %s of VM %q lies on a host's volume with others: use its recovered view", r.id, orchestrator.ErrUsage, d.Device, m.Name)
			case a == nil:
				return fmt.Errorf("snapshot set %s: split %q on array %q: %w", r.id, d.Split, d.Array, errArrayGone)
			case !a.CanRewrite():
				return fmt.Errorf("snapshot set %s: %w: array %q can't have its splits written to: use the recovered view of VM %q", r.id, orchestrator.ErrUsage, d.Array, m.Name)
			}
		}
	}
	return nil
}

// unread refuses while somebody may be reading: initiators that see a LUN of the
// set would not know that what they have read is stale, and readers of a view's
// socket would lose it.
func (r *run) unread(ctx context.Context) error {
	for _, h := range r.holdings() {
		if h.Kind == journal.PublishedLUN || h.Kind == journal.ExposedSplit {
			return fmt.Errorf("snapshot set %s: %w: %s is exposed; take it away first (cleave snapshot unexpose %s)", r.id, orchestrator.ErrBusy, h, r.id)
		}
	}
	for _, l := range r.document().LUNs {
		if l.Socket == "" {
			continue
		}
		n, err := r.e.cfg.Recoverer.Readers(ctx, l.Socket)
		if err != nil {
			return fmt.Errorf("snapshot set %s: whether LUN %q is being read: %w", r.id, l.Name, err)
		}
		if n > 0 {
			return fmt.Errorf("snapshot set %s: %w: %d readers are connected to %s, where LUN %q is served; end them first", r.id, orchestrator.ErrBusy, n, l.Socket, l.Name)
		}
	}
	return nil
}

// toRecover lists the VMs whose guests made snapshots that are not yet put back
// in place.
func toRecover(set orchestrator.Set) []orchestrator.VMResult {
	var out []orchestrator.VMResult
	for _, m := range set.VMs {
		if len(foundInGuest(m)) == 0 {
			continue
		}
		for _, d := range m.Disks {
			if s := splitOf(set.Splits, d); s != nil && s.Recovery != orchestrator.RecoveredInPlace {
				out = append(out, m)
				break
			}
		}
	}
	return out
}

// foundInGuest are the snapshots of a VM that verify found in its splits.
func foundInGuest(m orchestrator.VMResult) []InGuest {
	var w []InGuest
	if m.Verdict.How != orchestrator.ByGuest {
		return nil
	}
	for _, v := range m.Volumes {
		if v.Snapshot != "" && v.Found {
			w = append(w, InGuest{Volume: v.UUID, Snapshot: v.Snapshot})
		}
	}
	return w
}

func splitOf(splits []orchestrator.Split, d orchestrator.DiskResult) *orchestrator.Split {
	for i := range splits {
		if splits[i].ID == d.Split && splits[i].Array == d.Array {
			return &splits[i]
		}
	}
	return nil
}

// inPlace recovers one VM after the other. After a crash the devices themselves
// say how far each has come. What could not even be begun leaves the set as it
// was.
func (r *run) inPlace(ctx context.Context) machine.Event {
	r.stopLease()
	var err error
	for _, m := range toRecover(r.document()) {
		err = r.step(ctx, string(machine.InPlace), m.Name, func(ctx context.Context) error { return r.recoverVM(ctx, m) })
		if err != nil {
			break
		}
	}
	ev := r.turned(machine.InPlace, err)
	if ev == machine.Failed && !begun(r.document()) {
		r.mu.Lock()
		r.rec.Set.Reason, r.rec.Set.Code, r.rec.Set.InPlace = "", "", nil
		r.mu.Unlock()
		return machine.NotBegun
	}
	return ev
}

// begun reports whether a split of the set may have been written to.
func begun(set orchestrator.Set) bool {
	return slices.ContainsFunc(set.Splits, func(s orchestrator.Split) bool {
		return s.Recovery == orchestrator.RecoveringInPlace || s.Recovery == orchestrator.RecoveredInPlace
	})
}

// recoverVM recovers the splits under a VM's disks. Its view ends, and what is
// about to be rewritten is journaled, before the first write.
func (r *run) recoverVM(ctx context.Context, m orchestrator.VMResult) error {
	disks, shut, err := r.openSplits(ctx, m)
	if err != nil {
		return err
	}
	asked := r.document().InPlace
	err = r.e.cfg.Recoverer.InPlace(ctx, Disks{Devices: disks}, foundInGuest(m), asked != nil && asked.DiscardOthers, func(p InPlacePlan) error {
		return r.beginInPlace(ctx, m, p)
	})
	if err = errors.Join(err, shut()); err != nil {
		return fmt.Errorf("VM %q: recovering its disks in place: %w", m.Name, err)
	}
	err = r.update(func(rec *journal.Record) {
		for _, d := range m.Disks {
			if s := splitOf(rec.Set.Splits, d); s != nil {
				s.Recovery, s.State = orchestrator.RecoveredInPlace, string(driver.Skewed)
			}
		}
		rec.Set.LUNs = r.cleanLUNs(rec.Set, m)
	})
	if err == nil {
		r.say("the splits of VM %s are clean", m.Name)
	}
	return err
}

// openSplits opens the splits under a VM's disks for writing. shut closes them.
func (r *run) openSplits(ctx context.Context, m orchestrator.VMResult) (disks []lun.Device, shut func() error, err error) {
	shut = func() error {
		var errs []error
		for _, d := range disks {
			if c, ok := d.(io.Closer); ok {
				errs = append(errs, c.Close())
			}
		}
		return errors.Join(errs...)
	}
	limit, cancel := context.WithTimeout(ctx, rewriteLimit)
	defer cancel()
	for _, d := range m.Disks {
		a := r.e.array(d.Array)
		if a == nil {
			return nil, nil, errors.Join(fmt.Errorf("split %q on array %q: %w", d.Split, d.Array, errArrayGone), shut())
		}
		dev, err := a.Rewrite(limit, driver.SnapshotID(d.Split))
		if err != nil {
			return nil, nil, errors.Join(err, shut())
		}
		disks = append(disks, dev)
	}
	return disks, shut, nil
}

// beginInPlace is the moment before the first write.
func (r *run) beginInPlace(ctx context.Context, m orchestrator.VMResult, p InPlacePlan) error {
	if len(p.Rewritten) != len(m.Disks) {
		return fmt.Errorf("the plan is about %d disks, there are %d", len(p.Rewritten), len(m.Disks))
	}
	for i, d := range m.Disks {
		if s := splitOf(r.document().Splits, d); s == nil || !within(p.Rewritten[i], s.Size) {
			return fmt.Errorf("the plan for disk %s makes no sense", d.Device)
		}
	}
	if err := r.clear(ctx, func(h journal.Holding) bool { return h.Kind == journal.View && h.VM == m.Name }); err != nil {
		return err
	}
	return r.update(func(rec *journal.Record) {
		for i, d := range m.Disks {
			s := splitOf(rec.Set.Splits, d)
			// What is done was told in full when it began; from the devices alone
			// it is known less well.
			if !p.Done || s.Recovery != orchestrator.RecoveringInPlace {
				s.Rewritten = uniteRegions(s.Rewritten, p.Rewritten[i], s.Size)
			}
			s.Recovery = orchestrator.RecoveringInPlace
			for k := range rec.Set.LUNs {
				if rec.Set.LUNs[k].Split == s.ID {
					unserve(rec.Set.LUNs[k : k+1])
				}
			}
		}
		for i := range rec.Set.VMs {
			if rec.Set.VMs[i].Name == m.Name {
				noteModes(rec.Set.VMs[i].Volumes, p.Volumes)
			}
		}
	})
}

// within reports whether extents lie in a device: who lists them is not trusted.
func within(list []lun.Extent, size int64) bool {
	return !slices.ContainsFunc(list, func(x lun.Extent) bool { return lun.CheckRange(x.Off, x.Len, size) != nil })
}

func noteModes(volumes []orchestrator.VolumeResult, planned []InPlaceVolume) {
	for i := range volumes {
		for _, v := range planned {
			if v.Mode != "" && plainUUID(v.Volume) == plainUUID(volumes[i].UUID) {
				volumes[i].Mode, volumes[i].Discarded = v.Mode, v.Discarded
			}
		}
	}
}

// plainUUID is a UUID without the dashes that LVM prints, or leaves out.
func plainUUID(s string) string { return strings.ReplaceAll(s, "-", "") }

// cleanLUNs are the LUNs of the set once the splits of a VM are clean: of each of
// these there is one LUN, itself.
func (r *run) cleanLUNs(set orchestrator.Set, m orchestrator.VMResult) []orchestrator.LUN {
	var out []orchestrator.LUN
	done := false
	for _, l := range set.LUNs {
		mine := slices.ContainsFunc(m.Disks, func(d orchestrator.DiskResult) bool { return d.Split == l.Split })
		switch {
		case !mine:
			out = append(out, l)
		case !done: // in the place of the first of them
			done = true
			for _, d := range m.Disks {
				if s := splitOf(set.Splits, d); s != nil {
					out = append(out, orchestrator.LUN{
						Name: fmt.Sprintf("%s/%s/%s", r.id, m.Name, d.Device), Split: s.ID, Clean: true, NAA: s.NAA, UUID: s.UUID,
					})
				}
			}
		}
	}
	return out
}

// uniteRegions adds extents to what the document tells, in at most maxRewritten
// regions that cover all of both.
func uniteRegions(told []orchestrator.Region, more []lun.Extent, size int64) []orchestrator.Region {
	c := unite(driver.Changes{Granularity: sector, Regions: extentsOf(told)}, more, size)
	return regionsOf(coarser(c, maxRewritten, size).Regions)
}
