package arraytest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Loss is what becomes of a call on its way.
type Loss int

const (
	Nothing     Loss = iota // it comes through
	RequestLost             // the array never hears of it: kind Unreachable
	ReplyLost               // the array acts and nobody hears of it: kind OutcomeUnknown
)

// Lossy is a provider behind a bad line. It has every option; those that the
// provider lacks answer NotSupported, and Array takes them for missing.
type Lossy struct {
	driver.Driver

	mu   sync.Mutex
	loss Loss
}

// Lose sets what becomes of the calls from now on.
func (l *Lossy) Lose(loss Loss) {
	l.mu.Lock()
	l.loss = loss
	l.mu.Unlock()
}

// Array is the provider as callers hold it, without the options that it lacks.
func (l *Lossy) Array(without ...arrays.Capability) *arrays.Array {
	real := arrays.New("lab", l.Driver, arrays.Options{})
	for c, has := range map[arrays.Capability]bool{
		arrays.SplitGroup: real.CanSplitGroup(), arrays.Arm: real.CanArm(), arrays.Expose: real.CanExpose(),
		arrays.OpenDevice: real.CanOpen(), arrays.Rewrite: real.CanRewrite(), arrays.Resync: real.CanResync(), arrays.Revert: real.CanRevert(),
		arrays.Break: real.CanBreak(), arrays.Changes: real.CanTrackChanges(),
	} {
		if !has {
			without = append(without, c)
		}
	}
	return arrays.New("lossy", l, arrays.Options{Without: append(without, arrays.Describe)})
}

// through makes a call as the line has it.
func through[T any](l *Lossy, fn func() (T, error)) (T, error) {
	var none T
	l.mu.Lock()
	loss := l.loss
	l.mu.Unlock()
	switch loss {
	case RequestLost:
		return none, driver.Errorf(driver.Unreachable, "the request was lost")
	case ReplyLost:
		_, _ = fn() // whatever it says, nobody hears it
		return none, driver.Errorf(driver.OutcomeUnknown, "the reply was lost")
	default:
		return fn()
	}
}

// via is through for one of the options.
func via[O, T any](l *Lossy, fn func(O) (T, error)) (T, error) {
	o, ok := l.Driver.(O)
	if !ok {
		var none T
		return none, driver.Errorf(driver.NotSupported, "the provider has no such option")
	}
	return through(l, func() (T, error) { return fn(o) })
}

type nothing struct{}

func only(err error) (nothing, error) { return nothing{}, err }

// Kind implements driver.Driver.
func (l *Lossy) Kind(err error) driver.Kind {
	if k := l.Driver.Kind(err); k != driver.Unknown {
		return k
	}
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return driver.Unknown
}

// Resolve implements driver.Driver.
func (l *Lossy) Resolve(ctx context.Context, d driver.Disk) (driver.Volume, error) {
	return through(l, func() (driver.Volume, error) { return l.Driver.Resolve(ctx, d) })
}

// Prepare implements driver.Driver.
func (l *Lossy) Prepare(ctx context.Context, vs []driver.VolumeID, o driver.PrepareOptions) error {
	_, err := through(l, func() (nothing, error) { return only(l.Driver.Prepare(ctx, vs, o)) })
	return err
}

// Split implements driver.Driver.
func (l *Lossy) Split(ctx context.Context, tag driver.Tag, v driver.VolumeID) (driver.Snapshot, error) {
	return through(l, func() (driver.Snapshot, error) { return l.Driver.Split(ctx, tag, v) })
}

// Lookup implements driver.Driver.
func (l *Lossy) Lookup(ctx context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	return through(l, func() ([]driver.Snapshot, error) { return l.Driver.Lookup(ctx, tag) })
}

// Delete implements driver.Driver.
func (l *Lossy) Delete(ctx context.Context, s driver.SnapshotID) error {
	_, err := through(l, func() (nothing, error) { return only(l.Driver.Delete(ctx, s)) })
	return err
}

// SplitGroup implements driver.GroupSplitter.
func (l *Lossy) SplitGroup(ctx context.Context, tag driver.Tag, vs []driver.VolumeID) ([]driver.Snapshot, error) {
	return via(l, func(o driver.GroupSplitter) ([]driver.Snapshot, error) { return o.SplitGroup(ctx, tag, vs) })
}

// Arm implements driver.Armer.
func (l *Lossy) Arm(ctx context.Context, tag driver.Tag, vs []driver.VolumeID, abortAfter time.Duration) error {
	_, err := via(l, func(o driver.Armer) (nothing, error) { return only(o.Arm(ctx, tag, vs, abortAfter)) })
	return err
}

// Commit implements driver.Armer.
func (l *Lossy) Commit(ctx context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	return via(l, func(o driver.Armer) ([]driver.Snapshot, error) { return o.Commit(ctx, tag) })
}

// Abort implements driver.Armer.
func (l *Lossy) Abort(ctx context.Context, tag driver.Tag) error {
	_, err := via(l, func(o driver.Armer) (nothing, error) { return only(o.Abort(ctx, tag)) })
	return err
}

// Expose implements driver.Exposer.
func (l *Lossy) Expose(ctx context.Context, s driver.SnapshotID, x driver.ExposeOptions) (driver.Path, error) {
	return via(l, func(o driver.Exposer) (driver.Path, error) { return o.Expose(ctx, s, x) })
}

// Unexpose implements driver.Exposer.
func (l *Lossy) Unexpose(ctx context.Context, s driver.SnapshotID) error {
	_, err := via(l, func(o driver.Exposer) (nothing, error) { return only(o.Unexpose(ctx, s)) })
	return err
}

// Open implements driver.Opener. A device whose reply was lost would stay open:
// it is a question, and only its request is ever lost.
func (l *Lossy) Open(ctx context.Context, s driver.SnapshotID) (lun.Device, error) {
	o, ok := l.Driver.(driver.Opener)
	if !ok {
		return nil, driver.Errorf(driver.NotSupported, "the provider has no such option")
	}
	l.mu.Lock()
	loss := l.loss
	l.mu.Unlock()
	if loss != Nothing {
		return nil, driver.Errorf(driver.Unreachable, "the request was lost")
	}
	return o.Open(ctx, s)
}

// Rewrite implements driver.Rewriter. As with Open, only its request is lost.
func (l *Lossy) Rewrite(ctx context.Context, s driver.SnapshotID) (lun.Device, error) {
	o, ok := l.Driver.(driver.Rewriter)
	if !ok {
		return nil, driver.Errorf(driver.NotSupported, "the provider has no such option")
	}
	l.mu.Lock()
	loss := l.loss
	l.mu.Unlock()
	if loss != Nothing {
		return nil, driver.Errorf(driver.Unreachable, "the request was lost")
	}
	return o.Rewrite(ctx, s)
}

// Resync implements driver.Resyncer.
func (l *Lossy) Resync(ctx context.Context, s driver.SnapshotID) error {
	_, err := via(l, func(o driver.Resyncer) (nothing, error) { return only(o.Resync(ctx, s)) })
	return err
}

// Revert implements driver.Reverter.
func (l *Lossy) Revert(ctx context.Context, s driver.SnapshotID) (driver.Snapshot, error) {
	return via(l, func(o driver.Reverter) (driver.Snapshot, error) { return o.Revert(ctx, s) })
}

// Break implements driver.Breaker.
func (l *Lossy) Break(ctx context.Context, s driver.SnapshotID, name string) (driver.Volume, error) {
	return via(l, func(o driver.Breaker) (driver.Volume, error) { return o.Break(ctx, s, name) })
}

// Changes implements driver.ChangeTracker.
func (l *Lossy) Changes(ctx context.Context, v driver.VolumeID, from, to driver.SnapshotID) (driver.Changes, error) {
	return via(l, func(o driver.ChangeTracker) (driver.Changes, error) { return o.Changes(ctx, v, from, to) })
}
