package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
)

// at is the fakes' moment; seconds later in it.
func at(ms int) time.Time {
	return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(ms) * time.Millisecond)
}

// fakeService is a control plane with a fixed world: VM db snapshots itself,
// legacy is paused, raw can't be backed up. VMs named after an error answer
// with it.
type fakeService struct {
	mu       sync.Mutex
	sets     []orchestrator.Set
	released []orchestrator.SetID
}

// faults maps VM names to the error that asking for a set of them gives.
var faults = map[string]error{
	"busy":    fmt.Errorf("volume %q: %w: snapshot set set-00000000000000ff works on it", "main/busy", orchestrator.ErrBusy),
	"timeout": fmt.Errorf("VM %q: its host: %w", "timeout", orchestrator.ErrTimeout),
	"forbid":  fmt.Errorf("VM %q: %w: the journal can't be written", "forbid", orchestrator.ErrNotPermitted),
	"full":    driver.Errorf(driver.NoSpace, "array %q: pool %q is full", "main", "a"),
	"away":    driver.Errorf(driver.Unreachable, "array %q: no answer", "main"),
	"broken":  fmt.Errorf("disk on fire"),
}

func (f *fakeService) VMs(context.Context) ([]orchestrator.VM, error) {
	return []orchestrator.VM{
		{Name: "db", Writer: "qemu", Power: orchestrator.Running,
			Disks: []orchestrator.Disk{{Device: "vda", Format: "raw", Size: 4 << 30, Cache: "none", IQN: "iqn.2026-01.test:main", Portal: "127.0.0.1:3260"}},
			Guest: orchestrator.Guest{Requester: "qemu-ga 7.2.0", CanSnapshot: true, CanFreeze: true,
				Volumes: []orchestrator.GuestVolume{{Name: "data/pg", UUID: "u-pg", Kind: "lvm-thick", Mount: "/var/lib/postgresql", Size: 2 << 30, Free: 1 << 30}},
				Writers: []orchestrator.GuestWriter{{App: "postgresql", Version: "15.6", Running: true, Volumes: []string{"data/pg"}}}}},
		{Name: "legacy", Writer: "qemu", Power: orchestrator.Running, Guest: orchestrator.Guest{Silence: "no agent"},
			Disks: []orchestrator.Disk{{Device: "sda", Format: "raw", Size: 1 << 30, Cache: "none", Path: "/dev/sdx"}}},
		{Name: "raw", Writer: "qemu", Power: orchestrator.Running, Guest: orchestrator.Guest{Silence: "no agent\x1b[2J"}},
	}, nil
}

func (f *fakeService) Explain(_ context.Context, name string) ([]orchestrator.Verdict, error) {
	all := []orchestrator.Verdict{
		{VM: "db", Class: orchestrator.NoDowntime, Best: orchestrator.LevelApplication, How: orchestrator.ByGuest, Reason: "the guest snapshots data/pg with PostgreSQL 15.6", Volumes: []string{"main/db"}},
		{VM: "legacy", Class: orchestrator.SomeDowntime, Best: orchestrator.LevelCrash, How: orchestrator.ByPause, Reason: "no guest requester answers: no agent", Volumes: []string{"main/legacy"}},
		{VM: "raw", Class: orchestrator.NotPossible, Best: orchestrator.LevelNone, Reason: "disk sda: cache mode is unsafe"},
	}
	if name == "" {
		return all, nil
	}
	i := slices.IndexFunc(all, func(v orchestrator.Verdict) bool { return v.VM == name })
	if i < 0 {
		return nil, fmt.Errorf("VM %q: %w", name, orchestrator.ErrNotFound)
	}
	return all[i : i+1], nil
}

func (f *fakeService) Create(ctx context.Context, r orchestrator.Request) (orchestrator.Set, error) {
	s := orchestrator.Set{Version: 1, State: orchestrator.StatePlanned, Request: r, Created: at(0), Updated: at(0), Attempt: 1}
	for _, vm := range r.VMs {
		if err := faults[vm]; err != nil {
			return orchestrator.Set{}, err
		}
		vs, err := f.Explain(ctx, vm)
		if err != nil {
			return orchestrator.Set{}, err
		}
		if vs[0].Best < r.Level {
			return orchestrator.Set{}, fmt.Errorf("VM %q: %w: %s asked, %s is the best there is", vm, orchestrator.ErrLevel, r.Level, vs[0].Best)
		}
		asked := r.Level
		if asked == orchestrator.LevelNone { // none in particular: the best there is
			asked = vs[0].Best
		}
		s.VMs = append(s.VMs, orchestrator.VMResult{Name: vm, Verdict: vs[0], Asked: asked,
			Disks: []orchestrator.DiskResult{{Device: "vda", Array: "main", Volume: vm}}})
	}
	if r.DryRun {
		return s, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s.ID = orchestrator.SetID(fmt.Sprintf("set-%016x", len(f.sets)+1))
	f.sets = append(f.sets, s)
	return s, nil
}

func (f *fakeService) find(id orchestrator.SetID) (*orchestrator.Set, error) {
	for i := range f.sets {
		if f.sets[i].ID == id {
			return &f.sets[i], nil
		}
	}
	return nil, fmt.Errorf("snapshot set %s: %w", id, orchestrator.ErrNotFound)
}

func (f *fakeService) Get(_ context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(id)
	if err != nil {
		return orchestrator.Set{}, err
	}
	return *s, nil
}

func (f *fakeService) List(context.Context) ([]orchestrator.Set, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sets := slices.Clone(f.sets)
	slices.Reverse(sets)
	return sets, nil
}

// Wait brings the set to its end: the note says which.
func (f *fakeService) Wait(_ context.Context, id orchestrator.SetID, watch func(orchestrator.Event)) (orchestrator.Set, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(id)
	if err != nil {
		return orchestrator.Set{}, err
	}
	for i, st := range []orchestrator.State{orchestrator.StatePlanned, orchestrator.StateGuestDone, orchestrator.StateSplit} {
		watch(orchestrator.Event{Set: id, At: at(i * 100), State: st, Text: "the set is " + string(st)})
	}
	if code, ok := strings.CutPrefix(s.Request.Note, "abort "); ok {
		s.State, s.Reason, s.Code = orchestrator.StateAborted, "it ended as "+code, orchestrator.Code(code)
		return *s, nil
	}
	switch s.Request.Note {
	case "abort":
		s.State, s.Reason = orchestrator.StateAborted, "array main did not answer"
		return *s, nil
	case "silence":
		return orchestrator.Set{}, fmt.Errorf("waiting for %s: %w", id, orchestrator.ErrTimeout)
	}
	s.State, s.Expires = orchestrator.StateReady, at(0).Add(24*time.Hour)
	for i := range s.VMs {
		v := &s.VMs[i]
		v.Reached = v.Verdict.Best
		if v.Name == "db" {
			v.Evidence = []string{"snapshot u-snap of volume data/pg found in the split, valid"}
			v.Volumes = []orchestrator.VolumeResult{{Name: "data/pg", UUID: "u-pg", Snapshot: "u-snap", Kind: "lvm-thick", Found: true, Reached: v.Reached, Began: at(120), Ended: at(225)}}
			v.Writers = []orchestrator.WriterResult{{App: "postgresql", Version: "15.6", State: "done", Method: "checkpoint", Volumes: []string{"data/pg"}}}
			if s.Request.Note == "short" {
				v.Reached, v.Why = orchestrator.LevelCrash, "the snapshot of data/pg overflowed"
				v.Asked = orchestrator.LevelApplication
			}
		} else {
			v.Why = v.Verdict.Reason
			v.Pause = &orchestrator.Pause{From: at(380), For: 12345 * time.Microsecond}
		}
		split := "split-" + v.Name
		s.Splits = append(s.Splits, orchestrator.Split{Array: "main", ID: split, Volume: v.Name, Size: 4 << 30, Method: "mirror-split", State: "Split", At: at(390), Held: 41 * time.Microsecond, Reached: v.Reached})
		l := orchestrator.LUN{Name: string(id) + "/" + v.Name + "/vda", Split: split, Clean: v.Name == "db",
			Socket: "/run/cleave/views/" + string(id) + ".sock", Export: v.Name + "/vda"}
		if len(s.Request.Initiators) > 0 {
			l.Portals, l.IQN, l.LUN = []string{"127.0.0.1:3260"}, "iqn.2026-01.test:main", uint64(i+8)
		}
		s.LUNs = append(s.LUNs, l)
	}
	s.Steps = []orchestrator.Step{
		{Name: "plan", Clock: "host", From: at(0), To: at(15)},
		{Name: "guest step", VM: "db", Clock: "host", From: at(100), To: at(330)},
		{Name: "snapshot of data/pg", VM: "db", Clock: "guest", From: at(120), To: at(225)},
		{Name: "split", Clock: "host", From: at(389), To: at(391)},
	}
	watch(orchestrator.Event{Set: id, At: at(500), State: s.State, Text: "ready"})
	return *s, nil
}

func (f *fakeService) Expose(_ context.Context, id orchestrator.SetID, r orchestrator.ExposeRequest) (orchestrator.Set, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(id)
	if err != nil {
		return orchestrator.Set{}, err
	}
	for i := range s.LUNs {
		s.LUNs[i].Portals, s.LUNs[i].IQN, s.LUNs[i].LUN, s.LUNs[i].Writable = []string{"127.0.0.1:3260"}, "iqn.2026-01.test:main", uint64(i+8), r.Writable
	}
	return *s, nil
}

func (f *fakeService) Unexpose(_ context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(id)
	if err != nil {
		return orchestrator.Set{}, err
	}
	for i := range s.LUNs {
		s.LUNs[i].Portals = nil
	}
	return *s, nil
}

func (f *fakeService) Release(_ context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(id)
	if err != nil {
		return orchestrator.Set{}, err
	}
	if s.Request.Note == "stuck" {
		return *s, fmt.Errorf("giving back %s: %w", id, orchestrator.ErrUnreachable)
	}
	s.State = orchestrator.StateReleased
	f.released = append(f.released, id)
	return *s, nil
}

// Recover makes the splits of VMs with clean LUNs clean themselves; of a set with
// the note "in use" it can't be ended.
func (f *fakeService) Recover(_ context.Context, id orchestrator.SetID, r orchestrator.RecoverRequest) (orchestrator.Set, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(id)
	if err != nil {
		return orchestrator.Set{}, err
	}
	for _, l := range s.LUNs {
		if len(l.Portals) > 0 {
			return *s, fmt.Errorf("snapshot set %s: %w: LUN %q is exposed", id, orchestrator.ErrBusy, l.Name)
		}
	}
	if s.Request.Note == "two snapshots" && !r.DiscardOthers {
		return *s, fmt.Errorf("%w: data/pg has other snapshots", orchestrator.ErrUsage)
	}
	x := &s.Splits[0]
	x.Recovery, x.Rewritten = orchestrator.RecoveringInPlace, []orchestrator.Region{{Offset: 4096, Length: 4096}, {Offset: 1 << 20, Length: 1 << 20}}
	if s.Request.Note == "in use" {
		s.State = orchestrator.StateRecovering
		return *s, fmt.Errorf("VM %q: recovering its disks in place: recovery worker died", "db")
	}
	x.Recovery, x.State, s.State = orchestrator.RecoveredInPlace, string(driver.Skewed), orchestrator.StateReady
	return *s, nil
}

// Revert ends the set; one with the note "in use" gets no further than the first
// split.
func (f *fakeService) Revert(_ context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return f.turn(id, orchestrator.StateReverting, func(s *orchestrator.Split) { s.SafePoint = "safe-" + s.Volume })
}

func (f *fakeService) Break(_ context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return f.turn(id, orchestrator.StateBreaking, func(s *orchestrator.Split) { s.Became = string(id) + "-" + s.Volume + "-vda" })
}

func (f *fakeService) turn(id orchestrator.SetID, during orchestrator.State, do func(*orchestrator.Split)) (orchestrator.Set, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(id)
	if err != nil {
		return orchestrator.Set{}, err
	}
	s.LUNs = nil
	for i := range s.Splits {
		if s.Request.Note == "in use" && i > 0 {
			s.State = during
			return *s, driver.Errorf(driver.Busy, "array %q: volume %q is in use", "main", s.Splits[i].Volume)
		}
		do(&s.Splits[i])
	}
	s.State = orchestrator.StateReleased
	return *s, nil
}

func (f *fakeService) Diff(_ context.Context, id, from orchestrator.SetID) (orchestrator.Diff, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.find(id)
	if err != nil {
		return orchestrator.Diff{}, err
	}
	d := orchestrator.Diff{Version: 1, From: id}
	if from != "" {
		d.From, d.To = from, id
	}
	for _, x := range s.Splits {
		d.Disks = append(d.Disks, orchestrator.DiskDiff{VM: x.Volume, Device: "vda", Array: x.Array, Volume: x.Volume,
			Granularity: 1 << 16, Total: 3 << 16, Regions: []orchestrator.Region{{Offset: 0, Length: 1 << 16}, {Offset: 1 << 30, Length: 2 << 16}}})
	}
	return d, nil
}

// fakeStorage is a data plane in memory.
type fakeStorage struct {
	mu         sync.Mutex
	volumes    []Volume
	initiators []Initiator
	secrets    map[string]string
	splits     []Split
	masks      []Mask
}

func (f *fakeStorage) Close() error { return nil }

func (f *fakeStorage) volume(name string, change func(*Volume) error) (Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.volumes {
		if f.volumes[i].Name == name {
			err := change(&f.volumes[i])
			return f.volumes[i], err
		}
	}
	return Volume{}, driver.Errorf(driver.NotFound, "volume %q: there is none of that name", name)
}

func (f *fakeStorage) Volumes(context.Context) ([]Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.volumes), nil
}

func (f *fakeStorage) SetSnapshotPolicy(_ context.Context, name, snapshots string) (Volume, error) {
	return f.volume(name, func(v *Volume) error {
		v.Policy = snapshots
		return nil
	})
}

func (f *fakeStorage) CreateVolume(_ context.Context, name string, size int64, pools []string, snapshots string) (Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := Volume{Name: name, ID: "id-" + name, Size: size, State: string(driver.Synchronized), Wanted: len(pools), Policy: snapshots, NAA: "naa.3000000000000001", Created: at(0)}
	for i, p := range pools {
		v.Mirrors = append(v.Mirrors, Mirror{ID: fmt.Sprintf("m%d", i+1), Pool: p, File: "/srv/" + p + "/" + name, State: v.State})
	}
	f.volumes = append(f.volumes, v)
	return v, nil
}

func (f *fakeStorage) ResizeVolume(_ context.Context, name string, size int64) (Volume, error) {
	return f.volume(name, func(v *Volume) error {
		if size < v.Size {
			return driver.Errorf(driver.InvalidRequest, "volume %q: it can't shrink from %d to %d bytes", name, v.Size, size)
		}
		v.Size = size
		return nil
	})
}

func (f *fakeStorage) DeleteVolume(_ context.Context, name string) error {
	_, err := f.volume(name, func(v *Volume) error {
		if v.LUN != nil {
			return driver.Errorf(driver.Busy, "volume %q: it is exposed", name)
		}
		return nil
	})
	if err == nil {
		f.volumes = slices.DeleteFunc(f.volumes, func(v Volume) bool { return v.Name == name })
	}
	return err
}

func (f *fakeStorage) ExposeVolume(_ context.Context, name string, initiators []string, readOnly bool) (Volume, error) {
	return f.volume(name, func(v *Volume) error {
		v.LUN = &Exposed{IQN: "iqn.2026-01.test:main", LUN: 1, Portals: []string{"127.0.0.1:3260"}, Initiators: initiators, ReadOnly: readOnly}
		return nil
	})
}

func (f *fakeStorage) UnexposeVolume(_ context.Context, name string) error {
	_, err := f.volume(name, func(v *Volume) error { v.LUN = nil; return nil })
	return err
}

func (f *fakeStorage) StartScrub(_ context.Context, name string, repair bool) (Volume, error) {
	return f.volume(name, func(v *Volume) error {
		v.Scrub = &Scrub{Begun: at(0), Repair: repair, Size: v.Size, Done: v.Size / 4, Mirrors: len(v.Mirrors), Remaining: time.Minute}
		return nil
	})
}

// WaitScrub finds a difference on every volume of which three mirrors know what
// is right.
func (f *fakeStorage) WaitScrub(_ context.Context, name string) (Scrub, error) {
	v, err := f.volume(name, func(v *Volume) error {
		s := v.Scrub
		s.Ended, s.Done, s.Compared, s.Remaining, s.Places, s.Differing = at(0), v.Size, v.Size, 0, 1, 4096
		d := ScrubDifference{Off: 8192, Len: 4096, Repaired: s.Repair && len(v.Mirrors) > 2}
		if d.Repaired {
			s.Repaired = d.Len
		}
		for i, m := range v.Mirrors {
			d.Mirrors = append(d.Mirrors, ScrubMirror{ID: m.ID, Pool: m.Pool, SHA256: fmt.Sprint("sum", min(i, 1))})
		}
		s.Differences = []ScrubDifference{d}
		return nil
	})
	if err != nil {
		return Scrub{}, err
	}
	return *v.Scrub, nil
}

func (f *fakeStorage) StopScrub(_ context.Context, name string) error {
	_, err := f.volume(name, func(v *Volume) error { v.Scrub = nil; return nil })
	return err
}

func (f *fakeStorage) Initiators(context.Context) ([]Initiator, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.initiators), nil
}

func (f *fakeStorage) AddInitiator(_ context.Context, i Initiator, secretFile, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.initiators = append(f.initiators, i)
	if f.secrets == nil {
		f.secrets = map[string]string{}
	}
	f.secrets[i.IQN] = filepath.Base(secretFile)
	return nil
}

func (f *fakeStorage) RemoveInitiator(_ context.Context, iqn string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.initiators = slices.DeleteFunc(f.initiators, func(i Initiator) bool { return i.IQN == iqn })
	return nil
}

func (f *fakeStorage) Pools(context.Context) ([]Pool, error) {
	return []Pool{
		{Name: "a", Dir: "/srv/a", Size: 100 << 30, Free: 10 << 30},
		{Name: "b", Dir: "/srv/b", Size: 100 << 30, Free: 2 << 30},
		{Name: "c", Dir: "/srv/c", Size: 100 << 30, Free: 90 << 30},
	}, nil
}

func (f *fakeStorage) Status(ctx context.Context) (ArrayStatus, error) {
	pools, err := f.Pools(ctx)
	return ArrayStatus{
		IQN: "iqn.2026-01.test:main", PID: 1, Started: time.Unix(0, 0), Pools: pools, Problems: []string{"pool b: little room is left"},
		Portals:  []TargetPortal{{Address: "127.0.0.1:3260", Group: 1}, {Address: "127.0.0.1:3261", Group: 2}},
		Sessions: []TargetSession{{Initiator: "iqn.2026-01.test:h", From: "127.0.0.1:40000", Since: time.Unix(0, 0)}},
	}, err
}

func (f *fakeStorage) Events(_ context.Context, q EventQuery) ([]Event, error) {
	var out []Event
	for _, e := range []Event{
		{Seq: 3, At: time.Unix(60, 0), Kind: "pool-low", Severity: "warning", Pool: "b", Text: "pool b: little room is left"},
		{Seq: 4, At: time.Unix(120, 0), Kind: "resync-done", Severity: "info", Volume: "db", Text: "mirror m1 is in sync"},
	} {
		if e.Seq > q.After && !e.At.Before(q.Since) && (q.Volume == "" || q.Volume == e.Volume) && (q.Severity == "" || q.Severity == e.Severity) {
			out = append(out, e)
		}
	}
	return out, nil
}

func (f *fakeStorage) Masks(context.Context) ([]Mask, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.masks), nil
}

func (f *fakeStorage) SetMask(_ context.Context, of, initiator, access string) error {
	if _, err := f.volume(of, func(*Volume) error { return nil }); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.masks = slices.DeleteFunc(f.masks, func(m Mask) bool { return m.Volume == of && m.Initiator == initiator })
	if access != "none" {
		f.masks = append(f.masks, Mask{Initiator: initiator, LUN: 1, Access: access, Kind: "volume", Of: "v-" + of, Volume: of})
	}
	return nil
}
