package embedded

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// maxArmed is the longest time for which a split may be armed: its volumes
// can't be administered meanwhile.
const maxArmed = time.Hour

// armed is a split that is ready and waits for its commit. It holds the
// administration of its volumes, but not its tag: whoever ends it holds that.
type armed struct {
	*cuts
	unlock func()
	until  time.Time // by the monotonic clock
	timer  *time.Timer
}

// Arm makes everything ready that takes time, and writes the pending record;
// Commit then begins with the instant. Until then, and for abortAfter at most
// (an hour at most, by a clock that does not jump), whatever else wants to
// administer one of the volumes waits as long as its context allows, and is
// then told who has it armed (kind Busy); I/O goes on, and so do fills.
//
// A mirror that is lost while armed is dropped as ever; Commit is refused if
// what is left does not do for the split. A crash or Close aborts: at the next
// start nothing is armed. Arm for a tag that is split already changes nothing,
// and Commit returns that split.
//
// If ctx ends while it is under way, the outcome is unknown: it may be armed
// later, until abortAfter has passed since then, or until Abort, which waits
// for it.
func (a *Array) Arm(ctx context.Context, tag driver.Tag, refs []driver.VolumeID, abortAfter time.Duration) error {
	if abortAfter <= 0 || abortAfter > maxArmed {
		return driver.Errorf(driver.InvalidRequest, "arming for %v: want more than none and at most %v", abortAfter, maxArmed)
	}
	vols, release, err := a.lockTag(ctx, tag, refs)
	if err != nil {
		return err
	}
	if s, err := a.armedAs(tag, vols); s != nil || err != nil {
		if err == nil {
			s.extend(abortAfter)
		}
		release()
		return err
	}
	unlock, err := lockAll(ctx, vols)
	if err != nil {
		release()
		return err
	}
	if done, err := a.alreadySplit(tag, vols, true); err != nil || done != nil {
		unlock()
		release()
		return err
	}
	kept := false
	end := func() {
		if !kept {
			unlock()
		}
		release()
	}
	return a.finish(ctx, fmt.Sprintf("arming for tag %q", tag), end, func() error {
		c, err := a.arm(tag, vols)
		if err == nil {
			a.keepArmed(&armed{cuts: c, unlock: unlock}, abortAfter)
			kept = true
		}
		return err
	})
}

// Commit splits what is armed under the tag, and answers in the order in which
// the volumes were armed. After an error other than of kind OutcomeUnknown
// nothing is split and nothing is armed any more.
func (a *Array) Commit(ctx context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	s, release, err := a.lockArmed(ctx, tag)
	if err != nil {
		return nil, err
	}
	if s == nil {
		defer release()
		return a.committed(tag)
	}
	return a.commitArmed(ctx, s, release)
}

func (a *Array) commitArmed(ctx context.Context, s *armed, release func()) ([]driver.Snapshot, error) {
	var snaps []driver.Snapshot
	err := a.finish(ctx, fmt.Sprintf("split for tag %q", s.tag), release, func() (err error) {
		defer a.forgetArmed(s)()
		snaps, err = a.commit(s.cuts)
		return err
	})
	if err != nil {
		return nil, err
	}
	return snaps, nil
}

// Abort takes an arming back. It waits for an Arm or Commit under way.
func (a *Array) Abort(ctx context.Context, tag driver.Tag) error {
	s, release, err := a.lockArmed(ctx, tag)
	if err != nil {
		return err
	}
	defer release()
	if s != nil {
		return a.abort(s)
	}
	done, err := a.ofTag(tag)
	if len(done) > 0 {
		return driver.Errorf(driver.InvalidRequest, "tag %q is split already, into %d snapshots: resync or delete them", tag, len(done))
	}
	return err
}

// lockArmed waits until nobody works for the tag, and returns what is armed
// under it, or nil.
func (a *Array) lockArmed(ctx context.Context, tag driver.Tag) (s *armed, release func(), err error) {
	if err := checkTag(tag); err != nil {
		return nil, nil, err
	}
	if a.isClosed() {
		return nil, nil, fmt.Errorf("array: %w", lun.ErrClosed)
	}
	if release, err = a.splits.lock(ctx, tag); err != nil {
		return nil, nil, err
	}
	if s, err = a.stillArmed(tag); err != nil {
		release()
		return nil, nil, err
	}
	return s, release, nil
}

// stillArmed returns what is armed under the tag. One whose time is over is
// aborted here, should its timer be late. The tag is locked.
func (a *Array) stillArmed(tag driver.Tag) (*armed, error) {
	a.mu.Lock()
	s := a.armed[tag]
	a.mu.Unlock()
	if s == nil || time.Now().Before(s.until) {
		return s, nil
	}
	return nil, a.expire(s)
}

// armedAs is stillArmed where the volumes are known; others are an error.
func (a *Array) armedAs(tag driver.Tag, vols []*volume) (*armed, error) {
	s, err := a.stillArmed(tag)
	if s == nil || err != nil {
		return nil, err
	}
	if !slices.EqualFunc(s.parts, vols, func(k *cut, v *volume) bool { return k.v == v }) {
		return nil, driver.Errorf(driver.InvalidRequest, "tag %q is armed for other volumes, or in another order", tag)
	}
	return s, nil
}

// committed returns the group that the tag has been split into.
func (a *Array) committed(tag driver.Tag) ([]driver.Snapshot, error) {
	out, err := a.ofTag(tag)
	if err != nil {
		return nil, err
	}
	if len(out) == 0 || slices.ContainsFunc(out, func(s driver.Snapshot) bool { return s.Group != out[0].Group }) {
		return nil, driver.Errorf(driver.NotArmed, "tag %q is not armed: it never was, was aborted, or its time is over", tag)
	}
	return out, nil
}

// keepArmed leaves s until somebody ends it or its time is over. The tag is
// locked.
func (a *Array) keepArmed(s *armed, abortAfter time.Duration) {
	for _, k := range s.parts {
		k.v.armedBy.Store(&s.tag)
	}
	s.until = time.Now().Add(abortAfter)
	s.timer = time.AfterFunc(abortAfter, func() { a.start(func() { a.timeOut(s) }) })
	a.mu.Lock()
	a.armed[s.tag] = s
	a.mu.Unlock()
}

func (s *armed) extend(abortAfter time.Duration) {
	s.until = time.Now().Add(abortAfter)
	s.timer.Reset(abortAfter)
}

// timeOut ends s if it is still there and was not extended.
func (a *Array) timeOut(s *armed) {
	release, err := a.splits.lock(a.bg, s.tag)
	if err != nil {
		return // the array is closing, and aborts it
	}
	defer release()
	if _, err := a.stillArmed(s.tag); err != nil {
		a.o.Logger.Error("an armed split could not be aborted; a restart repeats it", "tag", s.tag, "error", err)
	}
}

func (a *Array) expire(s *armed) error {
	err := a.abort(s)
	a.event(SplitUndone, nil, lun.Identity{}, "a split of %d volumes armed for tag %q was not committed in time and was aborted", len(s.parts), s.tag)
	return err
}

func (a *Array) abort(s *armed) error {
	defer a.forgetArmed(s)()
	return a.disarm(s.cuts)
}

// forgetArmed ends s, but for its volumes' lock, which the caller lets go in
// the end.
func (a *Array) forgetArmed(s *armed) (unlock func()) {
	s.timer.Stop()
	a.mu.Lock()
	delete(a.armed, s.tag)
	a.mu.Unlock()
	return func() {
		for _, k := range s.parts {
			k.v.armedBy.Store(nil)
		}
		s.unlock()
	}
}

// abortAll ends what is armed when the array closes and nothing begins any
// more.
func (a *Array) abortAll() (err error) {
	a.mu.Lock()
	all := make([]*armed, 0, len(a.armed))
	for _, s := range a.armed {
		all = append(all, s)
	}
	a.mu.Unlock()
	for _, s := range all {
		release, lerr := a.splits.lock(context.Background(), s.tag)
		if lerr != nil {
			return lerr
		}
		a.mu.Lock()
		there := a.armed[s.tag] == s
		a.mu.Unlock()
		if there {
			err = errors.Join(err, a.abort(s))
		}
		release()
	}
	return err
}

var _ driver.Armer = (*Array)(nil)
