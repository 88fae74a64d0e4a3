package embedded

import (
	"fmt"
	"runtime"
)

// held is the regions of a write that an intent log has marked. Its owner
// provides the memory, and may use it again after end. The zero value is ready.
//
// Writes whose marks are not stable yet are served together: one of them flushes
// for all who came before it began, and those who come meanwhile wait for the
// next flush, for which one of them is woken when this one is over. So every
// write waits for two flushes at most.
type held struct {
	regions []*logRegion
	turn    chan turn // of one
}

// turn is what a write that waits is woken for.
type turn struct {
	flush bool  // it may have to flush, for itself and others
	err   error // else this came of the flush that it waited for
}

// begin returns when all regions of [off, off+n) are marked and the marks
// stable. Each begin that returns nil is followed by one end.
func (l *intentLog) begin(h *held, off, n int64) error {
	first, last := off/l.file.unit, (off+n-1)/l.file.unit
	l.mu.Lock()
	if err := l.admit(h, first, last); err != nil {
		l.mu.Unlock()
		return err
	}
	l.hold(h, first, last)
	err := l.await(h)
	if err != nil {
		l.end(h)
	}
	return err
}

// admit finds the regions from first to last, nil for those that are not in the
// log, and waits until these fit under the limit. It holds nothing while it
// waits, so those in flight always get to their end.
func (l *intentLog) admit(h *held, first, last int64) error {
	failures := l.failures
	for {
		if l.closed {
			return errMapClosed
		}
		missing := 0
		h.regions = h.regions[:0]
		for i := first; i <= last; i++ {
			r := l.regions[i]
			h.regions = append(h.regions, r)
			if r == nil && !l.isAdopted(i) {
				missing++
			}
		}
		if missing == 0 || l.room() >= missing {
			return nil
		}
		if l.failures != failures {
			return fmt.Errorf("intent log is full and can't be cleared: %w", l.failure)
		}
		l.full()
		l.waiting.Add(1)
		l.changed.Wait()
		l.waiting.Add(-1)
	}
}

// hold marks the regions from first to last, which admit found, for a write.
func (l *intentLog) hold(h *held, first, last int64) {
	missed := int64(-1)
	for k, r := range h.regions {
		if i := first + int64(k); r == nil {
			r = l.add(i)
			h.regions[k] = r
			if missed < 0 {
				missed = i
			}
		} else if r.clearing {
			r.clearing = false
			l.mark(r)
		}
		r.inflight.Add(1)
		r.touched = l.tick
		r.cleaning = false
	}
	l.writers.Add(1)
	if missed >= 0 {
		l.ahead(missed, last)
		l.cleanEarly()
	}
}

// await returns when the marks of all regions are stable. l.mu is held at call,
// and not at return.
func (l *intentLog) await(h *held) error {
	for {
		stable, queued := h.state()
		if stable {
			l.mu.Unlock()
			return nil
		}
		if !l.flushing {
			err := l.flushLocked(false)
			if err != nil {
				l.mu.Unlock()
				return err
			}
			continue
		}
		if h.turn == nil {
			h.turn = make(chan turn, 1)
		}
		if queued {
			l.queue = append(l.queue, h)
		} else {
			l.served = append(l.served, h)
		}
		l.mu.Unlock()
		if t := <-h.turn; !t.flush {
			return t.err
		}
		l.mu.Lock()
	}
}

// state reports whether all marks are stable, and whether one of those that are
// not waits for the next flush.
func (h *held) state() (stable, queued bool) {
	stable = true
	for _, r := range h.regions {
		stable = stable && r.stable
		queued = queued || r.queued
	}
	return stable, queued
}

// flushLocked makes all marks stable, and with cleared, those that were cleared.
// l.mu is held at call and return, and released while the disk works.
//
// Where the disk is so fast that hardly anybody would come meanwhile, a sync for
// each write would cost more than the write. So those who are about to come, since
// they are at the end of another write, get their chance first.
func (l *intentLog) flushLocked(cleared bool) (err error) {
	l.flushing = true
	if !cleared && int(l.writers.Load()) > len(l.queue)+1 {
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
	}
	batch := l.fresh
	l.fresh, l.flushed = l.flushed[:0], nil
	l.served, l.queue = append(l.served, l.queue...), l.queue[:0]
	l.marks = l.marks[:0]
	for _, r := range batch {
		r.queued = false
		l.marks = append(l.marks, r.index)
	}
	l.mu.Unlock()
	if cleared {
		err = l.file.flush()
	} else {
		err = l.file.flushMarks(l.marks)
	}
	l.mu.Lock()
	l.flushing = false
	if err == nil {
		for _, r := range batch {
			r.stable = true
		}
	}
	l.flushed = batch[:0]
	l.callUp(err)
	l.changed.Broadcast()
	return err
}

// callUp wakes those for whom a flush was, and one of those who wait for the
// next. l.mu is held.
func (l *intentLog) callUp(err error) {
	for _, h := range l.served {
		h.turn <- turn{err: err}
	}
	l.served = l.served[:0]
	if n := len(l.queue); n > 0 {
		h := l.queue[n-1]
		l.queue = l.queue[:n-1]
		h.turn <- turn{flush: true}
	}
}

// end says that a write is over, whatever came of it.
func (l *intentLog) end(h *held) {
	for _, r := range h.regions {
		r.inflight.Add(-1)
	}
	l.writers.Add(-1)
	if l.waiting.Load() > 0 { // who waits may wait for a clean that found the regions in use
		l.mu.Lock()
		l.changed.Broadcast()
		l.mu.Unlock()
	}
}
