package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/classify"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/machine"
	"github.com/cleave-san/cleave/orchestrator/writer"
)

// member is one VM in one attempt of a set.
type member struct {
	vm      orchestrator.VM
	writer  writer.Writer
	verdict orchestrator.Verdict
	asked   orchestrator.Level
	disks   []disk

	report   wire.Report
	problem  string // why the report proves nothing
	gone     bool   // the VM stopped running in the guest step
	reported bool   // the whole report was there before the split
	pause    *orchestrator.Pause
	holds    bool // the split lay inside the pause
	found    map[string]string
	reached  classify.Reached

	flushed    []string // the host's volumes under it that were flushed before the split
	unflushed  string   // why one was not
	unreadable string   // why a disk's container can't be read in the split
}

// VMs implements orchestrator.Service. A host writer that can't be asked is an
// error: a VM must not go missing silently.
func (e *Engine) VMs(ctx context.Context) ([]orchestrator.VM, error) {
	var (
		mu   sync.Mutex
		vms  []orchestrator.VM
		errs []error
		wg   sync.WaitGroup
	)
	for _, w := range e.cfg.Writers {
		wg.Go(func() {
			l, err := w.List(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("host writer %q: %w", w.Name(), err))
			}
			vms = append(vms, l...)
		})
	}
	wg.Wait()
	slices.SortFunc(vms, func(a, b orchestrator.VM) int {
		if a.Name != b.Name {
			if a.Name < b.Name {
				return -1
			}
			return 1
		}
		return 0
	})
	return vms, errors.Join(errs...)
}

// Explain implements orchestrator.Service.
func (e *Engine) Explain(ctx context.Context, name string) ([]orchestrator.Verdict, error) {
	vms, err := e.VMs(ctx)
	if err != nil {
		return nil, err
	}
	var vs []orchestrator.Verdict
	for _, vm := range vms {
		if name == "" || vm.Name == name {
			vs = append(vs, e.look(ctx, vm).verdict)
		}
	}
	if name != "" && len(vs) == 0 {
		return nil, unknownVM(name, vms)
	}
	return vs, nil
}

func unknownVM(name string, vms []orchestrator.VM) error {
	var names []string
	for _, vm := range vms {
		names = append(names, vm.Name)
	}
	return fmt.Errorf("VM %q: %w: the host writers know %q", name, orchestrator.ErrNotFound, names)
}

// look resolves a VM's disks and classifies it.
func (e *Engine) look(ctx context.Context, vm orchestrator.VM) *member {
	m := &member{vm: vm}
	for _, w := range e.cfg.Writers {
		if w.Name() == vm.Writer {
			m.writer = w
		}
	}
	f := classify.Facts{VM: vm}
	for _, d := range vm.Disks {
		x, problem := e.resolve(ctx, d)
		f.Disks = append(f.Disks, x.facts(problem))
		if problem == "" && !d.ReadOnly {
			m.disks = append(m.disks, x)
		}
	}
	m.verdict = classify.Plan(f)
	return m
}

// Create implements orchestrator.Service.
func (e *Engine) Create(ctx context.Context, req orchestrator.Request) (orchestrator.Set, error) {
	req, err := complete(req)
	if err != nil {
		return orchestrator.Set{}, err
	}
	if req.Initiators, err = e.initiators(req.Initiators); err != nil {
		return orchestrator.Set{}, err
	}
	members, err := e.plan(ctx, req)
	if err != nil {
		return orchestrator.Set{}, err
	}
	if !req.NewIdentity { // else each expose would refuse it, with all done by then
		if _, err := e.apart(ctx, originals(results(members)), req.Initiators); err != nil {
			return orchestrator.Set{}, err
		}
	}
	at := now()
	set := orchestrator.Set{Version: 1, State: orchestrator.StatePlanned, Request: req, Created: at, Updated: at, Attempt: 1, VMs: results(members)}
	if req.DryRun {
		return set, nil
	}
	set.ID = newSetID()
	r := e.newRun(journal.Record{Set: set, Events: []orchestrator.Event{{Set: set.ID, At: at, State: set.State, Text: string(set.State)}}})
	r.vms = members
	if err := e.admit(r, members); err != nil {
		return orchestrator.Set{}, err
	}
	return set, nil
}

// complete fills in what a request left open, and refuses what makes no sense.
func complete(req orchestrator.Request) (orchestrator.Request, error) {
	if len(req.VMs) == 0 {
		return req, fmt.Errorf("%w: it names no VM", orchestrator.ErrUsage)
	}
	seen := map[string]bool{}
	for _, n := range req.VMs {
		if seen[n] {
			return req, fmt.Errorf("%w: VM %q is named twice", orchestrator.ErrUsage, n)
		}
		seen[n] = true
	}
	for what, d := range map[string]*time.Duration{"guest limit": &req.GuestLimit, "pause limit": &req.PauseLimit, "lease": &req.Lease} {
		if *d < 0 {
			return req, fmt.Errorf("%w: %s %s is negative", orchestrator.ErrUsage, what, *d)
		}
	}
	if req.NewIdentity && req.ExposeDirty {
		return req, errDirtyIdentity
	}
	setDefault(&req.GuestLimit, 2*time.Minute)
	setDefault(&req.PauseLimit, 10*time.Second)
	setDefault(&req.Lease, 24*time.Hour)
	setDefault(&req.Attempts, 3)
	return req, nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// plan finds the VMs, classifies them and checks that the level can be reached
// before anything is touched.
func (e *Engine) plan(ctx context.Context, req orchestrator.Request) ([]*member, error) {
	vms, err := e.VMs(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", orchestrator.ErrUnreachable, err)
	}
	var members []*member
	owner := map[string]*member{}
	for _, name := range req.VMs {
		i := slices.IndexFunc(vms, func(vm orchestrator.VM) bool { return vm.Name == name })
		if i < 0 {
			return nil, unknownVM(name, vms)
		}
		m := e.look(ctx, vms[i])
		if m.verdict.Class == orchestrator.NotPossible {
			return nil, fmt.Errorf("VM %q: %w: %s", name, orchestrator.ErrLevel, m.verdict.Reason)
		}
		if m.verdict.Best < req.Level {
			return nil, fmt.Errorf("VM %q: %w: %s asked, %s is the best there is: %s", name, orchestrator.ErrLevel, req.Level, m.verdict.Best, m.verdict.Reason)
		}
		m.asked = max(req.Level, orchestrator.LevelCrash)
		if req.Level == orchestrator.LevelNone {
			m.asked = m.verdict.Best
		}
		for _, v := range m.verdict.Volumes {
			if o := owner[v]; o != nil && o != m && !(o.hostedOn(v) && m.hostedOn(v)) {
				return nil, fmt.Errorf("VMs %q and %q: %w: both have disks on volume %s", o.vm.Name, name, orchestrator.ErrUsage, v)
			}
			owner[v] = m
		}
		members = append(members, m)
	}
	return members, nil
}

// admit journals the set and starts it, unless another one works on a VM or a
// volume of it.
func (e *Engine) admit(r *run, members []*member) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return fmt.Errorf("%w: %w", orchestrator.ErrUnreachable, errStopping)
	}
	for _, other := range e.runs {
		if what := overlap(other, members); what != "" {
			return fmt.Errorf("%s: %w: snapshot set %s works on it (cleave snapshot show %s)", what, orchestrator.ErrBusy, other.id, other.id)
		}
	}
	if err := e.cfg.Journal.Put(r.rec); err != nil {
		return fmt.Errorf("snapshot set is not begun: journal: %w", err)
	}
	e.runs[r.id] = r
	e.start(r, machine.Begin)
	return nil
}

// overlap names what other and the members both work on. Several ready sets of
// one VM may stand side by side: only a set that is still moving excludes.
func overlap(other *run, members []*member) string {
	other.mu.Lock()
	defer other.mu.Unlock()
	if other.rec.Set.State == orchestrator.StateReady {
		return ""
	}
	for _, o := range other.rec.Set.VMs {
		for _, m := range members {
			if o.Name == m.vm.Name {
				return fmt.Sprintf("VM %q", o.Name)
			}
			for _, v := range o.Verdict.Volumes {
				if slices.Contains(m.verdict.Volumes, v) {
					return fmt.Sprintf("volume %q", v)
				}
			}
		}
	}
	return ""
}

func newSetID() orchestrator.SetID {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return orchestrator.SetID("set-" + hex.EncodeToString(b[:]))
}

// results is what the document says of the members now.
func results(members []*member) []orchestrator.VMResult {
	var rs []orchestrator.VMResult
	for _, m := range members {
		rs = append(rs, m.result())
	}
	return rs
}

func (m *member) result() orchestrator.VMResult {
	r := orchestrator.VMResult{
		Name: m.vm.Name, Verdict: m.verdict, Asked: m.asked, Config: m.vm.Config, Pause: m.pause,
		Reached: m.reached.Level, Why: m.reached.Why, Evidence: m.reached.Evidence, Volumes: m.reached.Volumes,
	}
	for _, d := range m.disks {
		r.Disks = append(r.Disks, d.result())
	}
	for _, w := range m.report.Writers {
		x := orchestrator.WriterResult{App: w.App, Version: w.Version, State: string(w.State), Method: w.Method, Label: w.Label, Error: w.Error}
		for _, f := range w.Files {
			if x.Files == nil {
				x.Files = map[string]string{}
			}
			x.Files[f.Name] = f.Content
		}
		for _, c := range w.Components {
			x.Volumes = append(x.Volumes, c.Volumes...)
			x.Include = append(x.Include, c.Include...)
			x.Exclude = append(x.Exclude, c.Exclude...)
			x.Restore = c.Restore
		}
		r.Writers = append(r.Writers, x)
	}
	return r
}

// prepare brings every array's volumes to where a split can follow at once. A
// later attempt plans anew, for the VMs are not what they were.
func (r *run) prepare(ctx context.Context) error {
	if r.vms == nil {
		members, err := r.e.plan(ctx, r.request())
		if err != nil {
			return err
		}
		if err := r.keepAsked(members); err != nil {
			return err
		}
		r.vms = members
		if err := r.update(func(rec *journal.Record) { rec.Set.VMs = results(members) }); err != nil {
			return err
		}
	}
	if err := r.findBystanders(ctx); err != nil {
		return err
	}
	o := driver.PrepareOptions{Tag: r.tag(), AllowUnmirrored: r.request().AllowUnmirrored}
	for _, g := range r.byArray() {
		err := r.step(ctx, "prepare "+g.array.Name(), "", func(ctx context.Context) error {
			return g.array.Prepare(ctx, g.volumes, o)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// keepAsked holds a later attempt to what was asked at first: a VM that can no
// longer reach it fails the set, whatever it could reach now.
func (r *run) keepAsked(members []*member) error {
	for _, old := range r.document().VMs {
		for _, m := range members {
			if m.vm.Name != old.Name {
				continue
			}
			m.asked = old.Asked
			if m.verdict.Best < m.asked {
				return fmt.Errorf("VM %q: %w: %s asked, %s is the best there is now: %s", old.Name, orchestrator.ErrLevel, m.asked, m.verdict.Best, m.verdict.Reason)
			}
		}
	}
	return nil
}

// group is the set's volumes on one array.
type group struct {
	array   *arrays.Array
	volumes []driver.VolumeID
}

func (r *run) byArray() []group {
	var gs []group
	for _, m := range r.vms {
		for p := range m.parts() {
			i := slices.IndexFunc(gs, func(g group) bool { return g.array == p.array })
			if i < 0 {
				i = len(gs)
				gs = append(gs, group{array: p.array})
			}
			if !slices.Contains(gs[i].volumes, p.volume.ID) {
				gs[i].volumes = append(gs[i].volumes, p.volume.ID)
			}
		}
	}
	return gs
}

// tag labels this attempt's work on the arrays; the one place where a set's ID
// becomes a tag.
func (r *run) tag() driver.Tag {
	r.mu.Lock()
	defer r.mu.Unlock()
	return driver.Tag(fmt.Sprintf("%s-%d", r.id, r.rec.Set.Attempt))
}

// stepID names this attempt's guest step inside the guests.
func (r *run) stepID() orchestrator.SetID { return orchestrator.SetID(r.tag()) }
