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
	views  *fakeViews
	luns   *fakeLUNs
	tracer trace.Tracer // nil: none
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
	w := &world{t: t, writer: writertest.NewFake("fake", vms...), views: &fakeViews{up: map[string]bool{}}, luns: &fakeLUNs{up: map[string]engine.Publication{}}}
	w.array = &fakeArray{t: t, volumes: map[driver.VolumeID]driver.Volume{}, exposed: map[driver.SnapshotID]driver.ExposeOptions{}}
	for _, vm := range vms {
		for _, d := range vm.Disks {
			id := driver.VolumeID("vol-" + vm.Name + "-" + d.Device)
			w.array.volumes[id] = driver.Volume{ID: id, Size: 1 << 20, Identity: lun.NewIdentity(), Mirrors: 3, State: driver.Synchronized}
		}
	}
	return w
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
	e, err := engine.New(engine.Config{
		Journal: j, Writers: []writerI{w.writer}, Arrays: []*arrays.Array{arrays.New("a", w.array, arrays.Options{Tracer: w.tracer})},
		Publisher: w.luns, Recoverer: w.views, Tracer: w.tracer, UndoRetry: time.Millisecond,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// left says what exists that a finished set would not leave.
func (w *world) left() []string {
	out := w.writer.Left()
	for _, s := range w.array.kept() {
		out = append(out, "split "+string(s.ID))
	}
	w.array.mu.Lock()
	for id := range w.array.exposed {
		out = append(out, "exposed split "+string(id))
	}
	w.array.mu.Unlock()
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
	slices.Sort(out)
	return out
}

func (w *world) wantNothingLeft() {
	w.t.Helper()
	if l := w.left(); len(l) > 0 {
		w.t.Errorf("left behind: %q", l)
	}
}

// fakeArray keeps splits in memory; rules say what goes wrong.
type fakeArray struct {
	t  *testing.T
	mu sync.Mutex

	volumes map[driver.VolumeID]driver.Volume
	snaps   []driver.Snapshot
	exposed map[driver.SnapshotID]driver.ExposeOptions
	splits  int // calls that came in

	onSplit   func() // runs as the call comes in
	loseReply bool   // the split is made and the answer lost
	refuse    error  // the split is not made
	stuck     int    // so many deletes and resyncs fail first
}

func (a *fakeArray) Resolve(_ context.Context, d driver.Disk) (driver.Volume, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok := a.volumes[driver.VolumeID(d.Path)]
	if !ok {
		return v, driver.Errorf(driver.NotMine, "no volume %q", d.Path)
	}
	return v, nil
}

func (a *fakeArray) Prepare(context.Context, []driver.VolumeID, driver.PrepareOptions) error {
	return nil
}

func (a *fakeArray) Split(ctx context.Context, tag driver.Tag, v driver.VolumeID) (driver.Snapshot, error) {
	s, err := a.SplitGroup(ctx, tag, []driver.VolumeID{v})
	if err != nil {
		return driver.Snapshot{}, err
	}
	return s[0], nil
}

func (a *fakeArray) SplitGroup(_ context.Context, tag driver.Tag, vs []driver.VolumeID) ([]driver.Snapshot, error) {
	if a.onSplit != nil {
		a.onSplit()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.splits++
	if a.refuse != nil {
		return nil, a.refuse
	}
	var out []driver.Snapshot
	for _, v := range vs {
		i := slices.IndexFunc(a.snaps, func(s driver.Snapshot) bool { return s.Tag == tag && s.Volume == v })
		if i < 0 {
			i = len(a.snaps)
			a.snaps = append(a.snaps, driver.Snapshot{
				ID: driver.SnapshotID(fmt.Sprintf("%s-of-%s", tag, v)), Tag: tag, Volume: v, Size: a.volumes[v].Size,
				Identity: lun.NewIdentity(), Method: driver.MirrorSplit, State: driver.Split, Group: string(tag), At: time.Now(),
			})
		}
		out = append(out, a.snaps[i])
	}
	if a.loseReply {
		return nil, driver.Errorf(driver.OutcomeUnknown, "the connection was cut")
	}
	return out, nil
}

func (a *fakeArray) Lookup(_ context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	var out []driver.Snapshot
	for _, s := range a.kept() {
		if s.Tag == tag {
			out = append(out, s)
		}
	}
	return out, nil
}

func (a *fakeArray) kept() []driver.Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.snaps)
}

func (a *fakeArray) Delete(_ context.Context, id driver.SnapshotID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stuck > 0 {
		a.stuck--
		return driver.Errorf(driver.Unreachable, "the array does not answer")
	}
	if _, is := a.exposed[id]; is {
		return driver.Errorf(driver.Busy, "split %q is exposed", id)
	}
	a.snaps = slices.DeleteFunc(a.snaps, func(s driver.Snapshot) bool { return s.ID == id })
	return nil
}

func (a *fakeArray) Resync(ctx context.Context, id driver.SnapshotID) error { return a.Delete(ctx, id) }

func (a *fakeArray) Kind(err error) driver.Kind {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return driver.Unknown
}

func (a *fakeArray) Open(_ context.Context, id driver.SnapshotID) (lun.Device, error) {
	if !slices.ContainsFunc(a.kept(), func(s driver.Snapshot) bool { return s.ID == id }) {
		return nil, driver.Errorf(driver.NotFound, "no split %q", id)
	}
	return blank{}, nil
}

func (a *fakeArray) Expose(_ context.Context, id driver.SnapshotID, o driver.ExposeOptions) (driver.Path, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.exposed[id] = o
	return driver.Path{Portals: []string{"127.0.0.1:3260"}, IQN: "iqn.2026-01.org.example:a", LUN: 7}, nil
}

func (a *fakeArray) Unexpose(_ context.Context, id driver.SnapshotID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.exposed, id)
	return nil
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
	fail    error
}

func (v *fakeViews) Check(_ context.Context, _ []lun.Device, want []engine.InGuest) ([]string, error) {
	whys := make([]string, len(want))
	for i := range whys {
		whys[i] = v.missing
	}
	return whys, nil
}

func (v *fakeViews) Start(_ context.Context, name string, disks []lun.Device, _ []engine.InGuest) (engine.View, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.up[name] = true
	if v.fail != nil {
		return engine.View{}, v.fail
	}
	view := engine.View{Socket: "/run/" + name}
	for i := range disks {
		view.Exports = append(view.Exports, fmt.Sprint(i))
	}
	return view, nil
}

func (v *fakeViews) Stop(_ context.Context, name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.up, name)
	return nil
}

// fakeLUNs stands for the data plane's target.
type fakeLUNs struct {
	mu sync.Mutex
	up map[string]engine.Publication
}

func (l *fakeLUNs) Publish(_ context.Context, p engine.Publication) (driver.Path, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up[p.Name] = p
	return driver.Path{Portals: []string{"127.0.0.1:3260"}, IQN: "iqn.2026-01.org.example:a", LUN: 9, Identity: p.Identity, Writable: p.Writable}, nil
}

func (l *fakeLUNs) Withdraw(_ context.Context, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.up, name)
	return nil
}
