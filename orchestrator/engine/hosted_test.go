package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/engine"
	"github.com/cleave-san/cleave/orchestrator/hostvolume"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// fakeFiles stands for the host's file systems: all that begins with /srv/ is a
// file on the volume "srv", and /dev/vg/ are logical volumes over "srv" and "more".
type fakeFiles struct {
	mu      sync.Mutex
	flushed []string
	onFlush func() error
	mounted bool
}

func (f *fakeFiles) Under(_ context.Context, path string) (hostvolume.Under, error) {
	switch name, in := strings.CutPrefix(path, "/srv/"); {
	case in:
		return hostvolume.Under{Devices: []hostvolume.Device{{Path: "srv"}}, Volume: "p1", Path: "/" + name, FS: "ext4", Mount: "/srv"}, nil
	case strings.HasPrefix(path, "/dev/vg/"):
		return hostvolume.Under{Devices: []hostvolume.Device{{Path: "srv"}, {Path: "more"}}, Volume: "UUID-of-" + path}, nil
	case path == "/dev/alias":
		return hostvolume.Under{Devices: []hostvolume.Device{{Path: "srv"}}, Volume: "disk"}, nil
	case path == "/local/disk":
		return hostvolume.Under{Devices: []hostvolume.Device{{Path: "/dev/sda"}}, Volume: "p2", Path: "/disk", FS: "ext4", Mount: "/"}, nil
	}
	return hostvolume.Under{}, fmt.Errorf("what lies under %s: %w", path, hostvolume.ErrNone)
}

func (f *fakeFiles) Flush(_ context.Context, path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flushed = append(f.flushed, path)
	if f.onFlush != nil {
		return f.onFlush()
	}
	return nil
}

func (f *fakeFiles) Mounted(string) (bool, error) { return f.mounted, nil }

// onHostVolume makes a world in which there is a host with volumes.
func onHostVolume(w *world) *world {
	w.files = &fakeFiles{}
	for _, v := range []driver.VolumeID{"srv", "more"} {
		w.array.volumes[v] = driver.Volume{ID: v, Size: 1 << 30, Identity: lun.NewIdentity(), Mirrors: 3, State: driver.Synchronized}
	}
	return w
}

// at is a VM whose disk is at a path of its host.
func at(vm orchestrator.VM, path, format string) orchestrator.VM {
	vm.Disks[0].Path, vm.Disks[0].Format = path, format
	return vm
}

func file(vm orchestrator.VM) orchestrator.VM { return at(vm, "/srv/"+vm.Name+".vhdx", "vhdx") }

func names(set orchestrator.Set, exposed bool) (out []string) {
	for _, l := range set.LUNs {
		if !exposed || l.IQN != "" {
			out = append(out, strings.TrimPrefix(l.Name, string(set.ID)+"/"))
		}
	}
	return out
}

// TestDisksOnAHostVolume: two VMs of the set and one besides have their disks as
// files on one volume: it is split once, flushed before, and each disk is a LUN.
func TestDisksOnAHostVolume(t *testing.T) {
	w := onHostVolume(newWorld(t, file(online("db")), file(offline("legacy")), file(offline("other"))))
	var order []string
	w.files.onFlush = func() error {
		order = append(order, "flush")
		if h := w.writer.Held(); len(h) > 0 {
			order = append(order, "guest held")
		}
		return nil
	}
	w.array.onSplit = func() { order = append(order, "split") }
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db", "legacy"}, Initiators: []string{initiator}})
	wantState(t, set, orchestrator.StateReady)
	if want := []string{"flush", "split"}; !slices.Equal(order, want) {
		t.Errorf("order of the story: %q, want %q", order, want)
	}
	db, legacy := set.VMs[0], set.VMs[1]
	if db.Reached != orchestrator.LevelApplication || !slices.ContainsFunc(db.Evidence, func(s string) bool { return strings.Contains(s, "/srv flushed") }) {
		t.Errorf("db reached %s (%s): %q", db.Reached, db.Why, db.Evidence)
	}
	if legacy.Reached != orchestrator.LevelCrash || legacy.Pause == nil {
		t.Errorf("legacy reached %s, pause %v", legacy.Reached, legacy.Pause)
	}
	if h := db.Disks[0].Host; h == nil || h.Path != "/db.vhdx" || h.Format != "vhdx" || h.Container == nil || !h.Container.Dirty {
		t.Errorf("db's disk: %+v", h)
	}
	if len(set.Splits) != 1 {
		t.Fatalf("%d splits of one volume: %+v", len(set.Splits), set.Splits)
	}
	s := set.Splits[0]
	var on []string
	for _, d := range s.Disks {
		on = append(on, fmt.Sprintf("%s/%s %s %s", d.VM, d.Device, d.Host.Path, d.Reached))
	}
	if want := []string{"db/vda /db.vhdx application", "legacy/vda /legacy.vhdx crash", "other/vda /other.vhdx crash"}; !slices.Equal(on, want) {
		t.Errorf("disks on the split: %q, want %q", on, want)
	}
	if s.Reached != orchestrator.LevelCrash || s.Recovery != orchestrator.RecoveredAsView {
		t.Errorf("the split reached %s, recovered as %q", s.Reached, s.Recovery)
	}
	if got, want := names(set, false), []string{"db/vda", "db/vda/split", "legacy/vda/split", "volume:a/srv"}; !slices.Equal(got, want) {
		t.Errorf("LUNs %q, want %q", got, want)
	}
	if got, want := names(set, true), []string{"db/vda", "legacy/vda/split"}; !slices.Equal(got, want) {
		t.Errorf("exposed %q, want %q", got, want)
	}
	if p := w.luns.up[string(set.ID)+"/legacy/vda/split"]; p.Writable || p.Socket == "" {
		t.Errorf("what is as it came off is published as %+v", p)
	}
	set, err := e.Expose(t.Context(), set.ID, orchestrator.ExposeRequest{Initiators: []string{initiator}, Dirty: true, Writable: true})
	if err != nil || len(names(set, true)) != 4 {
		t.Errorf("exposed with all that is dirty: %q, %v", names(set, true), err)
	}
	if _, err := e.Recover(t.Context(), set.ID, orchestrator.RecoverRequest{}); !errors.Is(err, orchestrator.ErrUsage) || !strings.Contains(err.Error(), "host's volume") {
		t.Errorf("in place: %v", err)
	}
	if set, err = e.Release(t.Context(), set.ID); err != nil || set.State != orchestrator.StateReleased {
		t.Errorf("release: %s, %v", set.State, err)
	}
	w.wantNothingLeft()
}

// TestHostVolumeNotFlushed: what the guest flushed may not have reached the volume.
func TestHostVolumeNotFlushed(t *testing.T) {
	for _, tc := range []struct {
		asked orchestrator.Level
		state orchestrator.State
	}{{orchestrator.LevelFilesystem, orchestrator.StateAborted}, {orchestrator.LevelCrash, orchestrator.StateReady}} {
		w := onHostVolume(newWorld(t, file(online("db"))))
		w.files.onFlush = func() error { return errors.New("the disk hangs") }
		e := w.engine(journal.NewMemory())
		set := create(t, e, orchestrator.Request{VMs: []string{"db"}, Level: tc.asked})
		wantState(t, set, tc.state)
		why := set.Reason
		if tc.state == orchestrator.StateReady {
			why = set.VMs[0].Why
			if set.VMs[0].Reached != orchestrator.LevelCrash {
				t.Errorf("reached %s", set.VMs[0].Reached)
			}
		}
		if !strings.Contains(why, "the disk hangs") {
			t.Errorf("%s asked: why is %q", tc.asked, why)
		}
		if _, err := e.Release(t.Context(), set.ID); err != nil {
			t.Error(err)
		}
		w.wantNothingLeft()
		e.Close()
	}
}

// TestUnreadableContainers: that of the set's VM ends it; that of another VM on
// the volume shows.
func TestUnreadableContainers(t *testing.T) {
	for _, of := range []string{"db", "other"} {
		w := onHostVolume(newWorld(t, file(online("db")), file(offline("other"))))
		w.views.unreadable = map[string]string{"/" + of + ".vhdx": "its table is torn"}
		e := w.engine(journal.NewMemory())
		set := create(t, e, orchestrator.Request{VMs: []string{"db"}})
		switch of {
		case "db":
			wantState(t, set, orchestrator.StateAborted)
			if set.Code != orchestrator.CodeLevel || !strings.Contains(set.Reason, "its table is torn") {
				t.Errorf("%s: %s", set.Code, set.Reason)
			}
		case "other":
			wantState(t, set, orchestrator.StateReady)
			d := set.Splits[0].Disks[1]
			if d.VM != "other" || d.Reached != orchestrator.LevelNone || d.Why != "its table is torn" || set.Splits[0].Reached != orchestrator.LevelNone {
				t.Errorf("split %s, disk %+v", set.Splits[0].Reached, d)
			}
			if set.VMs[0].Reached != orchestrator.LevelApplication {
				t.Errorf("the VM of the set reached %s: %s", set.VMs[0].Reached, set.VMs[0].Why)
			}
		}
		if _, err := e.Release(t.Context(), set.ID); err != nil {
			t.Error(err)
		}
		w.wantNothingLeft()
		e.Close()
	}
}

// TestLogicalVolumeOfTheHost: a disk over two volumes has a split of each.
func TestLogicalVolumeOfTheHost(t *testing.T) {
	w := onHostVolume(newWorld(t, at(online("db"), "/dev/vg/db", "raw")))
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db"}})
	wantState(t, set, orchestrator.StateReady)
	d := set.VMs[0].Disks[0]
	if len(set.Splits) != 2 || d.Volume != "srv" || len(d.Also) != 1 || d.Also[0].Volume != "more" || d.Also[0].Split == "" || d.Host.Volume != "UUID-of-/dev/vg/db" {
		t.Errorf("%d splits, disk %+v on %+v", len(set.Splits), d, d.Host)
	}
	if set.VMs[0].Reached != orchestrator.LevelApplication {
		t.Errorf("reached %s: %s", set.VMs[0].Reached, set.VMs[0].Why)
	}
	if _, err := e.Release(t.Context(), set.ID); err != nil {
		t.Error(err)
	}
	w.wantNothingLeft()
}

// TestRevertOfAHostVolume: not while it is mounted, nor while any VM on it runs.
func TestRevertOfAHostVolume(t *testing.T) {
	w := onHostVolume(newWorld(t, file(online("db")), file(offline("other"))))
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db"}})
	wantState(t, set, orchestrator.StateReady)
	refused := func(word string) {
		t.Helper()
		if _, err := e.Revert(t.Context(), set.ID); !errors.Is(err, orchestrator.ErrBusy) || !strings.Contains(err.Error(), word) {
			t.Errorf("revert: %v, want %q", err, word)
		}
	}
	w.writer.SetPower("db", orchestrator.Off)
	refused(`VM "other"`)
	w.writer.SetPower("other", orchestrator.Off)
	w.files.mounted = true
	refused("unmount it first")
	w.files.mounted = false
	if set, err := e.Revert(t.Context(), set.ID); err != nil || set.State != orchestrator.StateReleased {
		t.Errorf("revert: %s, %v", set.State, err)
	}
	w.array.safe = nil
	w.wantNothingLeft()
}

// TestPlanSaysFullCopy: that a volume needs a whole new mirror after the split is
// known before it.
func TestPlanSaysFullCopy(t *testing.T) {
	w := newWorld(t, online("db"), offline("legacy"))
	v := w.array.volumes["vol-db-vda"]
	v.FullCopy = true
	w.array.volumes[v.ID] = v
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set, err := e.Create(t.Context(), orchestrator.Request{VMs: []string{"db", "legacy"}, DryRun: true})
	if err != nil || !set.VMs[0].Disks[0].FullCopy || set.VMs[1].Disks[0].FullCopy {
		t.Errorf("%+v, %v", set.VMs, err)
	}
}

// TestPlansOfFiles: which files of the host can be split, and why not.
func TestPlansOfFiles(t *testing.T) {
	for path, want := range map[string]string{
		"/srv/a.vhdx": "",
		"/dev/alias":  "format vhdx on the volume itself",
		"/nfs/a":      "it lies on no disk of this host",
		"/local/disk": "no array answers for that",
	} {
		w := onHostVolume(newWorld(t, at(online("db"), path, "vhdx")))
		e := w.engine(journal.NewMemory())
		vs, err := e.Explain(t.Context(), "db")
		if err != nil {
			t.Fatal(err)
		}
		if v := vs[0]; (v.Class == orchestrator.NotPossible) != (want != "") || !strings.Contains(v.Reason, want) {
			t.Errorf("%s: %s, %s; want %q", path, v.Class, v.Reason, want)
		}
		e.Close()
	}
}

var _ engine.HostVolumes = (*fakeFiles)(nil)
