package target

import (
	"time"

	"github.com/cleave-san/cleave/iscsi"
)

// ghosts are commands inside a device whose nexus is closed: nobody waits for
// their answers any more, but a write among them may still reach the medium.
// An initiator that has come back sends its writes again, and newer ones to the
// same blocks after them; so its commands to that LUN wait until the ghosts of
// its former session are gone, and so do LUN RESET, CLEAR TASK SET and PREEMPT
// AND ABORT of anybody. entry.ghostMu guards the fields.
type ghosts struct {
	of      map[iscsi.Name]int // commands, by initiator
	waiting map[iscsi.Name][]*nexus
	waiters []*waiter
}

// haunt records that n commands of a nexus that is closed are in the device.
func (e *entry) haunt(who iscsi.Name, n int) {
	if n == 0 {
		return
	}
	e.ghostMu.Lock()
	defer e.ghostMu.Unlock()
	if e.ghosts.of == nil {
		e.ghosts.of, e.ghosts.waiting = map[iscsi.Name]int{}, map[iscsi.Name][]*nexus{}
	}
	e.ghosts.of[who] += n
}

// ghostGone is called for each of them as the device lets it go. No conn.mu is
// held.
func (e *entry) ghostGone(who iscsi.Name) {
	e.ghostMu.Lock()
	g := &e.ghosts
	if g.of[who]--; g.of[who] > 0 {
		e.ghostMu.Unlock()
		return
	}
	delete(g.of, who)
	free := g.waiting[who]
	delete(g.waiting, who)
	var done []*waiter
	if len(g.of) == 0 {
		done, g.waiters = g.waiters, nil
	}
	e.ghostMu.Unlock()
	for _, n := range free {
		n.release()
	}
	for _, w := range done {
		w.done()
	}
}

// holdBack makes a new nexus wait for the ghosts of its initiator, if there are
// any.
func (e *entry) holdBack(n *nexus) {
	e.ghostMu.Lock()
	defer e.ghostMu.Unlock()
	who := n.ss.info.Initiator
	if e.ghosts.of[who] > 0 {
		n.held = true
		e.ghosts.waiting[who] = append(e.ghosts.waiting[who], n)
	}
}

// exorcise lets w wait for the ghosts that there are.
func (e *entry) exorcise(w *waiter) {
	e.ghostMu.Lock()
	defer e.ghostMu.Unlock()
	if len(e.ghosts.of) > 0 {
		w.left.Add(1)
		e.ghosts.waiters = append(e.ghosts.waiters, w)
	}
}

// quiet waits until there are no ghosts, and reports whether that was in time.
func (e *entry) quiet(patience time.Duration) bool {
	w := newWaiter()
	e.exorcise(w)
	w.done()
	select {
	case <-w.ch:
		return true
	default:
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-w.ch:
		return true
	case <-t.C:
		return false
	}
}
