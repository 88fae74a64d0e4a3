package target

import (
	"sync"

	"github.com/cleave-san/cleave/iscsi/scsi"
)

// nexus is one session's way to one LUN, with a queue and workers of its own: a
// device that hangs, or an initiator that doesn't take its data, holds up nobody
// else. conn.mu guards its fields below.
type nexus struct {
	ss    *session
	entry *entry
	scsi  *scsi.Nexus

	count   int // tasks that are not over
	running int // tasks of it in the device, cut off or not
	queue   ring
	held    bool // until the ghosts of the session before are gone
	haunts  bool // closed

	slow int // commands until the reader may perform one again

	workers int
	idle    int // of workers: parked
	wake    sync.Cond

	granted int     // tasks whose data is being asked for
	waiting []*task // for the memory of theirs
}

// maxIdle is how many workers of a nexus stay when there is nothing to do.
const maxIdle = 2

func newNexus(ss *session, e *entry) *nexus {
	n := &nexus{ss: ss, entry: e}
	n.wake.L = &ss.conn.mu
	e.holdBack(n)
	return n
}

// ring is a queue of tasks that allocates only when it grows.
type ring struct {
	slots []*task
	head  int
	n     int
}

func (r *ring) push(t *task) {
	if r.n == len(r.slots) {
		grown := make([]*task, max(8, 2*r.n))
		for i := range r.n {
			grown[i] = r.slots[(r.head+i)%len(r.slots)]
		}
		r.slots, r.head = grown, 0
	}
	r.slots[(r.head+r.n)%len(r.slots)] = t
	r.n++
}

func (r *ring) pop() *task {
	if r.n == 0 {
		return nil
	}
	t := r.slots[r.head]
	r.slots[r.head] = nil
	r.head = (r.head + 1) % len(r.slots)
	r.n--
	return t
}

// remove takes a task out of the middle.
func (r *ring) remove(t *task) {
	for i, n := 0, r.n; i < n; i++ {
		if o := r.pop(); o != t {
			r.push(o)
		}
	}
}

// enqueue hands a task whose data has come to the workers, or keeps it back for
// the reader, whose goroutine this is. conn.mu is held.
func (n *nexus) enqueue(t *task) {
	t.state = queued
	n.queue.push(t)
	if !n.keep(t) && !n.held {
		n.hire()
	}
}

// hire finds a worker for one more task: one that is parked, or a new one.
// conn.mu is held.
func (n *nexus) hire() {
	switch {
	case n.idle > 0:
		n.idle--
		n.wake.Signal()
	case n.workers < n.ss.srv.opt.Workers:
		n.workers++
		n.ss.srv.workers.Add(1)
		go n.work()
	}
}

// release lets a nexus begin that was held back.
func (n *nexus) release() {
	n.ss.conn.mu.Lock()
	defer n.ss.conn.mu.Unlock()
	n.held = false
	for range n.queue.n {
		n.hire()
	}
}

// close is for a nexus that its initiator can't use any more: the session is over,
// or the mask hides the LUN. It finishes the commands it has, as ghosts, and its
// workers go.
func (n *nexus) close() {
	n.ss.conn.mu.Lock()
	defer n.ss.conn.mu.Unlock()
	n.haunts, n.idle = true, 0
	n.entry.haunt(n.ss.info.Initiator, n.running)
	n.wake.Broadcast()
}

// work performs queued tasks; when there are none it parks or ends.
func (n *nexus) work() {
	c := n.ss.conn
	defer n.ss.srv.workerDone()
	c.mu.Lock()
	for {
		t := n.queue.pop()
		switch {
		case t != nil:
			n.perform(t)
		case n.haunts || n.idle >= maxIdle:
			n.workers--
			c.mu.Unlock()
			return
		default:
			n.idle++ // taken back by hire or close
			n.wake.Wait()
		}
	}
}

// perform runs one task. conn.mu is held, and let go in between.
func (n *nexus) perform(t *task) {
	c := n.ss.conn
	writes := !reservesOut(t) // may touch the medium
	t.state = running
	if writes {
		n.running++
		if n.haunts {
			n.entry.haunt(n.ss.info.Initiator, 1)
		}
	}
	c.mu.Unlock()
	n.scsi.Run(&t.cmd)
	if !writes && t.cmd.CDB[1]&0x1f == preemptAndAbort && t.cmd.Status == scsi.Good && !n.entry.quiet(n.ss.srv.opt.AbortTimeout) {
		t.cmd.Fail(internalFailure) // the fence doesn't stand yet
	}
	t.finish()
	c.mu.Lock()
	if !writes {
		return
	}
	n.running--
	if n.haunts {
		c.mu.Unlock()
		n.entry.ghostGone(n.ss.info.Initiator)
		c.mu.Lock()
	}
}

// PERSISTENT RESERVE OUT and its service action PREEMPT AND ABORT (SPC-4 section
// 6.16).
const (
	persistentReserveOut = 0x5f
	preemptAndAbort      = 5

	internalFailure scsi.Code = 0x4<<16 | 0x4400 // INTERNAL TARGET FAILURE
)

// reservesOut reports whether a task is PERSISTENT RESERVE OUT: it never touches the
// medium, and it waits for others, so others don't wait for it.
func reservesOut(t *task) bool { return t.cmd.CDB[0] == persistentReserveOut }

// mine reports whether a task goes through this nexus.
func (n *nexus) mine(t *task) bool { return t.nx == n }
