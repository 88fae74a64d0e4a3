package embedded

import (
	"context"
	"sync"
)

// ranges gives out exclusive use of byte ranges of one device, so that writes
// that overlap land in the same order on every mirror. Those who ask first are
// served first; ranges that don't overlap never wait for one another.
type ranges struct {
	mu          sync.Mutex
	woken       sync.Cond
	first, last *span
	waiting     int
}

// span is one range in use or waited for. Its owner provides the memory.
type span struct {
	off, end   int64
	prev, next *span
}

func (r *ranges) init() { r.woken.L = &r.mu }

// lock waits until no earlier range overlaps s.
func (r *ranges) lock(s *span, off, n int64) {
	r.mu.Lock()
	r.enqueue(s, off, n)
	for r.blocked(s) {
		r.waiting++
		r.woken.Wait()
		r.waiting--
	}
	r.mu.Unlock()
}

// ask is the first half of lock: whoever asks later for what overlaps s waits
// for its unlock. await is the second.
func (r *ranges) ask(s *span, off, n int64) {
	r.mu.Lock()
	r.enqueue(s, off, n)
	r.mu.Unlock()
}

// await waits until no earlier range overlaps s, or ctx ends, and reports which
// it was. Either way s is to be unlocked.
func (r *ranges) await(ctx context.Context, s *span) bool {
	defer context.AfterFunc(ctx, func() {
		r.mu.Lock()
		r.woken.Broadcast()
		r.mu.Unlock()
	})()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.blocked(s) {
		if ctx.Err() != nil {
			return false
		}
		r.waiting++
		r.woken.Wait()
		r.waiting--
	}
	return true
}

func (r *ranges) enqueue(s *span, off, n int64) {
	s.off, s.end = off, off+n
	s.prev, s.next = r.last, nil
	if r.last != nil {
		r.last.next = s
	} else {
		r.first = s
	}
	r.last = s
}

// blocked reports whether a range that was asked for before s overlaps it.
func (r *ranges) blocked(s *span) bool {
	for e := s.prev; e != nil; e = e.prev {
		if e.off < s.end && s.off < e.end {
			return true
		}
	}
	return false
}

func (r *ranges) unlock(s *span) {
	r.mu.Lock()
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		r.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		r.last = s.prev
	}
	s.prev, s.next = nil, nil
	if r.waiting > 0 {
		r.woken.Broadcast()
	}
	r.mu.Unlock()
}
