package initiator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// attempt is the work of making a session again. err is set before done is
// closed.
type attempt struct {
	done chan struct{}
	err  error
}

const (
	// cooldown is for how long after an attempt that failed for good requests
	// fail with its error, without another one.
	cooldown = time.Second

	dialPauseMin = 50 * time.Millisecond
	dialPauseMax = 2 * time.Second
)

// session returns a session that lives and leads to the right LUN, making one if
// need be. Callers that come during an attempt share its outcome.
func (d *Disk) session() (*session, error) {
	if s := d.cur.Load(); s.lost() == nil {
		return s, nil
	}
	d.mu.Lock()
	for {
		if d.closed {
			d.mu.Unlock()
			return nil, lun.ErrClosed
		}
		old := d.cur.Load()
		if old.lost() == nil {
			d.mu.Unlock()
			return old, nil
		}
		if d.failed != nil && time.Since(d.when) < cooldown {
			err := d.failed
			d.mu.Unlock()
			return nil, err
		}
		if d.dialing == nil {
			d.dialing = &attempt{done: make(chan struct{})}
			go d.redial(d.dialing, old)
		}
		a := d.dialing
		d.mu.Unlock()
		<-a.done
		if a.err != nil {
			return nil, a.err
		}
		d.mu.Lock()
	}
}

// redial makes one attempt, for as long as Options.Recovery.
func (d *Disk) redial(a *attempt, old *session) {
	<-old.over
	ctx, cancel := context.WithTimeout(d.life, d.o.Recovery)
	defer cancel()
	why := old.lost()
	d.o.Logger.Warn("iSCSI connection lost", "lun", d.name, "error", why)
	s, err := d.replace(ctx, old, why)
	d.mu.Lock()
	if err == nil && d.closed {
		err = lun.ErrClosed
	}
	if err == nil {
		d.cur.Store(s)
		d.o.Logger.Info("iSCSI connection is back", "lun", d.name, "portal", s.portal)
	} else {
		if s != nil {
			s.fail(lun.ErrClosed)
		}
		d.failed, d.when = err, time.Now()
	}
	a.err, d.dialing = err, nil
	d.mu.Unlock()
	close(a.done)
}

// replace tries until there is a session, until trying makes no sense, or until
// ctx ends.
func (d *Disk) replace(ctx context.Context, old *session, why error) (*session, error) {
	// A LUN that was taken away is not waited for: its target is well. One that
	// isn't there after another loss may belong to a target that is starting.
	gone := errors.Is(why, ErrNoLUN)
	if errors.Is(why, ErrIdentity) {
		why = errors.New("the LUN was exchanged") // told already; it may be back
	}
	pause := dialPauseMin
	wait := min(old.wait, waitMax)
	for {
		if !sleep(ctx, wait) {
			return nil, closedOr(d.ended(why), ErrLost)
		}
		s, err := d.dialAll(ctx, false)
		switch {
		case err == nil:
			return s, nil
		case errors.Is(err, ErrIdentity), errors.Is(err, ErrAuth), gone && errors.Is(err, ErrNoLUN):
			return nil, err
		case ctx.Err() != nil:
			return nil, closedOr(d.ended(err), ErrLost)
		}
		why, wait = err, pause
		pause = min(2*pause, dialPauseMax)
	}
}

// ended is why, unless the disk was closed.
func (d *Disk) ended(why error) error {
	if d.life.Err() != nil {
		return lun.ErrClosed
	}
	return why
}

func sleep(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// dialAll tries each portal once, the last good one first. first says that the
// LUN is not known yet.
func (d *Disk) dialAll(ctx context.Context, first bool) (*session, error) {
	var errs []error
	for i := range d.o.Portals {
		at := (d.next + i) % len(d.o.Portals)
		s, err := d.dialOne(ctx, d.o.Portals[at], first)
		if err == nil {
			d.next = at // only one attempt at a time comes here
			return s, nil
		}
		errs = append(errs, err)
		if errors.Is(err, ErrIdentity) || ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// dialOne logs in at a portal and sees who is there, before anybody else may use
// the session.
func (d *Disk) dialOne(ctx context.Context, portal string, first bool) (*session, error) {
	w, err := connect(ctx, &d.o, portal, d.o.Target, d.isid)
	if err != nil {
		return nil, err
	}
	s := newSession(w, &d.o, &d.epoch)
	stop := context.AfterFunc(ctx, func() { s.fail(ctx.Err()) })
	err = d.meet(ctx, s, first)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		s.close()
		if first || !errors.Is(err, errSession) {
			err = fmt.Errorf("portal %s: %w", portal, err)
		}
		return nil, err
	}
	return s, nil
}

// meet takes the unit attentions of a new session and checks who is there.
func (d *Disk) meet(ctx context.Context, s *session, first bool) error {
	kept, err := d.attentions(ctx, s)
	if err != nil {
		return err
	}
	if !first && !kept {
		// Nothing says that the target was not started anew.
		d.epoch.Add(1)
	}
	ask := d.on(ctx, s)
	doubts := s.doubts.Load()
	f, err := ask.identify()
	if err != nil {
		return err
	}
	if first {
		if want := d.o.Identity; want != "" && want != f.id() {
			return fmt.Errorf("%w: it is %q, asked was %q", ErrIdentity, f.id(), want)
		}
		if err := ask.abilities(&f); err != nil {
			return err
		}
		d.facts = f
		if f.designator == "" && f.serial == "" {
			d.o.Logger.Warn("the LUN does not say who it is: an exchange behind its number can't be seen", "lun", d.name)
		}
	} else if err := d.same(&f); err != nil {
		return err
	}
	s.cleared.Store(doubts)
	return nil
}

// attentions has the LUN tell all its unit attentions, and waits until it is
// ready. kept says that there was one for the loss of the connection: a LUN that
// remembers that was not started anew.
func (d *Disk) attentions(ctx context.Context, s *session) (kept bool, err error) {
	var r retry
	for {
		_, err := s.do(&command{cdb: [16]byte{opTestUnitReady}})
		if err == nil {
			return kept, nil
		}
		var sense *SenseError
		if errors.As(err, &sense) && sense.Key == UnitAttention && sense.code() == codeNexusLoss {
			kept = true
		}
		if errors.Is(err, errSession) {
			return false, err
		}
		if err := r.again(ctx, &d.o, s, err); err != nil {
			return false, fmt.Errorf("TEST UNIT READY: %w", err)
		}
	}
}
