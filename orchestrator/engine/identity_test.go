package engine_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

const node = "iqn.2026-01.org.example:node1"

// seen makes a world in which node is known to have the volume under db before it.
type seen struct {
	vm    func(*orchestrator.VM)
	world func(*world)
	to    string // in place of node
}

func byArray(names ...string) func(*world) {
	return func(w *world) { w.array.seenBy = map[driver.VolumeID][]string{"vol-db-vda": names} }
}

// Who has an original before them gets no copy with its identity, whoever tells of
// it: nothing is begun for them, and of a set that is there they get no LUN.
func TestCopiesApart(t *testing.T) {
	for name, s := range map[string]seen{
		"by the array":         {world: byArray("iqn.2026-01.org.example:x", strings.ToUpper(node))},
		"by the array, to all": {world: byArray("*")},
		"by the array, a host": {world: byArray("node1")},
		"asked by host":        {world: byArray(node), to: "node1"},
		"by the hypervisor":    {vm: func(vm *orchestrator.VM) { vm.Disks[0].Initiator = node }},
		"by this host's login": {
			vm: func(vm *orchestrator.VM) { vm.Disks[0].Path = "/dev/db" },
			world: func(w *world) {
				w.kernel = node
				w.array.volumes["/dev/db"] = driver.Volume{ID: "/dev/db", Size: 1 << 20, Mirrors: 3, State: driver.Synchronized}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			vm := online("db")
			if s.vm != nil {
				s.vm(&vm)
			}
			w := newWorld(t, vm)
			w.named = map[string][]string{"node1": {"iqn.2026-01.org.example:node1-b", node}}
			if s.world != nil {
				s.world(w)
			}
			to := node
			if s.to != "" {
				to = s.to
			}
			e := w.engine(journal.NewMemory())
			defer e.Close()
			_, err := e.Create(t.Context(), orchestrator.Request{VMs: []string{"db"}, Initiators: []string{initiator, to}})
			if !errors.Is(err, orchestrator.ErrUsage) || !strings.Contains(err.Error(), "has the original of disk vda of VM \"db\" before it") {
				t.Errorf("Create: %v", err)
			}
			if w.array.splits > 0 {
				t.Error("it was split all the same")
			}
			set := create(t, e, orchestrator.Request{VMs: []string{"db"}})
			if _, err := e.Expose(t.Context(), set.ID, orchestrator.ExposeRequest{Initiators: []string{to}}); !errors.Is(err, orchestrator.ErrUsage) {
				t.Errorf("Expose: %v", err)
			}
			for name, p := range w.luns.up {
				if slices.Contains(p.Initiators, node) {
					t.Errorf("LUN %s is before %v", name, p.Initiators)
				}
			}
			set, err = e.Expose(t.Context(), set.ID, orchestrator.ExposeRequest{Initiators: []string{to}, NewIdentity: true, Writable: true})
			if err != nil {
				t.Fatal(err)
			}
			wantNew(t, w, set, node)
			if _, err := e.Release(t.Context(), set.ID); err != nil {
				t.Fatal(err)
			}
			w.wantNothingLeft()
		})
	}
}

// wantNew fails unless the set's LUNs with a new identity, and these alone, are
// before an initiator.
func wantNew(t *testing.T, w *world, set orchestrator.Set, iqn string) {
	t.Helper()
	var with []orchestrator.LUN
	for _, l := range set.LUNs {
		before := slices.Contains(w.luns.up[l.Name].Initiators, iqn)
		if before != l.NewIdentity {
			t.Errorf("LUN %s before %s: %v", l.Name, iqn, before)
		}
		if l.NewIdentity {
			with = append(with, l)
		}
	}
	if len(with) != 1 || !with[0].Clean || with[0].IQN == "" || with[0].UUID == set.LUNs[0].UUID || !slices.Equal(w.views.identities, []string{string(set.ID)}) {
		t.Errorf("LUNs with a new identity: %+v, of %q", with, w.views.identities)
	}
}

// A new identity that a set was asked for is there when it is ready, once however
// often it is exposed, also by a later process; a VM without a snapshot of its own
// has one, too.
func TestNewIdentity(t *testing.T) {
	w := newMortalWorld(t, online("db"), offline("legacy"))
	w.array.seenBy = map[driver.VolumeID][]string{"vol-db-vda": {node}, "vol-legacy-vda": {node}}
	j := journal.NewMemory()
	e := w.engine(j)
	set := create(t, e, orchestrator.Request{VMs: []string{"db", "legacy"}, Level: orchestrator.LevelCrash, Initiators: []string{node}, NewIdentity: true})
	var names []string
	for _, l := range set.LUNs {
		if l.NewIdentity {
			names = append(names, strings.TrimPrefix(l.Name, string(set.ID)))
			if want := strings.Contains(l.Name, "/db/"); l.Clean != want || l.IQN == "" {
				t.Errorf("%+v, want clean %v", l, want)
			}
		} else if l.IQN != "" {
			t.Errorf("%s is exposed, with the identity of the original", l.Name)
		}
	}
	if !slices.Equal(names, []string{"/db/vda/new", "/legacy/vda/new"}) {
		t.Errorf("LUNs with a new identity: %q", names)
	}
	e.Close()
	e = w.engine(j)
	defer e.Close()
	again, err := e.Expose(t.Context(), set.ID, orchestrator.ExposeRequest{Initiators: []string{initiator}, NewIdentity: true})
	if err != nil || len(again.LUNs) != len(set.LUNs) || len(w.views.identities) != 2 {
		t.Errorf("exposed again: %d LUNs, views of %q, %v", len(again.LUNs), w.views.identities, err)
	}
	if _, err := e.Release(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	w.wantNothingLeft()
}

func TestInitiatorsAreRefused(t *testing.T) {
	w := newWorld(t, online("db"))
	w.named = map[string][]string{"node1": {node}}
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db"}})
	for _, row := range []struct {
		req  orchestrator.ExposeRequest
		want error
		says string
	}{
		{orchestrator.ExposeRequest{Initiators: []string{"node2"}}, orchestrator.ErrNotFound, `the configuration has ["node1"]`},
		{orchestrator.ExposeRequest{Initiators: []string{node}, NewIdentity: true, Dirty: true}, orchestrator.ErrUsage, "identity of the originals"},
	} {
		if _, err := e.Expose(t.Context(), set.ID, row.req); !errors.Is(err, row.want) || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%+v: %v, want %v with %q", row.req, err, row.want, row.says)
		}
	}
	if _, err := e.Create(t.Context(), orchestrator.Request{VMs: []string{"db"}, Initiators: []string{"node2"}}); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("Create: %v", err)
	}
}

// A view that can't be had leaves the set as it was, and what there is of it goes
// with the set.
func TestNewIdentityFails(t *testing.T) {
	w := newWorld(t, online("db"))
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db"}})
	w.views.fail = errors.New("the partition table is damaged")
	if _, err := e.Expose(t.Context(), set.ID, orchestrator.ExposeRequest{Initiators: []string{node}, NewIdentity: true}); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("%v", err)
	}
	w.views.fail = nil
	set, err := e.Expose(t.Context(), set.ID, orchestrator.ExposeRequest{Initiators: []string{node}, NewIdentity: true})
	if err != nil || set.State != orchestrator.StateReady {
		t.Errorf("asked again: %s, %v", set.State, err)
	}
	if _, err := e.Release(t.Context(), set.ID); err != nil {
		t.Fatal(err)
	}
	w.wantNothingLeft()
}
