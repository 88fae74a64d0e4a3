package engine

import (
	"context"
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/machine"
)

// Revert implements orchestrator.Service.
func (e *Engine) Revert(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return e.turn(ctx, id, machine.RevertAsked, orchestrator.StateReverting, func(r *run) error {
		if err := r.able(func(a *arrays.Array) bool { return a.CanRevert() }, "put a volume back"); err != nil {
			return err
		}
		if err := r.allOff(ctx); err != nil {
			return err
		}
		if err := r.unmounted(); err != nil {
			return err
		}
		return r.detachAll(ctx)
	})
}

// Break implements orchestrator.Service.
func (e *Engine) Break(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return e.turn(ctx, id, machine.BreakAsked, orchestrator.StateBreaking, func(r *run) error {
		if err := r.able(func(a *arrays.Array) bool { return a.CanBreak() }, "make a snapshot a volume"); err != nil {
			return err
		}
		return r.detachAll(ctx)
	})
}

// turn has a set that is ready, or was left in the state during by an error,
// reverted or broken off, and waits for its end or ctx's. may refuses it before
// anything is touched.
func (e *Engine) turn(ctx context.Context, id orchestrator.SetID, ev machine.Event, during orchestrator.State, may func(*run) error) (orchestrator.Set, error) {
	r := e.find(id)
	if r == nil {
		set, err := e.Get(ctx, id)
		if err == nil && !turnedBy(ev, set) {
			err = notReady(id, set.State)
		}
		return set, err // asked again is as good
	}
	admit := func() error {
		if s := r.state(); s != orchestrator.StateReady && s != during {
			return notReady(id, s)
		}
		return may(r)
	}
	if err := admit(); err != nil {
		return r.document(), err // without waiting for what is under way
	}
	done := make(chan error, 1)
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return r.document(), fmt.Errorf("snapshot set %s: %w: %w", id, orchestrator.ErrUnreachable, errStopping)
	}
	e.wg.Go(func() { done <- r.ask(ev, admit) })
	e.mu.Unlock()
	select {
	case err := <-done:
		set := r.document()
		if err == nil && !turnedBy(ev, set) {
			err = notReady(id, set.State)
		}
		return set, err
	case <-ctx.Done():
		set := r.document()
		return set, fmt.Errorf("snapshot set %s, which is %s, goes on: %w", id, set.State, contextError(ctx))
	}
}

// turnedBy reports whether a set has come to where ev was to lead it: a final one
// was reverted or broken off, a ready one recovered in place.
func turnedBy(ev machine.Event, set orchestrator.Set) bool {
	if ev == machine.InPlaceAsked {
		return set.State == orchestrator.StateReady && recoveredInPlace(set)
	}
	if !set.State.Final() {
		return false
	}
	for _, s := range set.Splits {
		if ev == machine.RevertAsked && s.SafePoint == "" || ev == machine.BreakAsked && s.Became == "" {
			return false
		}
	}
	return len(set.Splits) > 0
}

// able refuses where one of the set's arrays can't do what is asked.
func (r *run) able(can func(*arrays.Array) bool, what string) error {
	for _, s := range r.document().Splits {
		a := r.e.array(s.Array)
		if a == nil {
			return fmt.Errorf("snapshot set %s: split %q on array %q: %w", r.id, s.ID, s.Array, errArrayGone)
		}
		if !can(a) {
			return fmt.Errorf("snapshot set %s: %w: array %q can't %s", r.id, orchestrator.ErrUsage, s.Array, what)
		}
	}
	return nil
}

// allOff refuses while a VM of the set is not off: it would write what it has
// in its memory over the content that its disks were put back to. Of a VM that
// nobody knows any more the array alone can tell whether its volume is in use.
func (r *run) allOff(ctx context.Context) error {
	vms, err := r.e.VMs(ctx)
	if err != nil {
		return fmt.Errorf("snapshot set %s: whether its VMs are off: %w", r.id, err)
	}
	set := r.document()
	on := map[string]bool{} // VMs that have disks on its volumes, whether they are part of it or not
	for _, m := range set.VMs {
		on[m.Name] = true
	}
	for _, s := range set.Splits {
		for _, d := range s.Disks {
			on[d.VM] = true
		}
	}
	for _, vm := range vms {
		if on[vm.Name] && vm.Power != orchestrator.Off {
			return fmt.Errorf("snapshot set %s: %w: VM %q is %s; shut it down first", r.id, orchestrator.ErrBusy, vm.Name, vm.Power)
		}
	}
	return nil
}

// turn reverts to all splits of the set, or breaks them off. What was done is
// journaled for each, and done again after a crash in between: the arrays
// answer as they did before.
func (r *run) turn(ctx context.Context, do machine.Action) machine.Event {
	r.stopLease()
	err := r.step(ctx, string(do), "", func(ctx context.Context) error {
		if err := r.clear(ctx, func(h journal.Holding) bool { return h.Kind != journal.ArraySplit }); err != nil {
			return err
		}
		if err := r.update(func(rec *journal.Record) { unserve(rec.Set.LUNs) }); err != nil {
			return err
		}
		names := r.volumeNames()
		for i, s := range r.document().Splits {
			act := r.revertTo
			if do == machine.Break {
				act = func(ctx context.Context, a *arrays.Array, s *orchestrator.Split) (string, error) {
					return r.breakOff(ctx, a, s, names[i])
				}
			}
			if s.SafePoint != "" || s.Became != "" {
				continue
			}
			a := r.e.array(s.Array)
			if a == nil {
				return fmt.Errorf("split %q on array %q: %w", s.ID, s.Array, errArrayGone)
			}
			text, err := act(ctx, a, &s)
			if err != nil {
				return err
			}
			if err := r.update(func(rec *journal.Record) { rec.Set.Splits[i] = s }); err != nil {
				return err
			}
			r.say("%s", text)
		}
		return nil
	})
	return r.turned(do, err)
}

// turned notes how an action came out that can be asked for again. A reason that
// an earlier attempt left is over.
func (r *run) turned(do machine.Action, err error) machine.Event {
	if cause := context.Cause(r.ctx); err != nil && cause != nil && r.e.ctx.Err() == nil {
		err = cause
	}
	r.mu.Lock()
	r.turnErr = err
	r.rec.Set.Reason, r.rec.Set.Code = "", ""
	r.mu.Unlock()
	if err == nil {
		return machine.Turned
	}
	r.fail(err)
	r.say("%s: %v", do, err)
	return machine.Failed
}

func (r *run) revertTo(ctx context.Context, a *arrays.Array, s *orchestrator.Split) (string, error) {
	safe, err := a.Revert(ctx, driver.SnapshotID(s.ID))
	if err != nil {
		return "", err
	}
	s.SafePoint = string(safe.ID)
	return fmt.Sprintf("volume %s/%s holds what split %s held; safe point %s keeps what it held before", s.Array, s.Volume, s.ID, s.SafePoint), nil
}

func (r *run) breakOff(ctx context.Context, a *arrays.Array, s *orchestrator.Split, name string) (string, error) {
	if _, err := a.Break(ctx, driver.SnapshotID(s.ID), name); err != nil {
		return "", err
	}
	s.Became = name
	return fmt.Sprintf("split %s of volume %s/%s is volume %s now", s.ID, s.Array, s.Volume, name), nil
}

// maxVolumeName is how long a name every array takes.
const maxVolumeName = 63

// volumeNames are the names of the volumes that the splits become, the same at
// every call: set-vm-device, or set-volume of a host's volume, as far as arrays
// take it, and with the split's number where two would be the same.
func (r *run) volumeNames() []string {
	set := r.document()
	names := make([]string, len(set.Splits))
	used := map[string]bool{}
	for i, s := range set.Splits {
		name := string(set.ID)
		if vm, device := diskOf(set, s); len(s.Disks) > 0 {
			name += "-" + s.Volume
		} else if vm != "" {
			name += "-" + vm + "-" + device
		}
		name = plainName(name)
		if name = name[:min(len(name), maxVolumeName-4)]; used[name] {
			name = fmt.Sprintf("%s-%d", name, i)
		}
		used[name], names[i] = true, name
	}
	return names
}

// plainName has nothing in it but [a-z0-9._-].
func plainName(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c) {
			return c
		}
		return '-'
	}, strings.ToLower(s))
}
