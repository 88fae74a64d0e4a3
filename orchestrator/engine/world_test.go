package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/engine"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/writer/writertest"
)

// world is everything outside an engine: a host writer, an array, a target and
// workers, all fakes that keep what a real one keeps, so that Left can tell
// what was left behind.
type world struct {
	t      *testing.T
	writer *writertest.Fake
	array  *fakeArray
	second *fakeArray // nil: there is one array only
	armers bool       // arrays can arm
	views  *fakeViews
	luns   *fakeLUNs
	hosts  *fakeDevices
	files  *fakeFiles          // nil: disks are no files of this host
	tracer trace.Tracer        // nil: none
	named  map[string][]string // initiators of hosts
	kernel string              // this host's initiator
}

// newWorld makes a world for a test that must not leave a goroutine behind.
func newWorld(t *testing.T, vms ...orchestrator.VM) *world {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	return newMortalWorld(t, vms...)
}

// newMortalWorld makes one for a test in which a process dies: its goroutines
// stay where they were.
func newMortalWorld(t *testing.T, vms ...orchestrator.VM) *world {
	w := &world{t: t, writer: writertest.NewFake("fake", vms...), views: &fakeViews{up: map[string]bool{}, wrote: []lun.Extent{{Off: 4096, Len: 8192}, {Off: 700 << 10, Len: 512}}}, hosts: &fakeDevices{on: map[string]bool{}}}
	w.luns = &fakeLUNs{up: map[string]engine.Publication{}, devices: w.hosts}
	w.array = newFakeArray(t)
	w.array.devices = w.hosts
	for _, vm := range vms {
		for _, d := range vm.Disks {
			id := driver.VolumeID("vol-" + vm.Name + "-" + d.Device)
			w.array.volumes[id] = driver.Volume{ID: id, Size: 1 << 20, Identity: lun.NewIdentity(), Mirrors: 3, State: driver.Synchronized}
		}
	}
	return w
}

// twoArrays makes a mortal world in which the volumes of all VMs but the first
// lie on another array.
func twoArrays(t *testing.T, armers bool) *world {
	first, other := online("db"), offline("legacy")
	w := newMortalWorld(t, first, other)
	w.armers, w.second = armers, newFakeArray(t)
	w.second.devices = w.hosts
	for id, v := range w.array.volumes {
		if id != "vol-db-vda" {
			w.second.volumes[id] = v
			delete(w.array.volumes, id)
		}
	}
	return w
}

func (w *world) arrays() []*fakeArray {
	if w.second == nil {
		return []*fakeArray{w.array}
	}
	return []*fakeArray{w.array, w.second}
}

// online is a VM whose guest can do everything; offline one without an agent.
func online(name string) orchestrator.VM {
	vm := offline(name)
	vm.Guest = orchestrator.Guest{
		Requester: "fake-ga 1", CanSnapshot: true,
		Volumes: []orchestrator.GuestVolume{{Name: "vg/data", UUID: "D-" + name}, {Name: "vg/wal", UUID: "W-" + name}},
		Writers: []orchestrator.GuestWriter{{App: "postgresql", Version: "15", Running: true, Volumes: []string{"vg/data", "vg/wal"}}},
	}
	return vm
}

func offline(name string) orchestrator.VM {
	return orchestrator.VM{
		Name: name, Power: orchestrator.Running,
		Disks: []orchestrator.Disk{{Device: "vda", Format: "raw", Cache: "none", Path: "vol-" + name + "-vda"}},
		Guest: orchestrator.Guest{Silence: "no agent channel"},
	}
}

func (w *world) engine(j journal.Journal) *engine.Engine {
	var all []*arrays.Array
	for i, a := range w.arrays() {
		var d driver.Driver = a
		if w.armers {
			d = armer{a}
		}
		all = append(all, arrays.New(string(rune('a'+i)), d, arrays.Options{Tracer: w.tracer}))
	}
	c := engine.Config{
		Journal: j, Writers: []writerI{w.writer}, Arrays: all,
		Publisher: w.luns, Recoverer: w.views, Attachments: w.hosts, Hosts: w.named, Initiator: w.kernel, Tracer: w.tracer, UndoRetry: time.Millisecond,
	}
	if w.files != nil {
		c.HostVolumes = w.files
	}
	e, err := engine.New(c)
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// left says what exists that a finished set would not leave.
func (w *world) left() []string {
	out := w.writer.Left()
	for _, a := range w.arrays() {
		for _, s := range a.kept() {
			out = append(out, "split "+string(s.ID))
		}
		a.mu.Lock()
		for id := range a.exposed {
			out = append(out, "exposed split "+string(id))
		}
		for tag := range a.armed {
			out = append(out, "armed "+string(tag))
		}
		a.mu.Unlock()
	}
	w.views.mu.Lock()
	for n := range w.views.up {
		out = append(out, "view "+n)
	}
	w.views.mu.Unlock()
	w.luns.mu.Lock()
	for n := range w.luns.up {
		out = append(out, "LUN "+n)
	}
	w.luns.mu.Unlock()
	if !w.served() { // else they are the host's own affair
		for _, naa := range w.hosts.all() {
			out = append(out, "device of "+naa)
		}
	}
	slices.Sort(out)
	return out
}

// served reports whether there is a LUN.
func (w *world) served() bool {
	w.luns.mu.Lock()
	n := len(w.luns.up)
	w.luns.mu.Unlock()
	for _, a := range w.arrays() {
		a.mu.Lock()
		n += len(a.exposed)
		a.mu.Unlock()
	}
	return n > 0
}

func (w *world) wantNothingLeft() {
	w.t.Helper()
	if l := w.left(); len(l) > 0 {
		w.t.Errorf("left behind: %q", l)
	}
}

// blank is a device that nobody reads: the fakes of recovery only pass it on.
type blank struct{}

func (blank) ReadAt([]byte, int64) (int, error)  { return 0, errors.New("not to be read by an engine") }
func (blank) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (blank) Size() int64                        { return 1 << 20 }
func (blank) Sync() error                        { return nil }

// fakeViews stands for the workers.
type fakeViews struct {
	mu      sync.Mutex
	up      map[string]bool
	missing string // why snapshots are not found ("" if they are)
	// unreadable says for files on a host's volume why they are no disks.
	unreadable map[string]string
	fail       error

	wrote   []lun.Extent // by the views, and what is rewritten in place
	discard bool         // there are others, which want consent
	inPlace func(string) // runs before the plan is told, and after each write
	readers int          // of each view
	stuck   error        // views don't end

	identities []string // that views were given
	broken     error    // ends it in the middle
}

func (v *fakeViews) Rewritten(context.Context, string, string, int64) ([]lun.Extent, error) {
	return v.wrote, nil
}

func (v *fakeViews) Readers(context.Context, string) (int, error) { return v.readers, nil }

func (v *fakeViews) InPlace(_ context.Context, disks engine.Disks, want []engine.InGuest, discardOthers bool, begin func(engine.InPlacePlan) error) error {
	if v.discard && !discardOthers {
		return fmt.Errorf("%w: there are others", orchestrator.ErrUsage)
	}
	plan := engine.InPlacePlan{}
	for _, w := range want {
		plan.Volumes = append(plan.Volumes, engine.InPlaceVolume{Volume: w.Volume, Mode: "overwrite"})
	}
	for range disks.Devices {
		plan.Rewritten = append(plan.Rewritten, v.wrote)
	}
	at := v.inPlace
	if at == nil {
		at = func(string) {}
	}
	at("before")
	if err := begin(plan); err != nil {
		return err
	}
	for _, word := range []string{"half clean", "clean"} {
		for _, d := range disks.Devices {
			if _, err := d.WriteAt([]byte(word), 0); err != nil {
				return err
			}
		}
		if v.broken != nil {
			return v.broken
		}
		at(word)
	}
	return nil
}

// Containers answers by the names of files.
func (v *fakeViews) Containers(_ context.Context, disks engine.Disks) ([]orchestrator.Container, error) {
	var out []orchestrator.Container
	for _, p := range disks.Places {
		out = append(out, orchestrator.Container{Size: 1 << 20, Dirty: true, Problem: v.unreadable[p.Path]})
	}
	return out, nil
}

func (v *fakeViews) Check(_ context.Context, _ engine.Disks, want []engine.InGuest) ([]string, error) {
	whys := make([]string, len(want))
	for i := range whys {
		whys[i] = v.missing
	}
	return whys, nil
}

func (v *fakeViews) Start(_ context.Context, name string, disks engine.Disks, _ []engine.InGuest, identity string) (engine.View, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.up[name] = true
	if v.fail != nil {
		return engine.View{}, v.fail
	}
	view := engine.View{Socket: "/run/" + name}
	if identity != "" {
		v.identities = append(v.identities, identity)
	}
	n := len(disks.Devices)
	if len(disks.Places) > 0 {
		n = len(disks.Places)
	}
	for i := range n {
		view.Exports = append(view.Exports, fmt.Sprint(i))
	}
	return view, nil
}

func (v *fakeViews) Stop(_ context.Context, name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stuck != nil {
		return v.stuck
	}
	delete(v.up, name)
	return nil
}

// fakeLUNs stands for the data plane's target.
type fakeLUNs struct {
	mu sync.Mutex
	up map[string]engine.Publication

	devices *fakeDevices
}

func (l *fakeLUNs) Publish(_ context.Context, p engine.Publication) (driver.Path, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up[p.Name] = p
	l.devices.seen(p.Identity.NAAString())
	return driver.Path{Portals: []string{"127.0.0.1:3260"}, IQN: "iqn.2026-01.org.example:a", LUN: 9, Identity: p.Identity, Writable: p.Writable}, nil
}

func (l *fakeLUNs) Withdraw(_ context.Context, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p, up := l.up[name]; up {
		if err := l.devices.mayGo(p.Identity.NAAString()); err != nil {
			return err
		}
	}
	delete(l.up, name)
	return nil
}
