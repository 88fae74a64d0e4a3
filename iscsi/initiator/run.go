package initiator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cleave-san/cleave/iscsi/scsi"
	"github.com/cleave-san/cleave/lun"
)

// Limits of repeating one command. A unit attention is cleared by being told, so
// many of them in a row are a target's whim; a command that costs the connection
// again and again is not for this target.
const (
	attentionsMax = 32
	abortsMax     = 5
	lossesMax     = 8

	backOffMin = 5 * time.Millisecond
	backOffMax = 500 * time.Millisecond
)

// retry is what has happened to a command so far. The zero value is a new one.
type retry struct {
	begun                      time.Time // of the trouble
	attentions, aborts, losses int
	pause                      time.Duration
	lost                       *session // the last that ended under it
}

// outcome is how one attempt at a command ended.
type outcome struct {
	s     *session
	epoch uint64 // before it
	n     int
	err   error
}

// run has the LUN perform a command, whatever becomes of the connection. change
// says that it writes.
func (d *Disk) run(c *command, change bool) (int, error) { return d.goOn(c, change, nil) }

// goOn is run after a first attempt, if it is not nil. What was done by a session
// that doesn't lead to the right LUN before and after it is not told.
func (d *Disk) goOn(c *command, change bool, first *outcome) (int, error) {
	var r retry
	for {
		var o outcome
		if first != nil {
			o, first = *first, nil
		} else {
			s, err := d.session()
			if err != nil {
				return 0, err
			}
			if change && r.lost != nil && !samePort(r.lost, s) {
				return 0, fmt.Errorf("%w: %w", ErrUncertain, r.lost.lost())
			}
			o = outcome{s: s, epoch: d.epoch.Load()}
			if o.err = d.verify(s); o.err == nil {
				o.n, o.err = s.do(c)
			}
		}
		if err := d.verify(o.s); err != nil {
			o.err = err
		}
		if o.err == nil {
			if change {
				d.stable.wrote(o.epoch)
			}
			return o.n, nil
		}
		if err := r.again(d.life, &d.o, o.s, o.err); err != nil {
			return 0, err
		}
	}
}

// samePort reports whether a session reinstates another, so that the target has
// ended all commands of that one (RFC 7143 section 6.3.5): its identifier is
// the same within one portal group.
func samePort(a, b *session) bool {
	return a.group == b.group && (a.group != "" || a.portal == b.portal)
}

// again decides what an error means: nil is to try again, after the pause that
// belongs to it.
func (r *retry) again(life context.Context, o *Options, s *session, err error) error {
	if r.begun.IsZero() {
		r.begun = time.Now()
	}
	var sense *SenseError
	var status *StatusError
	switch {
	case errors.Is(err, errSession):
		r.lost = s
		if r.losses++; r.losses > lossesMax || time.Since(r.begun) > o.Recovery || errors.Is(err, lun.ErrClosed) {
			return closedOr(err, ErrLost)
		}
		return nil // session waits
	case errors.Is(err, errTargetFailure):
		if r.aborts++; r.aborts > abortsMax {
			return err
		}
	case errors.As(err, &sense):
		switch {
		case !sense.transient() && !sense.Deferred:
			return err
		case sense.Key == UnitAttention || sense.Deferred:
			if r.attentions++; r.attentions > attentionsMax {
				return err
			}
			return nil
		case sense.Key == AbortedCommand:
			if r.aborts++; r.aborts > abortsMax {
				return err
			}
		}
	case errors.As(err, &status):
		switch status.Status {
		case scsi.Busy, scsi.TaskSetFull:
		case scsi.TaskAborted:
			if r.aborts++; r.aborts > abortsMax {
				return err
			}
		default:
			return err
		}
	default:
		return err
	}
	if time.Since(r.begun) > o.Recovery {
		return err
	}
	r.pause = min(max(2*r.pause, backOffMin), backOffMax)
	t := time.NewTimer(r.pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-life.Done():
		return fmt.Errorf("%w: %w", lun.ErrClosed, err)
	}
}

// closedOr wraps an error in kind, or leaves one alone that says that the disk
// is closed.
func closedOr(err, kind error) error {
	if errors.Is(err, lun.ErrClosed) {
		return lun.ErrClosed
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// on is an asker for one session, whatever it takes short of another session.
func (d *Disk) on(ctx context.Context, s *session) asker {
	return func(c *command) (int, error) {
		var r retry
		for {
			n, err := s.do(c)
			if err == nil || errors.Is(err, errSession) {
				return n, err
			}
			if err := r.again(ctx, &d.o, s, err); err != nil {
				return 0, err
			}
		}
	}
}

// verify looks whether a session still leads to the same LUN, if there is doubt.
func (d *Disk) verify(s *session) error {
	if s.doubts.Load() == s.cleared.Load() {
		return nil
	}
	d.checks.Lock()
	defer d.checks.Unlock()
	for range attentionsMax {
		doubts := s.doubts.Load()
		if doubts == s.cleared.Load() {
			return nil
		}
		f, err := d.on(d.life, s).identify()
		if err == nil {
			err = d.same(&f)
		}
		if err != nil {
			if errors.Is(err, ErrIdentity) || errors.Is(err, ErrNoLUN) {
				s.fail(err)
			}
			return err
		}
		s.cleared.Store(doubts)
	}
	return fmt.Errorf("%w: the LUN's data changes again and again", ErrIdentity)
}

// same reports whether a LUN is the one that was opened, as ErrIdentity if not.
func (d *Disk) same(f *facts) error {
	was := &d.facts
	switch {
	case f.designator != was.designator || f.serial != was.serial:
		return fmt.Errorf("%w: it is %q, was %q", ErrIdentity, f.id(), was.id())
	case f.block != was.block:
		return fmt.Errorf("%w: its blocks have %d bytes, had %d", ErrIdentity, f.block, was.block)
	case f.size < was.size:
		return fmt.Errorf("%w: it has %d bytes, had %d", ErrIdentity, f.size, was.size)
	}
	return nil
}
