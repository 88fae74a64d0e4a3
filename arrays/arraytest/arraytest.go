// Package arraytest is the suite that every provider passes.
//
// A provider's test opens an array with a few volumes and hands it over:
//
//	func TestProvider(t *testing.T) {
//		arraytest.Run(t, func(t *testing.T) *arraytest.Lab { ... })
//	}
//
// The suite repeats every call, ends contexts before and in the middle of
// calls, restarts the provider between calls, switches its options off, and
// checks by Streams that a group's splits hold a prefix of what was written,
// under full load.
package arraytest

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Lab is an array under test, with volumes that nothing else uses.
type Lab struct {
	// Driver is the provider. Close of the lab is the test's (t.Cleanup).
	Driver driver.Driver
	// Volumes can be split: at least 1, better 8 or more. Each has at least
	// MinVolume bytes.
	Volumes []Volume
	// Disk is how a hypervisor would know the first volume.
	Disk driver.Disk
	// Restart ends the provider and starts it again on the same array; nil if
	// that can't be done. Devices of before are of no use afterwards: Volumes
	// is set anew.
	Restart func(t *testing.T)
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

// Run runs the suite. open is called for each part.
func Run(t *testing.T, open func(t *testing.T) *Lab) {
	parts := []struct {
		name string
		fn   func(*testing.T, *Lab)
	}{
		{"Resolve", testResolve},
		{"RepeatedCalls", testRepeated},
		{"EndedContexts", testContexts},
		{"Restart", testRestart},
		{"Group", testGroup},
		{"GivenBackAndSplitAgain", testAgain},
		{"Expose", testExpose},
		{"WithoutOptions", testWithout},
		{"WriteOrder", testOrder},
	}
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) { p.fn(t, open(t)) })
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

func testResolve(t *testing.T, l *Lab) {
	a := l.array()
	for range 3 {
		v, err := a.Resolve(t.Context(), l.Disk)
		if err != nil || v.ID != l.Volumes[0].ID || v.Size < MinVolume {
			t.Fatalf("Resolve: %+v, %v; want volume %q", v, err, l.Volumes[0].ID)
		}
	}
	_, err := a.Resolve(t.Context(), driver.Disk{Identity: lun.NewIdentity()})
	wantKind(t, "Resolve of another's disk", err, driver.NotMine)
	_, err = a.Resolve(t.Context(), driver.Disk{Path: "/dev/nowhere-at-all"})
	wantKind(t, "Resolve of an unknown path", err, driver.NotMine)
}

func testRepeated(t *testing.T, l *Lab) {
	a, vs := l.array(), l.ids(1)
	found(t, a, "repeated", nil)
	prepare(t, a, "repeated", vs)
	first := split(t, a, "repeated", vs)
	for range 9 {
		if again := split(t, a, "repeated", vs); again[0].ID != first[0].ID || again[0].Identity != first[0].Identity {
			t.Fatalf("Split with the same tag: %+v, then %+v", first[0], again[0])
		}
		found(t, a, "repeated", first)
	}
	if v, err := a.Resolve(t.Context(), l.Disk); err == nil && !v.Identity.IsZero() && v.Identity == first[0].Identity {
		t.Error("the snapshot has its volume's identity")
	}
	prepare(t, a, "repeated", vs) // of a set that is split already
	for range 10 {
		if err := a.Delete(t.Context(), first[0].ID); err != nil {
			t.Fatalf("Delete: %v", err)
		}
	}
	found(t, a, "repeated", nil)
	wantKind(t, "Split of an unknown volume", a.Prepare(t.Context(), []driver.VolumeID{"no-such-volume"}, driver.PrepareOptions{Tag: "x"}), driver.NotFound)
	_, err := a.Split(t.Context(), "x", []driver.VolumeID{"no-such-volume"})
	wantKind(t, "Split of an unknown volume", err, driver.NotFound)
	if err := a.Delete(t.Context(), "no-such-snapshot"); err != nil {
		t.Errorf("Delete of what is not there: %v", err)
	}
}

// testContexts ends contexts before and within calls. Whatever a call said,
// Lookup then tells the truth, and a repetition comes to a good end.
func testContexts(t *testing.T, l *Lab) {
	a, vs := l.array(), l.ids(1)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Lookup(ended, "ended"); err != nil {
		wantKind(t, "Lookup with an ended context", err, driver.Unreachable, driver.Unknown)
	}
	for i := range 8 {
		tag := driver.Tag(fmt.Sprintf("ended-%d", i))
		prepare(t, a, tag, vs)
		ctx, cancel := ended, context.CancelFunc(func() {})
		if i > 0 {
			ctx, cancel = context.WithTimeout(t.Context(), time.Duration(i*i)*200*time.Microsecond)
		}
		ss, err := a.Split(ctx, tag, vs)
		cancel()
		if err != nil {
			wantKind(t, "Split whose context ended", err, driver.OutcomeUnknown, driver.Unreachable)
			if ss, err = a.Lookup(t.Context(), tag); err != nil {
				t.Fatal(err)
			}
		}
		again := split(t, a, tag, vs)
		if len(ss) == 1 && ss[0].ID != again[0].ID {
			t.Errorf("after an ended context Lookup gave %s and Split %s", ss[0].ID, again[0].ID)
		}
		found(t, a, tag, again)
		if err := a.Delete(ended, again[0].ID); err != nil {
			wantKind(t, "Delete with an ended context", err, driver.OutcomeUnknown, driver.Unreachable)
		}
		if err := a.Delete(t.Context(), again[0].ID); err != nil {
			t.Fatal(err)
		}
		found(t, a, tag, nil)
	}
}

func testRestart(t *testing.T, l *Lab) {
	if l.Restart == nil {
		t.Skip("the lab can't restart the provider")
	}
	vs := l.ids(1)
	a := l.array()
	prepare(t, a, "restart", vs)
	l.Restart(t)
	a = l.array()
	ss := split(t, a, "restart", vs) // what Prepare did outlives a restart
	l.Restart(t)
	a = l.array()
	found(t, a, "restart", ss)
	if again := split(t, a, "restart", vs); again[0].ID != ss[0].ID {
		t.Error("after a restart Split with the same tag made another snapshot")
	}
	giveBack(t, a, ss)
	l.Restart(t)
	a = l.array()
	giveBack(t, a, ss)
	found(t, a, "restart", nil)
	prepare(t, a, "restart-2", vs)
}

func testGroup(t *testing.T, l *Lab) {
	a := l.array()
	if !a.CanSplitGroup() || len(l.Volumes) < 2 {
		t.Skip("no group splits here")
	}
	vs := l.ids(len(l.Volumes))
	prepare(t, a, "group", vs)
	ss := split(t, a, "group", vs)
	seen := map[lun.Identity]bool{}
	for _, s := range ss {
		if !s.Identity.IsZero() && seen[s.Identity] {
			t.Errorf("identity %s occurs twice in a group", s.Identity)
		}
		seen[s.Identity] = true
	}
	found(t, a, "group", ss)
	again := split(t, a, "group", vs)
	for i := range ss {
		if again[i].ID != ss[i].ID {
			t.Errorf("group split again: %s, then %s", ss[i].ID, again[i].ID)
		}
	}
	_, err := a.Split(t.Context(), "group", vs[:1])
	if err != nil { // one of them alone may be given or refused, never made anew
		wantKind(t, "a part of a group", err, driver.InvalidRequest)
	}
	found(t, a, "group", ss)
	giveBack(t, a, ss)

	// All or nothing: one bad volume, and none is split.
	prepare(t, a, "half", vs)
	if _, err := a.Split(t.Context(), "half", append(l.ids(len(vs)), "no-such-volume")); err == nil {
		t.Error("a group with an unknown volume was split")
	}
	found(t, a, "half", nil)
}

func testAgain(t *testing.T, l *Lab) {
	a, vs := l.array(), l.ids(1)
	dev := l.Volumes[0].Device
	for i := range 4 {
		tag := driver.Tag(fmt.Sprintf("again-%d", i))
		prepare(t, a, tag, vs)
		mark := func(b byte) {
			if _, err := dev.WriteAt(append(make([]byte, 511), b), int64(i)*(1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		mark(byte(10 + i))
		ss := split(t, a, tag, vs)
		mark(99)
		if a.CanOpen() {
			for range 2 {
				d, err := a.Open(t.Context(), ss[0].ID)
				if err != nil {
					t.Fatal(err)
				}
				var b [1]byte
				if _, err := d.ReadAt(b[:], int64(i)*(1<<20)+511); err != nil || b[0] != byte(10+i) {
					t.Errorf("round %d: the snapshot holds %d, want what was written before the split; %v", i, b[0], err)
				}
				if i > 0 {
					if _, err := d.ReadAt(b[:], int64(i-1)*(1<<20)+511); err != nil || b[0] != 99 {
						t.Errorf("round %d: the snapshot holds %d, want what was written after the last split; %v", i, b[0], err)
					}
				}
				if c, ok := d.(io.Closer); ok {
					c.Close()
				}
			}
		}
		for range 3 {
			giveBack(t, a, ss)
		}
		found(t, a, tag, nil)
	}
}

func testExpose(t *testing.T, l *Lab) {
	a, vs := l.array(), l.ids(1)
	if !a.CanExpose() {
		t.Skip("the provider makes no LUNs")
	}
	prepare(t, a, "expose", vs)
	ss := split(t, a, "expose", vs)
	id, to := ss[0].ID, []string{l.Initiator}
	if err := a.Unexpose(t.Context(), id); err != nil {
		t.Errorf("Unexpose of what is not exposed: %v", err)
	}
	_, err := a.Expose(t.Context(), id, driver.ExposeOptions{})
	wantKind(t, "Expose to nobody", err, driver.InvalidRequest)
	p, err := a.Expose(t.Context(), id, driver.ExposeOptions{Initiators: to})
	if err != nil {
		t.Fatal(err)
	}
	same := func(q driver.Path, err error) {
		t.Helper()
		if err != nil || q.IQN != p.IQN || q.LUN != p.LUN || q.Identity != p.Identity {
			t.Errorf("Expose again: %+v, %v; the first was %+v", q, err, p)
		}
	}
	same(a.Expose(t.Context(), id, driver.ExposeOptions{Initiators: to}))
	wantKind(t, "Delete of what is exposed", a.Delete(t.Context(), id), driver.Busy)
	same(a.Expose(t.Context(), id, driver.ExposeOptions{Initiators: to, Writable: true}))
	for range 3 {
		if err := a.Unexpose(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	giveBack(t, a, ss)
}

// testWithout switches options off and sees that callers get by.
func testWithout(t *testing.T, l *Lab) {
	a := l.array(arrays.SplitGroup, arrays.Expose, arrays.OpenDevice, arrays.Resync, arrays.Describe)
	vs := l.ids(2)
	if len(vs) == 2 {
		_, err := a.Split(t.Context(), "without", vs)
		wantKind(t, "a group where none can be split", err, driver.NotSupported)
	}
	prepare(t, a, "without", vs[:1])
	ss := split(t, a, "without", vs[:1])
	wantKind(t, "Resync", a.Resync(t.Context(), ss[0].ID), driver.NotSupported)
	_, err := a.Open(t.Context(), ss[0].ID)
	wantKind(t, "Open", err, driver.NotSupported)
	giveBack(t, a, ss) // by deletion
	found(t, a, "without", nil)
	if _, err := a.Describe(t.Context()); err != nil {
		t.Error(err)
	}
}

// testOrder splits groups under load and checks that they hold a prefix of what
// was written.
func testOrder(t *testing.T, l *Lab) {
	a := l.array()
	if !a.CanOpen() {
		t.Skip("snapshots can't be read without a transport")
	}
	n := l.Splits
	if n == 0 {
		n = 5
	}
	for i := range n {
		vs := l.Volumes
		if !a.CanSplitGroup() || i%3 == 2 {
			vs = vs[:1]
		}
		if err := SplitUnderLoad(t.Context(), a, driver.Tag(fmt.Sprintf("order-%d", i)), vs); err != nil {
			t.Fatal(err)
		}
	}
}

// SplitUnderLoad splits the volumes as one group while streams write to them,
// and returns an error if the snapshots hold no prefix of each stream. The
// snapshots are given back.
func SplitUnderLoad(ctx context.Context, a *arrays.Array, tag driver.Tag, vs []Volume) error {
	ids := make([]driver.VolumeID, len(vs))
	devs := make([]lun.Device, len(vs))
	for i, v := range vs {
		ids[i], devs[i] = v.ID, v.Device
	}
	if err := a.Prepare(ctx, ids, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true}); err != nil {
		return err
	}
	streams := []Stream{
		{ID: 1, Base: 0, Size: 4096, Slots: 16},
		{ID: 2, Base: 1 << 20, Size: 512, Slots: 8},
		{ID: 3, Base: 2<<20 - 1024, Size: 192 << 10, Slots: 2},
		{ID: 4, Base: 3 << 20, Size: 16 << 10, Slots: 8},
	}
	load, err := startLoad(devs, streams)
	if err != nil {
		return err
	}
	ss, err := a.Split(ctx, tag, ids)
	// Some writes after the split, which must not be in it.
	if lerr := load.stop(); err == nil {
		err = lerr
	}
	if err != nil {
		return err
	}
	var splits []io.ReaderAt
	for _, s := range ss {
		d, err := a.Open(ctx, s.ID)
		if err != nil {
			return err
		}
		splits = append(splits, d)
	}
	for i, s := range streams {
		last, cerr := s.Check(splits)
		if cerr == nil && last < load.acknowledged[i] {
			cerr = fmt.Errorf("stream %d: write %d was acknowledged before the split began, the split ends with %d", s.ID, load.acknowledged[i], last)
		}
		if cerr != nil && err == nil {
			err = fmt.Errorf("tag %q over %d volumes: %w", tag, len(vs), cerr)
		}
	}
	for i, d := range splits {
		if c, ok := d.(io.Closer); ok {
			c.Close()
		}
		if gerr := a.GiveBack(ctx, ss[i].ID); err == nil {
			err = gerr
		}
	}
	return err
}

// load is streams being written.
type load struct {
	acknowledged []uint64 // of each stream, before startLoad returned
	quit         chan struct{}
	wg           sync.WaitGroup
	mu           sync.Mutex
	err          error
}

// startLoad wipes the streams' areas, begins to write, and returns when each
// stream has gone over all volumes.
func startLoad(devs []lun.Device, streams []Stream) (*load, error) {
	l := &load{quit: make(chan struct{}), acknowledged: make([]uint64, len(streams))}
	for _, s := range streams {
		for _, d := range devs {
			if _, err := d.WriteAt(make([]byte, s.Area()), s.Base); err != nil {
				return nil, err
			}
		}
	}
	var warm sync.WaitGroup
	warm.Add(len(streams))
	for i, s := range streams {
		l.wg.Go(func() {
			buf := make([]byte, s.Size)
			warmed := false
			defer func() {
				if !warmed {
					warm.Done()
				}
			}()
			for k := uint64(1); ; k++ {
				if err := s.Write(devs, k, buf); err != nil {
					l.mu.Lock()
					l.err = err
					l.mu.Unlock()
					return
				}
				if k == uint64(len(devs)) {
					l.acknowledged[i] = k
					warmed = true
					warm.Done()
				}
				select {
				case <-l.quit:
					return
				default:
				}
			}
		})
	}
	warm.Wait()
	return l, nil
}

func (l *load) stop() error {
	close(l.quit)
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
