package writertest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
	"github.com/cleave-san/cleave/orchestrator/writer"
)

// Op names a method of a writer, for Faults and Calls.
type Op string

const (
	OpList     Op = "list"
	OpSnapshot Op = "snapshot"
	OpDrop     Op = "drop"
	OpPause    Op = "pause"
	OpResume   Op = "resume"
)

// Fault is one thing that goes wrong. A zero field does nothing, so a fault is
// as narrow or as wide as its author wants; several may hit the same call, and
// are applied in their order.
type Fault struct {
	On   Op     // which method; "" is any
	VM   string // which VM; "" is any (List is about all VMs: every VM's faults hit it)
	Skip int    // leave the first calls that match alone
	Hits int    // then hit this many calls; 0 is all

	Before func(f *Fake)            // runs before the call does its work (change a state, cancel something)
	After  func(f *Fake)            // runs after the work, before the caller hears of it
	Delay  time.Duration            // before the work; the caller's context ends it
	Err    error                    // instead of the work
	Lost   error                    // the work is done, the answer is this
	Hang   bool                     // no answer until the caller's context ends; nothing is done
	Report func(r *wire.Report)     // edits a guest's report
	List   func(v *orchestrator.VM) // edits a VM as List reports it
}

// Silent makes vm's guest answer nothing at all: List says so, and the guest
// step waits for its limit or the caller's patience.
func Silent(vm string) []Fault {
	return []Fault{
		{On: OpList, VM: vm, List: func(v *orchestrator.VM) {
			v.Guest = orchestrator.Guest{Silence: "the agent did not answer"}
		}},
		{On: OpSnapshot, VM: vm, Hang: true},
	}
}

// LateReport holds a guest's report back for d after its work is done.
func LateReport(vm string, d time.Duration) Fault {
	return Fault{On: OpSnapshot, VM: vm, After: func(*Fake) { time.Sleep(d) }}
}

// LostReport lets the guest do its step and the answer get lost.
func LostReport(vm string, err error) Fault {
	return Fault{On: OpSnapshot, VM: vm, Lost: err}
}

// Unfinished takes the end line from a report: the step has not ended.
func Unfinished(vm string) Fault {
	return Fault{On: OpSnapshot, VM: vm, Report: func(r *wire.Report) { r.Finished = time.Time{} }}
}

// Partial takes the completion of volume n (in the report's order) away.
func Partial(vm string, n int) Fault {
	return Fault{On: OpSnapshot, VM: vm, Report: func(r *wire.Report) {
		if n < len(r.Completions) {
			r.Completions = slices.Delete(slices.Clone(r.Completions), n, n+1)
		}
	}}
}

// FailedVolume lets volume n report that it has no snapshot.
func FailedVolume(vm string, n int, why string) Fault {
	return Fault{On: OpSnapshot, VM: vm, Report: func(r *wire.Report) {
		if n < len(r.Completions) {
			r.Completions = slices.Clone(r.Completions)
			r.Completions[n].Snapshot, r.Completions[n].Error = "", why
		}
	}}
}

// FailedWriter lets the guest's application writers fail.
func FailedWriter(vm, why string) Fault {
	return Fault{On: OpSnapshot, VM: vm, Report: func(r *wire.Report) {
		r.Writers = slices.Clone(r.Writers)
		for i := range r.Writers {
			r.Writers[i].State, r.Writers[i].Error = wire.WriterFailed, why
		}
	}}
}

// Turns changes the power of vm when op is called on any VM (as somebody who
// stops or starts a machine in the middle of a set), once.
func Turns(vm string, op Op, to orchestrator.Power) Fault {
	return Fault{On: op, Hits: 1, Before: func(f *Fake) { f.SetPower(vm, to) }}
}

// Call is one call that was made, in order of arrival.
type Call struct {
	Op    Op
	VM    string
	Set   orchestrator.SetID
	Began time.Time
	Ended time.Time // zero while it runs
	Err   error
}

// Fake is a host writer whose VMs are values. It keeps what a real one keeps
// (power, paused machines, in-guest snapshots), so that Left can tell at the
// end of a test whether anything was left behind. Its clock is time.Now, so it
// runs inside a synctest bubble. All methods may be called at once.
type Fake struct {
	writerName string

	mu     sync.Mutex
	vms    []orchestrator.VM
	faults []*faultState
	calls  []*Call
	guests map[string]map[orchestrator.SetID]wire.Report // snapshots that exist, by VM
	pauses map[string]*fakePause
	held   map[string]int // guest steps under way
	serial int

	// OnCall, if set before the first call, sees each call as it begins.
	OnCall func(Call)
}

type faultState struct {
	Fault
	seen int
}

// NewFake returns a writer of that name with these VMs. Each VM's Writer is set
// to the name; a VM without a Power is running.
func NewFake(name string, vms ...orchestrator.VM) *Fake {
	f := &Fake{
		writerName: name,
		guests:     map[string]map[orchestrator.SetID]wire.Report{},
		pauses:     map[string]*fakePause{},
		held:       map[string]int{},
	}
	for _, v := range vms {
		v.Writer = name
		if v.Power == "" {
			v.Power = orchestrator.Running
		}
		f.vms = append(f.vms, v)
	}
	return f
}

var _ writer.Writer = (*Fake)(nil)

// Add puts faults in force, for all later calls.
func (f *Fake) Add(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range faults {
		f.faults = append(f.faults, &faultState{Fault: x})
	}
}

// Heal takes all faults away.
func (f *Fake) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// SetPower changes what a VM is. A VM that is switched off loses its pause, and
// its guest keeps its snapshots, as a disk does.
func (f *Fake) SetPower(vm string, p orchestrator.Power) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v := f.find(vm); v != nil {
		v.Power = p
	}
}

// Power tells what a VM is now.
func (f *Fake) Power(vm string) orchestrator.Power {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v := f.find(vm); v != nil {
		return v.Power
	}
	return orchestrator.PowerUnknown
}

// Calls returns all calls so far, oldest first.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Call, len(f.calls))
	for i, c := range f.calls {
		out[i] = *c
	}
	return out
}

// Held names the VMs whose guest step is under way.
func (f *Fake) Held() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for vm, n := range f.held {
		if n > 0 {
			out = append(out, vm)
		}
	}
	slices.Sort(out)
	return out
}

// Left says what exists that a finished set would not leave: one line for each
// guest step under way, paused VM and in-guest snapshot.
func (f *Fake) Left() []string {
	out := f.Held()
	for i := range out {
		out[i] = "guest step under way in " + out[i]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for vm, sets := range f.guests {
		for set, r := range sets {
			out = append(out, fmt.Sprintf("%d snapshots of %s in %s", len(r.Completions), set, vm))
		}
	}
	for vm := range f.pauses {
		out = append(out, "paused: "+vm)
	}
	slices.Sort(out)
	return out
}

// ProcessDied does what the guards do when the process that paused VMs dies:
// they resume them at once.
func (f *Fake) ProcessDied() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pauses {
		f.endPause(p, true)
	}
}

// Name is part of writer.Writer.
func (f *Fake) Name() string { return f.writerName }

// List is part of writer.Writer.
func (f *Fake) List(ctx context.Context) ([]orchestrator.VM, error) {
	var out []orchestrator.VM
	err := f.call(ctx, Call{Op: OpList}, func(faults []Fault) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, v := range f.vms {
			if v.Power != orchestrator.Running {
				v.Guest = orchestrator.Guest{Silence: "the VM is " + string(v.Power)}
			}
			v.Disks = slices.Clone(v.Disks)
			for _, x := range faults {
				if x.List != nil && (x.VM == "" || x.VM == v.Name) {
					x.List(&v)
				}
			}
			out = append(out, v)
		}
		return nil
	})
	return out, err
}

// Snapshot is part of writer.Writer. It reports a completion for each volume of
// the VM's Guest, and a stable writer for each of its Writers.
func (f *Fake) Snapshot(ctx context.Context, vm string, set orchestrator.SetID, o writer.GuestOptions) (wire.Report, error) {
	var r wire.Report
	err := f.call(ctx, Call{Op: OpSnapshot, VM: vm, Set: set}, func(faults []Fault) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		v := f.find(vm)
		switch {
		case v == nil:
			return fmt.Errorf("VM %q: %w", vm, orchestrator.ErrNotFound)
		case v.Power != orchestrator.Running:
			return fmt.Errorf("VM %q: %w", vm, writer.ErrGone)
		case !v.Guest.CanSnapshot:
			return fmt.Errorf("VM %q can't make a snapshot: %s", vm, v.Guest.Cannot)
		}
		old, again := f.guests[vm][set]
		if r = old; !again {
			r = f.report(v, set, o)
			if f.guests[vm] == nil {
				f.guests[vm] = map[orchestrator.SetID]wire.Report{}
			}
			f.guests[vm][set] = r
		}
		for _, x := range faults {
			if x.Report != nil {
				x.Report(&r)
			}
		}
		return nil
	})
	return r, err
}

// report is what a guest in good health says.
func (f *Fake) report(v *orchestrator.VM, set orchestrator.SetID, o writer.GuestOptions) wire.Report {
	now := time.Now()
	r := wire.Report{Started: now, Finished: now, Requester: v.Guest.Requester}
	for _, vol := range v.Guest.Volumes {
		if vol.Cannot != "" || len(o.Volumes) > 0 && !slices.Contains(o.Volumes, vol.UUID) {
			continue
		}
		f.serial++
		c := wire.Completion{
			Volume: vol.Name, VolumeID: vol.UUID, Group: "group-of-" + v.Name, Kind: vol.Kind,
			Mount: vol.Mount, FS: vol.FS, Began: now, Ended: now, Session: string(set),
			Snapshot: fmt.Sprintf("snapshot-%d-of-%s", f.serial, vol.UUID),
			Name:     fmt.Sprintf("%s-%s", vol.Name, set),
		}
		r.Completions = append(r.Completions, c)
	}
	for _, w := range v.Guest.Writers {
		x := wire.Writer{App: w.App, Version: w.Version, State: wire.WriterStable, Session: string(set), Began: now, Ended: now,
			Components: []wire.Component{{Name: w.App, Volumes: w.Volumes, Include: []string{"/var/lib/" + w.App}}}}
		switch {
		case !w.Running:
			x.State, x.Session = wire.WriterNotRunning, ""
		case w.Cannot != "":
			x.State, x.Error = wire.WriterFailed, w.Cannot
		}
		r.Writers = append(r.Writers, x)
	}
	return r
}

// Drop is part of writer.Writer.
func (f *Fake) Drop(ctx context.Context, vm string, set orchestrator.SetID) error {
	return f.call(ctx, Call{Op: OpDrop, VM: vm, Set: set}, func([]Fault) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		v := f.find(vm)
		switch {
		case v == nil:
			return fmt.Errorf("VM %q: %w", vm, orchestrator.ErrNotFound)
		case v.Power != orchestrator.Running:
			return fmt.Errorf("VM %q: %w", vm, writer.ErrGone)
		}
		delete(f.guests[vm], set)
		return nil
	})
}

// Pause is part of writer.Writer.
func (f *Fake) Pause(ctx context.Context, vm string, limit time.Duration) (writer.Pause, error) {
	var p *fakePause
	err := f.call(ctx, Call{Op: OpPause, VM: vm}, func([]Fault) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		v := f.find(vm)
		switch {
		case v == nil:
			return fmt.Errorf("VM %q: %w", vm, orchestrator.ErrNotFound)
		case f.pauses[vm] != nil:
			return fmt.Errorf("VM %q is paused already: %w", vm, orchestrator.ErrBusy)
		}
		p = &fakePause{f: f, vm: vm, from: time.Now()}
		p.out = orchestrator.Pause{From: p.from, WasState: v.Power}
		if v.Power != orchestrator.Running {
			p.ended = true
			return nil
		}
		v.Power = orchestrator.Paused
		f.pauses[vm] = p
		p.guard = time.AfterFunc(limit, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.endPause(p, true)
		})
		return nil
	})
	if p == nil {
		return nil, err
	}
	if err != nil { // done, but nobody hears of it: the guard is on its own, as if the caller had gone
		f.mu.Lock()
		defer f.mu.Unlock()
		f.endPause(p, true)
		return nil, err
	}
	return p, nil
}

type fakePause struct {
	f     *Fake
	vm    string
	from  time.Time
	guard *time.Timer
	ended bool
	out   orchestrator.Pause
}

func (p *fakePause) Resume(ctx context.Context) (orchestrator.Pause, error) {
	err := p.f.call(ctx, Call{Op: OpResume, VM: p.vm}, func([]Fault) error {
		p.f.mu.Lock()
		defer p.f.mu.Unlock()
		p.f.endPause(p, false)
		return nil
	})
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	return p.out, err
}

// endPause resumes; the caller holds f.mu.
func (f *Fake) endPause(p *fakePause, byGuard bool) {
	if p.ended {
		return
	}
	p.ended = true
	p.guard.Stop()
	p.out.For, p.out.ByGuard = time.Since(p.from), byGuard
	delete(f.pauses, p.vm)
	if v := f.find(p.vm); v != nil && v.Power == orchestrator.Paused {
		v.Power = orchestrator.Running
	}
}

func (f *Fake) find(vm string) *orchestrator.VM {
	for i := range f.vms {
		if f.vms[i].Name == vm {
			return &f.vms[i]
		}
	}
	return nil
}

// call records a call, applies the faults that hit it and does the work.
func (f *Fake) call(ctx context.Context, c Call, work func(hit []Fault) error) (err error) {
	c.Began = time.Now()
	rec := &c
	f.mu.Lock()
	f.calls = append(f.calls, rec)
	var hit []Fault
	for _, x := range f.faults {
		if x.On != "" && x.On != c.Op || x.VM != "" && x.VM != c.VM && c.Op != OpList {
			continue
		}
		if x.seen++; x.seen > x.Skip && (x.Hits == 0 || x.seen <= x.Skip+x.Hits) {
			hit = append(hit, x.Fault)
		}
	}
	if c.Op == OpSnapshot {
		f.held[c.VM]++
	}
	see, seen := f.OnCall, c
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if c.Op == OpSnapshot {
			f.held[c.VM]--
		}
		rec.Ended, rec.Err = time.Now(), err
	}()
	if see != nil {
		see(seen)
	}

	for _, x := range hit {
		if x.Before != nil {
			x.Before(f)
		}
		if x.Hang {
			<-ctx.Done()
		}
		if x.Delay > 0 {
			t := time.NewTimer(x.Delay)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
		}
		if x.Err != nil {
			return x.Err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := work(hit); err != nil {
		return err
	}
	for _, x := range hit {
		if x.After != nil {
			x.After(f)
		}
		if x.Lost != nil {
			return x.Lost
		}
	}
	return nil
}
