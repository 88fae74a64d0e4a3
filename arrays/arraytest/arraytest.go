// Package arraytest is the suite that every provider passes.
//
// A provider's test opens an array with a few volumes and hands it over:
//
//	func TestProvider(t *testing.T) {
//		arraytest.Run(t, func(t *testing.T) *arraytest.Lab { ... })
//	}
//
// The suite makes every call twice and more, ends contexts before and in the
// middle of calls, loses requests and replies (Lossy), restarts the provider
// between calls, switches its options off, compares what is said to have
// changed with what did, and checks by Streams that a group's splits hold a
// prefix of what was written, under full load. A provider that splits one
// volume after the other (Sequential) is its control, which has to be caught.
//
// What belongs to an option that the provider doesn't have is not run.
package arraytest

import (
	"testing"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Lab is an array under test, with volumes that nothing else uses.
type Lab struct {
	// Driver is the provider. Close of the lab is the test's (t.Cleanup).
	Driver driver.Driver
	// Volumes can be split: at least 1, better 8 or more. Each has at least
	// MinVolume bytes. Where an array can keep several splits of a volume, it
	// should of the first.
	Volumes []Volume
	// Disk is how a hypervisor would know the first volume.
	Disk driver.Disk
	// Restart ends the provider and starts it again on the same array; nil if
	// that can't be done. Devices of before are of no use afterwards: Volumes
	// is set anew.
	Restart func(t *testing.T)
	// Attach opens a volume as production does, also one that was not in
	// Volumes before; what it opens is used until Detach, a Restart or the end
	// of the lab, longer than t. Detach ends every use. Both are nil if that
	// can't be done while a test runs.
	Attach func(t *testing.T, v driver.VolumeID) lun.Device
	Detach func(t *testing.T, v driver.VolumeID)
	// Initiator is an IQN that snapshots may be exposed to. It is used if the
	// provider is an Exposer.
	Initiator string
	// Splits is how often groups are split under load; 0 is a short run.
	Splits int
}

// MinVolume is the least size of a lab's volumes, in bytes.
const MinVolume = 4 << 20

// Volume is a volume and how production writes to it.
type Volume struct {
	ID     driver.VolumeID
	Device lun.Device
}

// part is one test of the suite. It is run where can is nil or says so.
type part struct {
	name string
	can  func(a *arrays.Array, l *Lab, d driver.Description) bool
	fn   func(*testing.T, *Lab)
}

// Run runs the suite. open is called for each part.
func Run(t *testing.T, open func(t *testing.T) *Lab) {
	var l *Lab
	var d driver.Description
	t.Run("Describe", func(t *testing.T) {
		l = open(t)
		d = testDescribe(t, l)
	})
	if t.Failed() {
		return
	}
	a := l.array()
	parts := []part{
		{"Check", nil, testCheck},
		{"PresentedTo", nil, testPresented},
		{"Resolve", nil, testResolve},
		{"RepeatedCalls", nil, testRepeated},
		{"Group", canGroup, testGroup},
		{"GivenBackAndSplitAgain", nil, testAgain},
		{"Arm", canArm, testArm},
		{"ArmTimesOut", canArm, testArmTimesOut},
		{"Expose", canExpose, testExpose},
		{"Rewrite", canRewrite, testRewrite},
		{"Revert", canRevert, testRevert},
		{"Break", canBreak, testBreak},
		{"Changes", canChanges, testChanges},
		{"WithoutOptions", nil, testWithout},
		{"WriteOrder", canOpen, testOrder},
		{"WriteOrderArmed", func(a *arrays.Array, l *Lab, d driver.Description) bool { return canOpen(a, l, d) && canArm(a, l, d) }, testOrderArmed},
		{"WriteOrderControl", func(a *arrays.Array, l *Lab, d driver.Description) bool {
			return canOpen(a, l, d) && len(l.Volumes) > 1
		}, testControl},
		{"Life/Split", nil, life(lifeOfASplit)},
		{"Life/Delete", nil, life(lifeToDelete)},
		{"Life/Arm", canArm, life(lifeArmed)},
		{"Life/Expose", canExpose, life(lifeExposed)},
		{"Life/Revert", canRevert, life(lifeReverted)},
		{"Life/Break", canBreak, life(lifeBrokenOff)},
	}
	for _, p := range parts {
		if p.can == nil || p.can(a, l, d) {
			t.Run(p.name, func(t *testing.T) { p.fn(t, open(t)) })
		}
	}
}

func canGroup(a *arrays.Array, l *Lab, _ driver.Description) bool {
	return a.CanSplitGroup() && len(l.Volumes) > 1
}
func canOpen(a *arrays.Array, _ *Lab, _ driver.Description) bool   { return a.CanOpen() }
func canArm(_ *arrays.Array, _ *Lab, d driver.Description) bool    { return d.Arm }
func canExpose(a *arrays.Array, _ *Lab, _ driver.Description) bool { return a.CanExpose() }
func canRevert(_ *arrays.Array, l *Lab, d driver.Description) bool {
	return d.Revert && l.Attach != nil && l.Detach != nil
}
func canRewrite(a *arrays.Array, _ *Lab, d driver.Description) bool { return d.Rewrite && a.CanOpen() }
func canBreak(_ *arrays.Array, _ *Lab, d driver.Description) bool   { return d.Break }
func canChanges(a *arrays.Array, _ *Lab, d driver.Description) bool {
	return d.Changes && a.CanOpen()
}

// testDescribe checks that the array claims nothing that it has no option for.
func testDescribe(t *testing.T, l *Lab) driver.Description {
	d, err := l.array().Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d.Provider == "" {
		t.Error("the provider has no name")
	}
	bare, err := l.array(arrays.Capabilities()...).Describe(t.Context())
	if err != nil || bare.GroupOrdered || bare.Resync || bare.Rewrite || bare.Arm || bare.Revert || bare.Break || bare.Changes {
		t.Errorf("with all options switched off: %+v, %v", bare, err)
	}
	return d
}

// testCheck checks that what an operator is told before a set makes sense, for
// providers that tell it.
func testCheck(t *testing.T, l *Lab) {
	c, ok := l.Driver.(driver.Checker)
	if !ok {
		return
	}
	for _, next := range [][]driver.VolumeID{nil, l.ids(1), l.ids(9)} {
		fs, err := c.Check(t.Context(), next)
		if err != nil {
			t.Fatalf("for %d volumes: %v", len(next), err)
		}
		for _, f := range fs {
			t.Logf("%d volumes: %s %s: %s: %s", len(next), f.Area, f.Check, f.Result, f.Detail)
			if f.Area == "" || f.Check == "" || f.Detail == "" || f.Result == "" || f.Result == driver.Failed && f.Try == "" {
				t.Errorf("for %d volumes: a finding without a word: %+v", len(next), f)
			}
		}
	}
}

// testPresented checks that who sees a volume is told, or not known, for providers
// that tell it.
func testPresented(t *testing.T, l *Lab) {
	if _, ok := l.Driver.(driver.Presenter); !ok {
		return
	}
	for _, v := range l.ids(len(l.Volumes)) {
		names, err := l.array().PresentedTo(t.Context(), v)
		if err != nil && arrays.KindOf(err) != driver.NotSupported {
			t.Errorf("volume %s: %v", v, err)
		}
		t.Logf("volume %s: %q, %v", v, names, err)
	}
}

func (l *Lab) array(without ...arrays.Capability) *arrays.Array {
	return arrays.New("lab", l.Driver, arrays.Options{Without: without})
}

func (l *Lab) ids(n int) []driver.VolumeID {
	ids := make([]driver.VolumeID, min(n, len(l.Volumes)))
	for i := range ids {
		ids[i] = l.Volumes[i].ID
	}
	return ids
}

// group is as many of the volumes as can be split at once.
func (l *Lab) group() []driver.VolumeID {
	if l.array().CanSplitGroup() {
		return l.ids(len(l.Volumes))
	}
	return l.ids(1)
}

func prepare(t *testing.T, a *arrays.Array, tag driver.Tag, vs []driver.VolumeID) {
	t.Helper()
	o := driver.PrepareOptions{Tag: tag, AllowUnmirrored: true}
	for range 2 {
		if err := a.Prepare(t.Context(), vs, o); err != nil {
			t.Fatalf("Prepare: %v", err)
		}
	}
}

func split(t *testing.T, a *arrays.Array, tag driver.Tag, vs []driver.VolumeID) []driver.Snapshot {
	t.Helper()
	ss, err := a.Split(t.Context(), tag, vs)
	if err != nil {
		t.Fatalf("Split: %v", err)
	}
	return ss
}

func wantKind(t *testing.T, what string, err error, kinds ...driver.Kind) {
	t.Helper()
	for _, k := range kinds {
		if err != nil && arrays.KindOf(err) == k {
			return
		}
	}
	t.Errorf("%s: error %v is of kind %v, want one of %v", what, err, arrays.KindOf(err), kinds)
}

// found checks that Lookup gives exactly the snapshots ss.
func found(t *testing.T, a *arrays.Array, tag driver.Tag, ss []driver.Snapshot) {
	t.Helper()
	got, err := a.Lookup(t.Context(), tag)
	if err != nil {
		t.Fatalf("Lookup: %v", err)
	}
	have := map[driver.SnapshotID]driver.Snapshot{}
	for _, s := range got {
		have[s.ID] = s
	}
	for _, s := range ss {
		if g, ok := have[s.ID]; !ok || g.Volume != s.Volume || g.Identity != s.Identity || g.Group != s.Group || g.Size != s.Size {
			t.Errorf("Lookup of tag %q: %+v is not what Split gave: %+v", tag, g, s)
		}
	}
	if len(got) != len(ss) {
		t.Errorf("Lookup of tag %q: %d snapshots, want %d", tag, len(got), len(ss))
	}
}

func giveBack(t *testing.T, a *arrays.Array, ss []driver.Snapshot) {
	t.Helper()
	for _, s := range ss {
		if err := a.GiveBack(t.Context(), s.ID); err != nil {
			t.Fatalf("giving %s back: %v", s.ID, err)
		}
	}
}
