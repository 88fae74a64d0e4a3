package arraytest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

// trouble is what goes wrong with each call of a life. Its function makes the
// call, whatever comes of it; then the same call is made undisturbed, has to
// succeed, and has to come to the same end.
type trouble struct {
	name string
	make func(x *living, call func(context.Context, *arrays.Array) error) error
}

var troubles = []trouble{
	{"Repeated", (*living).repeated},
	{"ContextEndedBefore", (*living).endedBefore},
	{"ContextEndedWithin", (*living).endedWithin},
	{"RequestLost", func(x *living, call func(context.Context, *arrays.Array) error) error {
		return x.lost(call, RequestLost, driver.Unreachable)
	}},
	{"ReplyLost", func(x *living, call func(context.Context, *arrays.Array) error) error {
		return x.lost(call, ReplyLost, driver.OutcomeUnknown)
	}},
	{"Restarted", (*living).restarted},
}

// living is one life of snapshots, from Prepare until they are given back,
// under one trouble.
type living struct {
	*testing.T
	lab     *Lab
	trouble trouble
	tag     driver.Tag
}

// life runs a life once for each trouble, on one array: each leaves it as it
// found it.
func life(live func(*living)) func(*testing.T, *Lab) {
	return func(t *testing.T, l *Lab) {
		for i, tr := range troubles {
			if tr.name == "Restarted" && l.Restart == nil {
				continue
			}
			ok := t.Run(tr.name, func(t *testing.T) {
				live(&living{T: t, lab: l, trouble: tr, tag: driver.Tag(fmt.Sprintf("life-%d", i))})
			})
			if !ok {
				return // what it left would fail the others
			}
		}
	}
}

// do makes a call under the life's trouble and then without. The provider is
// asserted anew for each: a restart replaces it.
func (x *living) do(what string, call func(context.Context, *arrays.Array) error) {
	x.Helper()
	if err := x.trouble.make(x, call); err != nil {
		x.Fatalf("%s, %s: %v", what, x.trouble.name, err)
	}
	if err := call(x.Context(), x.lab.array()); err != nil {
		x.Fatalf("%s after %s: %v", what, x.trouble.name, err)
	}
}

func (x *living) repeated(call func(context.Context, *arrays.Array) error) error {
	a := x.lab.array()
	var errs []error
	for range 3 {
		errs = append(errs, call(x.Context(), a))
	}
	return errors.Join(errs...)
}

// cut judges the error of a call whose context ended.
func cut(err error) error {
	if k := arrays.KindOf(err); err == nil || k == driver.OutcomeUnknown || k == driver.Unreachable || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return fmt.Errorf("a context that ended became kind %v: %w", arrays.KindOf(err), err)
}

func (x *living) endedBefore(call func(context.Context, *arrays.Array) error) error {
	ctx, cancel := context.WithCancel(x.Context())
	cancel()
	return cut(call(ctx, x.lab.array()))
}

// endedWithin ends contexts later and later, until one is late enough.
func (x *living) endedWithin(call func(context.Context, *arrays.Array) error) error {
	a := x.lab.array()
	for i := range 12 {
		ctx, cancel := context.WithTimeout(x.Context(), 50*time.Microsecond<<i)
		err := call(ctx, a)
		cancel()
		if err == nil {
			return nil
		}
		if err := cut(err); err != nil {
			return err
		}
	}
	return nil
}

func (x *living) lost(call func(context.Context, *arrays.Array) error, loss Loss, want driver.Kind) error {
	line := &Lossy{Driver: x.lab.Driver}
	line.Lose(loss)
	err := call(x.Context(), line.Array())
	if got := arrays.KindOf(err); err == nil || got != want && got != driver.Unreachable {
		return fmt.Errorf("%v, of kind %v, want %v", err, got, want)
	}
	return nil
}

func (x *living) restarted(func(context.Context, *arrays.Array) error) error {
	x.lab.Restart(x.T)
	return nil
}

func (x *living) prepare(vs []driver.VolumeID) {
	x.Helper()
	x.do("Prepare", func(ctx context.Context, a *arrays.Array) error {
		return a.Prepare(ctx, vs, driver.PrepareOptions{Tag: x.tag, AllowUnmirrored: true})
	})
}

// result compares what a call returned with what it returned before.
func result[T any](x *living, have *T, same func(a, b T) bool) func(T, error) error {
	first := true
	return func(got T, err error) error {
		if err != nil {
			return err
		}
		if !first && !same(*have, got) {
			x.Fatalf("it returned %+v, and again %+v", *have, got)
		}
		first, *have = false, got
		return nil
	}
}

func sameSnapshots(a, b []driver.Snapshot) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].ID != b[i].ID || a[i].Volume != b[i].Volume || a[i].Identity != b[i].Identity || a[i].Group != b[i].Group {
			return false
		}
	}
	return true
}

func (x *living) split(vs []driver.VolumeID) (ss []driver.Snapshot) {
	x.Helper()
	keep := result(x, &ss, sameSnapshots)
	x.do("Split", func(ctx context.Context, a *arrays.Array) error { return keep(a.Split(ctx, x.tag, vs)) })
	x.found(ss)
	return ss
}

func (x *living) found(ss []driver.Snapshot) {
	x.Helper()
	x.do("Lookup", func(ctx context.Context, a *arrays.Array) error { _, err := a.Lookup(ctx, x.tag); return err })
	found(x.T, x.lab.array(), x.tag, ss)
}

func (x *living) giveBack(ss []driver.Snapshot) {
	x.Helper()
	for _, s := range ss {
		x.do("GiveBack", func(ctx context.Context, a *arrays.Array) error { return a.GiveBack(ctx, s.ID) })
	}
	x.found(nil)
}

func lifeOfASplit(x *living) {
	vs := x.lab.group()
	x.do("Resolve", func(ctx context.Context, a *arrays.Array) error { _, err := a.Resolve(ctx, x.lab.Disk); return err })
	x.prepare(vs)
	x.giveBack(x.split(vs))
}

func lifeToDelete(x *living) {
	vs := x.lab.ids(1)
	x.prepare(vs)
	for _, s := range x.split(vs) {
		x.do("Delete", func(ctx context.Context, a *arrays.Array) error { return a.Delete(ctx, s.ID) })
	}
	x.found(nil)
	x.prepare(vs) // and another mirror takes the place
}

func lifeExposed(x *living) {
	vs := x.lab.ids(1)
	x.prepare(vs)
	ss := x.split(vs)
	var p driver.Path
	samePath := func(a, b driver.Path) bool { return a.IQN == b.IQN && a.LUN == b.LUN && a.Identity == b.Identity }
	keep := result(x, &p, samePath)
	for _, writable := range []bool{false, true} {
		o := driver.ExposeOptions{Initiators: []string{x.lab.Initiator}, Writable: writable}
		x.do("Expose", func(ctx context.Context, a *arrays.Array) error { return keep(a.Expose(ctx, ss[0].ID, o)) })
	}
	if !p.Writable {
		x.Errorf("exposed as writable: %+v", p)
	}
	wantKind(x.T, "Delete of what is exposed", x.lab.array().Delete(x.Context(), ss[0].ID), driver.Busy)
	x.do("Unexpose", func(ctx context.Context, a *arrays.Array) error { return a.Unexpose(ctx, ss[0].ID) })
	x.giveBack(ss)
}
