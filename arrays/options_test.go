package arrays_test

import (
	"context"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// able is a fake with the options of arming, reverting, breaking and changed
// regions, which answer what they are told to.
type able struct {
	fake
	snaps   []driver.Snapshot
	volume  driver.Volume
	changes driver.Changes
}

func (a *able) Arm(context.Context, driver.Tag, []driver.VolumeID, time.Duration) error { return nil }
func (a *able) Commit(context.Context, driver.Tag) ([]driver.Snapshot, error)           { return a.snaps, nil }
func (a *able) Abort(context.Context, driver.Tag) error                                 { return nil }

func (a *able) Revert(context.Context, driver.SnapshotID) (driver.Snapshot, error) {
	return a.snaps[0], nil
}

func (a *able) Rewrite(context.Context, driver.SnapshotID) (lun.Device, error) { return nil, nil }

func (a *able) Break(context.Context, driver.SnapshotID, string) (driver.Volume, error) {
	return a.volume, nil
}

func (a *able) Changes(context.Context, driver.VolumeID, driver.SnapshotID, driver.SnapshotID) (driver.Changes, error) {
	return a.changes, nil
}

func TestOptionsAreThereOrNot(t *testing.T) {
	ctx, vs := t.Context(), []driver.VolumeID{"v"}
	d := &able{
		snaps:   []driver.Snapshot{{ID: "1", Tag: "t", Volume: "v", Size: 1}},
		volume:  driver.Volume{ID: "new", Size: 1},
		changes: driver.Changes{Granularity: 1},
	}
	a := arrays.New("x", d, arrays.Options{})
	if !a.CanArm() || !a.CanRevert() || !a.CanBreak() || !a.CanRewrite() || !a.CanTrackChanges() || a.CanExpose() || a.CanOpen() || a.CanResync() || a.CanSplitGroup() {
		t.Error("the options are not those of the provider")
	}
	calls := func(a *arrays.Array) map[string]error {
		_, commit := a.Commit(ctx, "t")
		_, revert := a.Revert(ctx, "s")
		_, brk := a.Break(ctx, "s", "new")
		_, changes := a.Changes(ctx, "v", "s", "")
		_, rewrite := a.Rewrite(ctx, "s")
		return map[string]error{
			"arm": a.Arm(ctx, "t", vs, time.Second), "commit": commit, "abort": a.Abort(ctx, "t"),
			"revert": revert, "break": brk, "changes": changes, "rewrite": rewrite,
		}
	}
	for name, err := range calls(a) {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range calls(arrays.New("x", d, arrays.Options{Without: arrays.Capabilities()})) {
		switch name {
		case "abort": // of what can't have been armed
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case "commit":
			wantKind(t, name, err, driver.NotArmed)
		default:
			wantKind(t, name, err, driver.NotSupported)
		}
	}
}

func TestOptionsCheckArguments(t *testing.T) {
	ctx := t.Context()
	a := arrays.New("x", &able{}, arrays.Options{})
	wantKind(t, "arming nothing", a.Arm(ctx, "t", nil, time.Second), driver.InvalidRequest)
	wantKind(t, "arming for no time", a.Arm(ctx, "t", []driver.VolumeID{"v"}, 0), driver.InvalidRequest)
	wantKind(t, "aborting a bad tag", a.Abort(ctx, "T"), driver.InvalidRequest)
	_, err := a.Commit(ctx, "")
	wantKind(t, "committing no tag", err, driver.InvalidRequest)
	_, err = a.Revert(ctx, "")
	wantKind(t, "reverting to nothing", err, driver.InvalidRequest)
	for _, name := range []string{"", " x"} {
		_, err = a.Break(ctx, "s", name)
		wantKind(t, "a bad name", err, driver.InvalidRequest)
	}
	_, err = a.Changes(ctx, "", "", "s")
	wantKind(t, "changes of no volume", err, driver.InvalidRequest)
}

func TestOptionsNonsenseIsNotPassedOn(t *testing.T) {
	ctx := t.Context()
	open := func(d able) *arrays.Array { return arrays.New("x", &d, arrays.Options{}) }
	for name, ss := range map[string][]driver.Snapshot{
		"nothing":     nil,
		"another tag": {{ID: "1", Tag: "u", Volume: "v", Size: 1}},
		"one volume twice": {
			{ID: "1", Tag: "t", Volume: "v", Size: 1, Group: "g"}, {ID: "2", Tag: "t", Volume: "v", Size: 1, Group: "g"},
		},
	} {
		_, err := open(able{snaps: ss}).Commit(ctx, "t")
		wantKind(t, "commit: "+name, err, driver.OutcomeUnknown)
	}
	_, err := open(able{snaps: []driver.Snapshot{{ID: "s", Volume: "v", Size: 1}}}).Revert(ctx, "s")
	wantKind(t, "the snapshot itself as its safe point", err, driver.OutcomeUnknown)
	_, err = open(able{}).Break(ctx, "s", "new")
	wantKind(t, "no volume", err, driver.OutcomeUnknown)
	for name, c := range map[string]driver.Changes{
		"no granularity": {},
		"overlap":        {Granularity: 1, Regions: []lun.Extent{{Off: 0, Len: 8}, {Off: 7, Len: 1}}},
		"order":          {Granularity: 1, Regions: []lun.Extent{{Off: 8, Len: 8}, {Off: 0, Len: 1}}},
		"empty region":   {Granularity: 1, Regions: []lun.Extent{{Off: 8}}},
		"overflow":       {Granularity: 1, Regions: []lun.Extent{{Off: 8, Len: 1<<63 - 1}}},
		"hole":           {Granularity: 1, Regions: []lun.Extent{{Len: 8, Hole: true}}},
	} {
		if _, err := open(able{changes: c}).Changes(ctx, "v", "", "s"); err == nil {
			t.Errorf("changes: %s was passed on", name)
		}
	}
}
