package target

import (
	"net/netip"
	"sync"
	"time"
)

// limiter keeps refusals from filling the log: one line per remote address
// every limiterEvery, the rest counted. The zero value is ready.
type limiter struct {
	mu   sync.Mutex
	seen map[netip.Addr]*refusal
}

type refusal struct {
	last   time.Time
	missed int
}

const (
	limiterEvery = 10 * time.Second
	limiterMax   = 1024 // addresses remembered
)

// allow reports whether a line about addr may be written now, and how many were
// left out since the last one.
func (l *limiter) allow(addr netip.Addr, now time.Time) (ok bool, missed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.seen[addr]
	switch {
	case r == nil && len(l.seen) >= limiterMax:
		for a, o := range l.seen {
			if now.Sub(o.last) >= limiterEvery {
				delete(l.seen, a)
			}
		}
		if len(l.seen) >= limiterMax {
			return false, 0
		}
		fallthrough
	case r == nil:
		if l.seen == nil {
			l.seen = map[netip.Addr]*refusal{}
		}
		l.seen[addr] = &refusal{last: now}
		return true, 0
	case now.Sub(r.last) < limiterEvery:
		r.missed++
		return false, 0
	}
	missed, r.missed, r.last = r.missed, 0, now
	return true, missed
}
