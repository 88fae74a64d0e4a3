package embedded

import (
	"context"
	"sync"
	"time"
)

// rate limits copying to so many bytes a second, without bursts. The zero value
// does not limit.
type rate struct {
	mu     sync.Mutex
	perSec int64
	next   time.Time
}

func (r *rate) set(perSec int64) {
	r.mu.Lock()
	r.perSec = perSec
	r.mu.Unlock()
}

func (r *rate) limit() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(r.perSec, 0)
}

// wait returns when n more bytes may be copied, or with ctx's error.
func (r *rate) wait(ctx context.Context, n int64) error {
	r.mu.Lock()
	if r.perSec <= 0 {
		r.mu.Unlock()
		return ctx.Err()
	}
	now := time.Now()
	if r.next.Before(now) {
		r.next = now
	}
	d := r.next.Sub(now)
	r.next = r.next.Add(time.Duration(float64(n) / float64(r.perSec) * float64(time.Second)))
	r.mu.Unlock()
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
