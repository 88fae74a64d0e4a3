package engine_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/engine"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// fakeDevices stands for the host that attaches LUNs, as soon as it sees them: so
// in every test of this package a LUN that is taken from under its device is an
// error.
type fakeDevices struct {
	mu   sync.Mutex
	on   map[string]bool // by NAA name; true: in use
	late bool            // attaches again as the LUN is being taken away, once
}

func (d *fakeDevices) seen(naa string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, is := d.on[naa]; !is {
		d.on[naa] = false
	}
}

// mayGo is asked while a LUN is being taken away.
func (d *fakeDevices) mayGo(naa string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, is := d.on[naa]; is {
		return fmt.Errorf("LUN %s was taken from under its device", naa)
	}
	if d.late {
		d.late, d.on[naa] = false, false
	}
	return nil
}

func (d *fakeDevices) use(how bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for naa := range d.on {
		d.on[naa] = how
	}
}

func (d *fakeDevices) all() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.on))
}

func (d *fakeDevices) Devices(_ context.Context, naa string) ([]string, error) {
	if slices.Contains(d.all(), naa) {
		return []string{"/dev/" + naa}, nil
	}
	return nil, nil
}

func (d *fakeDevices) Detach(_ context.Context, naa string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.on[naa] {
		return fmt.Errorf("/dev/%s is mounted at /mnt: %w", naa, orchestrator.ErrBusy)
	}
	delete(d.on, naa)
	return nil
}

// TestAttached: while a device of this host is in use nothing is taken from under
// it, whoever asks, and also after a crash; then it goes before its LUN does.
func TestAttached(t *testing.T) {
	for name, act := range map[string]func(*engine.Engine, orchestrator.SetID) (orchestrator.Set, error){
		"release": func(e *engine.Engine, id orchestrator.SetID) (orchestrator.Set, error) {
			return e.Release(t.Context(), id)
		},
		"unexpose": func(e *engine.Engine, id orchestrator.SetID) (orchestrator.Set, error) {
			return e.Unexpose(t.Context(), id)
		},
		"revert": func(e *engine.Engine, id orchestrator.SetID) (orchestrator.Set, error) {
			return e.Revert(t.Context(), id)
		},
		"break": func(e *engine.Engine, id orchestrator.SetID) (orchestrator.Set, error) {
			return e.Break(t.Context(), id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, online("db"), offline("legacy"))
			disk := journal.NewMemory()
			e := w.engine(disk)
			set := create(t, e, request())
			if name == "revert" {
				w.writer.SetPower("db", orchestrator.Off)
				w.writer.SetPower("legacy", orchestrator.Off)
			}
			devices := w.hosts.all()
			if len(devices) != 3 { // two splits and a view
				t.Fatalf("attached: %q", devices)
			}
			w.hosts.use(true)
			for range 2 {
				if _, err := act(e, set.ID); !errors.Is(err, orchestrator.ErrBusy) {
					t.Errorf("with a device in use: %v", err)
				}
				got, err := e.Get(t.Context(), set.ID)
				if err != nil || got.State != orchestrator.StateReady {
					t.Fatalf("refused, it is %s, %v", got.State, err)
				}
				for _, l := range got.LUNs {
					if len(l.Portals) == 0 || !slices.Equal(l.Devices, []string{"/dev/" + l.NAA}) {
						t.Errorf("LUN %s: portals %q, devices %q", l.Name, l.Portals, l.Devices)
					}
				}
				e.Close() // the next one finds what there is
				e = w.engine(disk)
			}
			defer func() { e.Close() }()
			if !slices.Equal(w.hosts.all(), devices) {
				t.Errorf("attached: %q, were %q", w.hosts.all(), devices)
			}
			w.hosts.use(false)
			w.hosts.late = true
			if _, err := act(e, set.ID); err != nil {
				t.Errorf("with nobody using them: %v", err)
			}
			if left := w.hosts.all(); len(left) > 0 {
				t.Errorf("left attached: %q", left)
			}
		})
	}
}

// TestLeaseOverAttached: what is in use when the lease ends stays, with all that
// it stands on, until it is not.
func TestLeaseOverAttached(t *testing.T) {
	w := newWorld(t, online("db"))
	disk := journal.NewMemory()
	e := w.engine(disk)
	id := create(t, e, orchestrator.Request{VMs: []string{"db"}, Initiators: []string{initiator}}).ID
	w.hosts.use(true)
	e.Close()
	rec, err := disk.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	rec.Set.Expires = time.Now()
	if err := disk.Put(rec); err != nil {
		t.Fatal(err)
	}
	e = w.engine(disk)
	defer e.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	refused := false
	for ctx.Err() == nil { // it is ready until the lease's end
		_, _ = e.Wait(ctx, id, func(ev orchestrator.Event) {
			if strings.Contains(ev.Text, "is mounted at /mnt") {
				refused = true
				cancel()
			}
		})
	}
	if set, err := e.Get(t.Context(), id); !refused || set.State != orchestrator.StateReleasing {
		t.Errorf("the lease's end: told %v, %s, %v", refused, set.State, err)
	}
	w.views.mu.Lock()
	up := len(w.views.up)
	w.views.mu.Unlock()
	if up != 1 || len(w.array.kept()) != 1 || len(w.hosts.all()) != 1 {
		t.Errorf("under a device in use %d views, %d splits are left; %q", up, len(w.array.kept()), w.hosts.all())
	}
	w.hosts.use(false)
	if set, err := e.Release(t.Context(), id); err != nil || set.State != orchestrator.StateReleased {
		t.Errorf("%s, %v", set.State, err)
	}
	w.wantNothingLeft()
}
