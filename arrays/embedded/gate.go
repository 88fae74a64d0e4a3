package embedded

import (
	"sync"
	"sync/atomic"
)

// gate is where operations join the current epoch. An operation passes it by one
// change of shared memory, the epoch's count, as every read and write does.
//
// It looks twice: an operation that has counted itself in and still sees the
// epoch in the gate is part of it, since whoever shuts the gate after that finds
// it counted; one that doesn't takes itself back. So once shut has returned
// nobody joins the epoch any more, and until reopen nobody joins another.
type gate struct {
	cur  atomic.Pointer[epoch] // nil while the gate is shut
	held sync.Mutex            // by whoever shut it
}

// enter joins the current epoch; the caller leaves it. It waits while the gate
// is shut.
func (g *gate) enter() *epoch {
	for {
		e := g.cur.Load()
		if e == nil {
			g.held.Lock()
			e = g.cur.Load()
			g.held.Unlock()
		}
		e.users.Add(1)
		if g.cur.Load() == e {
			return e
		}
		e.leave()
	}
}

// shut keeps operations from joining. The caller calls reopen soon, and does
// nothing in between that may block.
func (g *gate) shut() {
	g.held.Lock()
	g.cur.Store(nil)
}

// reopen ends shut: from here on operations join e.
func (g *gate) reopen(e *epoch) {
	g.cur.Store(e)
	g.held.Unlock()
}
