package embedded

import (
	"context"
	"sync"
	"time"
)

// rate limits copying to so many bytes a second, without bursts. The zero value
// does not limit.
type rate struct {
	mu      sync.Mutex
	perSec  int64
	next    time.Time
	changed chan struct{} // closed when the limit changes; nil while nobody waits
}

// set changes the limit, for those who wait as well: what an earlier one had
// them wait for is forgotten.
func (r *rate) set(perSec int64) {
	r.mu.Lock()
	r.perSec, r.next = perSec, time.Time{}
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
	r.mu.Unlock()
}

func (r *rate) limit() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(r.perSec, 0)
}

// wait returns when n more bytes may be copied, or with ctx's error.
func (r *rate) wait(ctx context.Context, n int64) error {
	for {
		d, changed := r.reserve(n)
		if d <= 0 {
			return ctx.Err()
		}
		t := time.NewTimer(d)
		select {
		case <-t.C:
			return nil
		case <-changed:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// reserve is how long to wait until n bytes may be copied. It holds until
// changed is closed.
func (r *rate) reserve(n int64) (d time.Duration, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.perSec <= 0 {
		return 0, nil
	}
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	now := time.Now()
	if r.next.Before(now) {
		r.next = now
	}
	d = r.next.Sub(now)
	r.next = r.next.Add(time.Duration(float64(n) / float64(r.perSec) * float64(time.Second)))
	return d, r.changed
}
