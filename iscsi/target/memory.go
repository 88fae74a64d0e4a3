package target

import (
	"slices"
	"sync"
)

// minShare is what every session may hold in each direction, in bytes, however
// many there are: one piece of a read.
const minShare = 256 << 10

// divide recomputes the sessions' shares of Options.Memory. Server.mu is held, or
// nobody else knows the server yet.
func (s *Server) divide() {
	share := max(s.opt.Memory/int64(max(len(s.sessions), 1)), minShare)
	s.readShare.Store(min(share, s.opt.ReadMemory))
	s.writeShare.Store(min(share, s.opt.WriteMemory))
}

// budget is memory for writes that are longer than their session's share. A
// connection that finds too little of it waits its turn.
type budget struct {
	mu      sync.Mutex
	left    int64
	waiting []*nexus
}

// take takes n bytes; n is at most what there is in all. Otherwise the nexus is
// called again, by resume.
func (b *budget) take(n int64, who *nexus) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < n {
		if !slices.Contains(b.waiting, who) {
			b.waiting = append(b.waiting, who)
		}
		return false
	}
	b.left -= n
	return true
}

// give puts n bytes back and returns who has waited.
func (b *budget) give(n int64) []*nexus {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += n
	w := b.waiting
	b.waiting = nil
	return w
}

// admitUnsolicited takes the memory of data that comes without being asked for off
// the account. It reports false where the session has too much already; a LUN
// with no other command is not refused, so that none starves. conn.mu is held.
func (n *nexus) admitUnsolicited(t *task, size uint32) bool {
	c := n.ss.conn
	if size == 0 {
		return true
	}
	if n.count > 0 && c.writes+int64(size) > c.srv.writeShare.Load() {
		return false
	}
	t.out.memory = int64(size)
	c.writes += int64(size)
	return true
}

// grant takes memory for the rest of a task's data, if there is enough. Half of
// the session's share is left for data that comes by itself: what the target asks
// for can wait, that can only be refused. One task of each nexus may exceed the
// share, by the server's budget. conn.mu is held.
func (n *nexus) grant(t *task) bool {
	c, d := n.ss.conn, &t.out
	if d.granted {
		return true
	}
	more := int64(d.want) - d.memory
	share := c.srv.writeShare.Load()
	switch share /= 2; {
	case more <= 0, c.writes+more <= share:
	case n.granted > 0:
		return false
	case int64(d.want) > share:
		if d.big = min(more, c.srv.opt.Memory); !c.srv.big.take(d.big, n) {
			d.big = 0
			return false
		}
		more = 0 // on that account, not on the session's
	}
	d.granted = true
	n.granted++
	if more > 0 {
		d.memory += more
		c.writes += more
	}
	return true
}

// releaseMemory puts a task's memory back and lets those go on that wait for it.
// conn.mu is held.
func (t *task) releaseMemory() {
	n, d := t.nx, &t.out
	c := n.ss.conn
	c.writes -= d.memory
	d.memory = 0
	if d.granted {
		d.granted = false
		n.granted--
	}
	if d.big > 0 {
		for _, w := range c.srv.big.give(d.big) {
			if w != n {
				go w.resume() // its connection's lock is not ours to wait for
			}
		}
		d.big = 0
	}
	n.resumeLocked()
}

// resume lets tasks go on that wait for memory.
func (n *nexus) resume() {
	n.ss.conn.mu.Lock()
	defer n.ss.conn.mu.Unlock()
	n.resumeLocked()
}

func (n *nexus) resumeLocked() {
	for len(n.waiting) > 0 && n.grant(n.waiting[0]) {
		t := n.waiting[0]
		n.waiting = slices.Delete(n.waiting, 0, 1)
		n.ss.conn.ask(t)
		n.ss.conn.tx.work.Signal()
	}
}
