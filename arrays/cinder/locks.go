package cinder

import (
	"context"
	"sync"

	"github.com/cleave-san/cleave/arrays/driver"
)

// locks keep calls about one thing from overtaking each other: a snapshot that is
// asked for twice at once is made once. The zero value is ready.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	turn chan struct{}
	want int
}

// lock waits for its turn, until ctx ends. The lock is held until unlock is called
// and every request has ended that was made with the context returned and can't
// be taken back.
func (l *locks) lock(ctx context.Context, key string) (held context.Context, unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*lock{}
	}
	k := l.held[key]
	if k == nil {
		k = &lock{turn: make(chan struct{}, 1)}
		l.held[key] = k
	}
	k.want++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.want--; k.want == 0 {
			delete(l.held, key)
		}
	}
	select {
	case k.turn <- struct{}{}:
		h := &hold{n: 1, release: func() { <-k.turn; leave() }}
		return context.WithValue(ctx, holdKey{}, h), h.done, nil
	case <-ctx.Done():
		leave()
		return nil, nil, driver.Errorf(driver.Unreachable, "waiting for another call about %q: Cinder was not asked: %w", key, context.Cause(ctx))
	}
}

// hold is a lock that is held by a call and by its requests under way. It travels
// in the call's context.
type hold struct {
	mu      sync.Mutex
	n       int
	release func()
}

type holdKey struct{}

// extend holds the lock of a context, if there is one, until done is called too.
func extend(ctx context.Context) (done func()) {
	h, _ := ctx.Value(holdKey{}).(*hold)
	if h == nil {
		return func() {}
	}
	h.mu.Lock()
	h.n++
	h.mu.Unlock()
	return h.done
}

func (h *hold) done() {
	h.mu.Lock()
	h.n--
	last := h.n == 0
	h.mu.Unlock()
	if last {
		h.release()
	}
}
