package embedded

import (
	"sync"
	"time"
)

// paceWindow is over how long a pace is measured, at least, once there is so
// much of it.
const paceWindow = 5 * time.Second

// pace tells how fast something goes now: over the last 5 to 10 seconds, so that
// an estimate follows a limit that was changed or a disk that became slow.
type pace struct {
	mu       sync.Mutex
	from, to mark
}

// mark is how far something was at a moment.
type mark struct {
	at time.Time
	n  int64
}

// start begins at n.
func (p *pace) start(at time.Time, n int64) {
	p.mu.Lock()
	p.from, p.to = mark{at, n}, mark{at, n}
	p.mu.Unlock()
}

// reach notes that it is at n.
func (p *pace) reach(at time.Time, n int64) {
	p.mu.Lock()
	if at.Sub(p.to.at) >= paceWindow {
		p.from, p.to = p.to, mark{at, n}
	}
	p.mu.Unlock()
}

// perSecond is the pace of what is at n now, 0 if it is not known.
func (p *pace) perSecond(at time.Time, n int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := at.Sub(p.from.at)
	if p.from.at.IsZero() || d <= 0 {
		return 0
	}
	return int64(float64(n-p.from.n) / d.Seconds())
}

// timeFor is how long n bytes take at a pace; 0 if nothing moves.
func timeFor(n, perSecond int64) time.Duration {
	if n <= 0 || perSecond <= 0 {
		return 0
	}
	return time.Duration(float64(n) / float64(perSecond) * float64(time.Second))
}

// expectedPace is how fast a resync will be: as the last one was, within the
// limit. 0 if neither is known.
func (a *Array) expectedPace() int64 {
	last, limit := a.lastPace.Load(), a.copies.limit()
	switch {
	case last == 0:
		return limit
	case limit == 0:
		return last
	}
	return min(last, limit)
}
