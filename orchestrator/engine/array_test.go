package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// fakeArray keeps splits in memory; rules say what goes wrong.
type fakeArray struct {
	t  *testing.T
	mu sync.Mutex

	volumes map[driver.VolumeID]driver.Volume
	snaps   []driver.Snapshot
	exposed map[driver.SnapshotID]driver.ExposeOptions
	armed   map[driver.Tag][]driver.VolumeID
	devices *fakeDevices
	splits  int // calls that came in

	onSplit    func()          // runs as the call comes in
	on         func(op string) // runs before and after Arm, Commit and Abort act
	refuseArm  error
	callerDead func() bool // nil: never
	loseReply  bool        // the split is made and the answer lost
	refuse     error       // the split is not made
	stuck      int         // so many deletes and resyncs fail first

	inUse   driver.VolumeID   // can't be reverted
	content map[string]string // what volumes and splits hold, by ID
	safe    []driver.Snapshot // that reverts left
	turning func()            // runs when a revert or break was done, before its answer
	alone   driver.SnapshotID // what is open for writing; one at a time is enough

	seenBy map[driver.VolumeID][]string // nil: it doesn't tell
}

func (a *fakeArray) PresentedTo(_ context.Context, v driver.VolumeID) ([]string, error) {
	if a.seenBy == nil {
		return nil, driver.Errorf(driver.NotSupported, "it is not known")
	}
	return a.seenBy[v], nil
}

func newFakeArray(t *testing.T) *fakeArray {
	return &fakeArray{
		t: t, volumes: map[driver.VolumeID]driver.Volume{}, exposed: map[driver.SnapshotID]driver.ExposeOptions{},
		armed: map[driver.Tag][]driver.VolumeID{}, on: func(string) {},
	}
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
	return a.splitLocked(tag, vs)
}

func (a *fakeArray) splitLocked(tag driver.Tag, vs []driver.VolumeID) ([]driver.Snapshot, error) {
	a.splits++
	if a.content == nil {
		a.content = map[string]string{}
	}
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
				NAA: fmt.Sprintf("naa.%s-of-%s", tag, v), Identity: lun.NewIdentity(), Method: driver.MirrorSplit, State: driver.Split, Group: string(tag), At: time.Now(),
			})
		}
		out = append(out, a.snaps[i])
		a.content[string(a.snaps[i].ID)] = "at " + string(v)
		a.content[string(v)] = "after " + string(v)
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
	a.devices.seen(a.naa(id))
	return driver.Path{Portals: []string{"127.0.0.1:3260"}, IQN: "iqn.2026-01.org.example:a", LUN: 7, Writable: o.Writable}, nil
}

func (a *fakeArray) Unexpose(_ context.Context, id driver.SnapshotID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, up := a.exposed[id]; up {
		if err := a.devices.mayGo(a.naa(id)); err != nil {
			return err
		}
	}
	delete(a.exposed, id)
	return nil
}

// naa is a split's name; a.mu is held.
func (a *fakeArray) naa(id driver.SnapshotID) string {
	i := slices.IndexFunc(a.snaps, func(s driver.Snapshot) bool { return s.ID == id })
	return a.snaps[i].NAA
}

// Rewrite opens a split for writing.
func (a *fakeArray) Rewrite(_ context.Context, id driver.SnapshotID) (lun.Device, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.snaps, func(s driver.Snapshot) bool { return s.ID == id })
	switch _, out := a.exposed[id]; {
	case i < 0:
		return nil, driver.Errorf(driver.NotFound, "no split %q", id)
	case out || a.alone == id || a.snaps[i].Volume == a.inUse:
		return nil, driver.Errorf(driver.Busy, "split %q is in use", id)
	}
	a.alone = id
	return &rewritten{a: a, id: id}, nil
}

// rewritten is a split that is open for writing. What is written to it is words.
type rewritten struct {
	blank
	a  *fakeArray
	id driver.SnapshotID
}

func (d *rewritten) WriteAt(p []byte, _ int64) (int, error) {
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	d.a.content[string(d.id)] = string(p)
	return len(p), nil
}

func (d *rewritten) Close() error {
	d.a.mu.Lock()
	defer d.a.mu.Unlock()
	d.a.alone = ""
	return nil
}

// Revert puts the volume back, and answers the same when asked again.
func (a *fakeArray) Revert(_ context.Context, id driver.SnapshotID) (driver.Snapshot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	safeID := "safe-" + id
	if i := slices.IndexFunc(a.safe, func(s driver.Snapshot) bool { return s.ID == safeID }); i >= 0 {
		return a.safe[i], nil
	}
	i := slices.IndexFunc(a.snaps, func(s driver.Snapshot) bool { return s.ID == id })
	switch _, out := a.exposed[id]; {
	case i < 0:
		return driver.Snapshot{}, driver.Errorf(driver.NotFound, "no split %q", id)
	case out || a.snaps[i].Volume == a.inUse:
		return driver.Snapshot{}, driver.Errorf(driver.Busy, "volume %q is in use", a.snaps[i].Volume)
	}
	s := a.snaps[i]
	a.snaps = slices.Delete(a.snaps, i, i+1)
	a.content[string(safeID)], a.content[string(s.Volume)] = a.content[string(s.Volume)], a.content[string(id)]
	delete(a.content, string(id))
	s.ID, s.Tag, s.Identity = safeID, driver.Tag(safeID), lun.NewIdentity()
	a.safe = append(a.safe, s)
	if a.turning != nil {
		a.turning()
	}
	return s, nil
}

// Break makes the split a volume, and answers the same when asked again.
func (a *fakeArray) Break(_ context.Context, id driver.SnapshotID, name string) (driver.Volume, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.snaps, func(s driver.Snapshot) bool { return s.ID == id })
	v, done := a.volumes[driver.VolumeID(name)]
	switch _, out := a.exposed[id]; {
	case i < 0 && done:
		return v, nil
	case i < 0:
		return v, driver.Errorf(driver.NotFound, "no split %q", id)
	case done:
		return v, driver.Errorf(driver.InvalidRequest, "there is a volume %q", name)
	case out || a.snaps[i].Volume == a.inUse:
		return v, driver.Errorf(driver.Busy, "split %q is in use", id)
	}
	v = driver.Volume{ID: driver.VolumeID(name), Size: a.snaps[i].Size, Identity: a.snaps[i].Identity}
	a.volumes[v.ID], a.content[name] = v, a.content[string(id)]
	a.snaps = slices.Delete(a.snaps, i, i+1)
	if a.turning != nil {
		a.turning()
	}
	return v, nil
}

// Changes are told by what was asked.
func (a *fakeArray) Changes(_ context.Context, v driver.VolumeID, from, to driver.SnapshotID) (driver.Changes, error) {
	n := int64(64 << 10)
	if to == "" {
		n *= 2
	}
	return driver.Changes{Granularity: 64 << 10, Regions: []lun.Extent{{Off: 128 << 10, Len: n}}}, nil
}

// armer is a fakeArray that splits in two steps.
type armer struct{ *fakeArray }

func (a armer) Arm(_ context.Context, tag driver.Tag, vs []driver.VolumeID, _ time.Duration) error {
	a.on("before arm")
	defer a.on("after arm")
	a.lockFor()
	defer a.mu.Unlock()
	if a.refuseArm != nil {
		return a.refuseArm
	}
	a.fakeArray.armed[tag] = vs
	return nil
}

func (a armer) Commit(_ context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	a.on("before commit")
	defer a.on("after commit")
	if a.onSplit != nil {
		a.onSplit()
	}
	a.lockFor()
	defer a.mu.Unlock()
	vs := a.fakeArray.armed[tag]
	delete(a.fakeArray.armed, tag)
	if vs == nil {
		return nil, driver.Errorf(driver.NotArmed, "tag %q is not armed", tag)
	}
	return a.splitLocked(tag, vs)
}

// lockFor locks the array for a caller that is not dead: a call of one that is
// never came.
func (a armer) lockFor() {
	a.mu.Lock()
	if a.callerDead != nil && a.callerDead() {
		a.mu.Unlock()
		select {}
	}
}

func (a armer) Abort(_ context.Context, tag driver.Tag) error {
	if ss, _ := a.Lookup(context.Background(), tag); len(ss) > 0 {
		return driver.Errorf(driver.InvalidRequest, "tag %q is split", tag)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.fakeArray.armed, tag)
	return nil
}
