package arraytest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

// lifeArmed arms and aborts, then arms and commits.
func lifeArmed(x *living) {
	vs := x.lab.group()
	x.prepare(vs)
	arm := func() {
		x.Helper()
		x.do("Arm", func(ctx context.Context, a *arrays.Array) error { return a.Arm(ctx, x.tag, vs, time.Minute) })
	}
	abort := func() {
		x.Helper()
		x.do("Abort", func(ctx context.Context, a *arrays.Array) error { return a.Abort(ctx, x.tag) })
		_, err := x.lab.array().Commit(x.Context(), x.tag)
		wantKind(x.T, "Commit of what was aborted", err, driver.NotArmed)
		x.found(nil)
	}
	abort()
	arm()
	x.found(nil)
	abort()
	arm()
	var ss []driver.Snapshot
	keep := result(x, &ss, sameSnapshots)
	x.do("Commit", func(ctx context.Context, a *arrays.Array) error {
		err := keep(a.Commit(ctx, x.tag))
		if arrays.KindOf(err) == driver.NotArmed && x.trouble.name == "Restarted" && ss == nil {
			// A restart may abort; nothing has happened then.
			found(x.T, a, x.tag, nil)
			if err := a.Arm(ctx, x.tag, vs, time.Minute); err != nil {
				return err
			}
			return keep(a.Commit(ctx, x.tag))
		}
		return err
	})
	for i, s := range ss {
		if s.Volume != vs[i] {
			x.Errorf("snapshot %d is of volume %q, want %q", i, s.Volume, vs[i])
		}
	}
	x.found(ss)
	wantKind(x.T, "Abort of what was committed", x.lab.array().Abort(x.Context(), x.tag), driver.InvalidRequest)
	if again := split(x.T, x.lab.array(), x.tag, vs); !sameSnapshots(ss, again) {
		x.Errorf("Split under the tag that was committed: %+v, want %+v", again, ss)
	}
	x.giveBack(ss)
}

// testArm looks at what an armed array does between Arm and Commit.
func testArm(t *testing.T, l *Lab) {
	a, vs := l.array(), l.group()
	_, err := a.Commit(t.Context(), "arm")
	wantKind(t, "Commit of what never was armed", err, driver.NotArmed)
	prepare(t, a, "arm", vs)
	mark := func(b byte) {
		t.Helper()
		for _, v := range l.Volumes {
			if _, err := v.Device.WriteAt(append(make([]byte, 511), b), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	mark(1)
	if err := a.Arm(t.Context(), "arm", vs, time.Minute); err != nil {
		t.Fatal(err)
	}
	mark(2) // writes go on
	found(t, a, "arm", nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	if ss, err := a.Split(ctx, "another", vs[:1]); err == nil {
		t.Errorf("a volume that is armed was split under another tag: %+v", ss)
	}
	cancel()
	ss, err := a.Commit(t.Context(), "arm")
	if err != nil {
		t.Fatal(err)
	}
	mark(3)
	found(t, a, "arm", ss)
	for i, s := range ss {
		if s.Volume != vs[i] {
			t.Errorf("snapshot %d is of volume %q, want %q", i, s.Volume, vs[i])
		}
		if a.CanOpen() {
			if got := content(t, a, s.ID)[511]; got != 2 {
				t.Errorf("the snapshot of %s holds %d, want what was written last before Commit", s.Volume, got)
			}
		}
	}
	giveBack(t, a, ss)
	if _, err := a.Commit(t.Context(), "arm"); err == nil {
		t.Error("Commit of a split that was given back")
	}

	// All or nothing.
	prepare(t, a, "half", vs)
	err = a.Arm(t.Context(), "half", append(l.ids(len(vs)), "no-such-volume"), time.Minute)
	wantKind(t, "Arm of an unknown volume", err, driver.NotFound)
	_, err = a.Commit(t.Context(), "half")
	wantKind(t, "Commit of a half", err, driver.NotArmed)
}

// testArmTimesOut leaves armed volumes alone until the array aborts: then others
// have them, and a late Commit does nothing. The second time the provider is
// restarted in between.
func testArmTimesOut(t *testing.T, l *Lab) {
	vs := l.ids(1)
	for i := range 2 {
		if i == 1 && l.Restart == nil {
			return
		}
		tag, next := driver.Tag(fmt.Sprintf("late-%d", i)), driver.Tag(fmt.Sprintf("next-%d", i))
		a := l.array()
		prepare(t, a, tag, vs)
		if err := a.Arm(t.Context(), tag, vs, 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			l.Restart(t)
			a = l.array()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var ss []driver.Snapshot
		for {
			err := a.Prepare(ctx, vs, driver.PrepareOptions{Tag: next, AllowUnmirrored: true})
			if err == nil {
				ss, err = a.Split(ctx, next, vs)
			}
			if err == nil {
				break
			}
			if arrays.KindOf(err) != driver.Busy {
				t.Fatal(err)
			}
		}
		_, err := a.Commit(t.Context(), tag)
		wantKind(t, "Commit after the time-out", err, driver.NotArmed)
		found(t, a, tag, nil)
		giveBack(t, a, ss)
	}
}
