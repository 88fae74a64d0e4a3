package initiator

import (
	"errors"
	"io"
	"runtime"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// A session's leader reads what comes, for all. It is whoever waits for an answer
// first, so that nobody has to be woken for that answer; once it has it, and
// others still wait, the session's own reader goes on. That one keeps the lead
// while many wait, and gives it up once they come one by one. It also looks now
// and then what there is where nobody waits: pings, and the end.

// loneMax is how many times in a row the reader may find that at most one waits
// before it leaves the lead to him.
const loneMax = 8

// party is who leads: a caller who waits for a task, the user of a Queue, or the
// session's reader.
type party struct {
	t *task
	q *Queue
}

// served reports whether a caller has what he waits for, or needn't read for it.
func (p party) served() bool {
	return p.t != nil && p.t.tag.Load() == 0 || p.q != nil && (p.q.late.Load() > 0 || p.q.any())
}

// await waits for the end of a command, as the leader if there is none.
func (s *session) await(t *task) {
	if s.toLead() {
		s.leadFor(party{t: t})
	}
	<-t.completed
}

// toLead makes the caller the leader, if nobody is.
func (s *session) toLead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.led || s.err != nil {
		return false
	}
	s.led, s.awake = true, true
	return true
}

// leadFor leads until the party is served or the session has ended.
func (s *session) leadFor(p party) {
	if err := s.lead(p); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the target hung up")
		}
		s.fail(err)
	}
	s.mu.Lock()
	s.led = false
	s.flushNow() // what was left to the leader
	if s.err != nil || s.due || s.closing || s.waiting.Load() > 0 || s.waiters.Load() > 0 {
		s.turn.Signal()
	}
	s.mu.Unlock()
}

// lead takes PDUs. Whenever none is left it sends what has been queued meanwhile,
// all at once, before it waits.
func (s *session) lead(p party) error {
	own := p.t == nil && p.q == nil
	lone := 0
	for {
		if s.rd.Buffered() < pdu.HeaderLen {
			others := s.handed > 0
			s.handed = 0
			if p.served() {
				return nil
			}
			if own {
				if lone++; s.waiting.Load() > 1 || s.waiters.Load() > 0 {
					lone = 0
				}
				if lone > loneMax && s.waiting.Load() == 0 && others {
					return nil
				}
			}
			if others {
				runtime.Gosched() // those who got an answer have more to send
			}
			s.mu.Lock()
			s.flushNow()
			s.awake = false
			s.mu.Unlock()
			err := s.rd.Next(&s.h)
			s.mu.Lock()
			s.awake = true
			s.mu.Unlock()
			if err != nil {
				return err
			}
		} else if err := s.rd.Next(&s.h); err != nil {
			return err
		}
		s.heard.Store(s.now.Load())
		if err := s.receive(&s.h); err != nil {
			return err
		}
	}
}

// hand gives a command that has ended back to whose it is.
func (s *session) hand(t *task) {
	if t.slot != nil {
		t.slot.q.take(s, t)
		return
	}
	s.waiting.Add(-1)
	t.completed <- struct{}{}
}

// read is the session's reader.
func (s *session) read() {
	s.mu.Lock()
	for {
		for s.led || s.err == nil && !s.due && s.waiting.Load() == 0 && s.waiters.Load() == 0 {
			s.turn.Wait()
		}
		if s.err != nil {
			s.mu.Unlock()
			s.finish()
			return
		}
		s.led, s.awake, s.due = true, true, false
		s.mu.Unlock()
		s.leadFor(party{})
		s.mu.Lock()
	}
}
