package target

import (
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
	workers int
	queue   ring

	memory  int64 // bytes of writes whose data is being asked for
	waiting []*task
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

// enqueue hands a task whose data has come to the workers. conn.mu is held.
func (n *nexus) enqueue(t *task) {
	t.state = queued
	n.queue.push(t)
	if n.workers < n.ss.srv.opt.Workers {
		n.workers++
		n.ss.srv.workers.Add(1)
		go n.work()
	}
}

// work performs queued tasks until there are none.
func (n *nexus) work() {
	c := n.ss.conn
	defer n.ss.srv.workerDone()
	c.mu.Lock()
	for {
		t := n.queue.pop()
		if t == nil {
			n.workers--
			c.mu.Unlock()
			return
		}
		t.state = running
		c.mu.Unlock()
		n.scsi.Run(&t.cmd)
		t.finish()
		c.mu.Lock()
	}
}

// mine reports whether a task goes through this nexus.
func (n *nexus) mine(t *task) bool { return t.nx == n }
