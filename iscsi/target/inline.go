package target

import (
	"errors"
	"sync"
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// A command whose device answers from memory takes less time than handing it to
// another goroutine. So the reader keeps short reads and writes back, performs
// them itself when nothing more has arrived, and sends their answers in one go.
//
// A reader inside a device reads no NOPs and no aborts. Therefore its role can be
// taken from it: relieve looks at all connections every relieveAfter while any
// reader is at this, gives the role of one that is stuck to a new goroutine and
// the commands it kept back to workers; the one that was stuck goes on as a
// worker does, and ends with its command. A nexus whose device was slow gets its
// next commands performed by workers.
const (
	inlineBytes  = 64 << 10 // longest transfer
	inlineBatch  = 16       // commands between two looks at the answers
	inlineKept   = 64       // commands that are kept back at most
	inlineSlow   = 300 * time.Microsecond
	slowCommands = 256 // performed by workers after a slow one
	relieveAfter = 10 * time.Millisecond
)

// errRelieved ends a reader whose role another has now.
var errRelieved = errors.New("the connection has another reader")

// brief reports whether the reader may perform a task.
func (n *nexus) brief(t *task) bool { return n.scsi.OnlyMoves(&t.cmd, inlineBytes) }

// keep leaves a task in its queue for the reader. conn.mu is held.
func (n *nexus) keep(t *task) bool {
	c := n.ss.conn
	switch {
	case n.held || len(c.kept) >= inlineKept || !n.brief(t):
		return false
	case n.slow > 0:
		n.slow--
		return false
	}
	c.kept = append(c.kept, n)
	return true
}

// hireKept hands what was kept back to workers. conn.mu is held, by the reader or
// whoever relieves it.
func (c *conn) hireKept() {
	for _, n := range c.kept {
		if n.queue.n > 0 && !n.held {
			n.hire()
		}
	}
	c.kept = c.kept[:0]
}

// serve performs what the reader has kept back, with owed answers waiting to be sent
// already, and returns how many wait now. It reports false if it was relieved
// meanwhile: the caller is no longer the reader then, and nothing waits.
func (c *conn) serve(owed int) (int, bool) {
	s := c.srv
	s.workers.Add(1)
	defer s.workerDone()
	// Locked first: whoever is relieved before it has the lock would work on what
	// the next reader keeps, and forget it.
	c.mu.Lock()
	turn := c.turn.Add(1)
	s.relief.wake()
	begun := time.Now()
	for i := 0; i < len(c.kept); i++ {
		n := c.kept[i]
		if n.held {
			continue // release sees to it
		}
		t := n.queue.pop()
		if t == nil {
			continue // a worker has it, or it was aborted
		}
		if !n.brief(t) { // meant for a worker, who finds the other one as well
			n.queue.push(t)
			n.hire()
			continue
		}
		t.inline = true
		n.perform(t)
		owed++
		ended := time.Now()
		slow := ended.Sub(begun) > inlineSlow
		begun = ended
		if slow || owed >= inlineBatch {
			c.mu.Unlock()
			c.sendNow()
			owed, begun = 0, time.Now()
			c.mu.Lock()
		}
		// Still the reader? Then c.kept is ours, and time starts anew.
		if !c.turn.CompareAndSwap(turn, turn+2) {
			c.mu.Unlock()
			c.sendNow()
			return 0, false
		}
		turn += 2
		if slow {
			n.slow = slowCommands
			c.kept = append(c.kept[:0], c.kept[i+1:]...)
			c.hireKept()
		}
	}
	c.kept = c.kept[:0]
	c.mu.Unlock()
	if c.turn.CompareAndSwap(turn, turn+1) {
		return owed, true
	}
	c.sendNow()
	return 0, false
}

// reads reads until the connection ends, or another has taken this over.
func (c *conn) reads() {
	if err := c.read(); !errors.Is(err, errRelieved) {
		c.readEnded <- err
	}
}

// idle reports whether the reader would wait for the initiator now.
func (c *conn) idle() bool { return c.rd.Buffered() < pdu.HeaderLen }

// more looks, without waiting, whether the initiator has sent more. Answers to all
// of that go out together.
func (c *conn) more() bool {
	c.src.now = c.src.CanReadNow()
	ok := c.src.now && c.rd.Peek(pdu.HeaderLen)
	c.src.now = false
	return ok
}

// relief is what the goroutine that relieves readers waits for.
type relief struct {
	begin, finish sync.Once
	wg            sync.WaitGroup
	kick, quit    chan struct{}
}

// end has relieve end, when there are no connections any more.
func (r *relief) end() {
	r.finish.Do(func() { close(r.quit) })
	r.wg.Wait()
}

// wake has relieve look, unless it does.
func (r *relief) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// relieve runs until the server closes. A turn is odd while a reader is inside
// serve; one that is the same at two looks belongs to a reader that is stuck.
func (s *Server) relieve() {
	t := time.NewTicker(relieveAfter)
	defer t.Stop()
	seen, now := map[*conn]uint64{}, map[*conn]uint64{}
	for {
		t.Stop()
		select {
		case <-s.relief.quit:
			return
		case <-s.relief.kick:
		}
		t.Reset(relieveAfter)
		for busy := true; busy; {
			select {
			case <-s.relief.quit:
				return
			case <-t.C:
			}
			select {
			case <-s.relief.kick:
			default:
				busy = false // nobody has begun since the last look
			}
			clear(now)
			s.serving(now)
			for c, turn := range now {
				busy = true
				if seen[c] == turn && c.turn.CompareAndSwap(turn, turn+1) {
					c.mu.Lock()
					c.hireKept()
					c.mu.Unlock()
					c.tx.work.Signal() // for the answers before the one that is stuck
					go c.reads()
				}
			}
			seen, now = now, seen
		}
		clear(seen)
	}
}

// serving adds the turns of the readers that are inside serve.
func (s *Server) serving(to map[*conn]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if turn := c.turn.Load(); turn&1 == 1 {
			to[c] = turn
		}
	}
}
