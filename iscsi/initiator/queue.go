package initiator

import (
	"sync"
	"sync/atomic"
)

// Queue has many transfers of one Disk under way without a goroutine for each:
// requests are started, Wait brings one that has ended. What is started between
// two calls of Wait is sent together, and whoever is in Wait reads the answers
// himself, so a request costs no switch between goroutines.
//
//	q := d.NewQueue()
//	for i := range bufs {
//		q.Read(bufs[i], at(i), i)
//	}
//	for {
//		e, ok := q.Wait()
//		…
//	}
//
// A Queue is used by one goroutine; a Disk may have many of them, beside other
// calls. It promises what ReadAt and WriteAt do, reconnection and repetition
// included. Requests end in any order; those to the same blocks must not be under
// way together if one writes. More than Options.Depth wait for their turn. In the
// steady state nothing is allocated.
type Queue struct {
	d *Disk

	// The user's.
	free    []*slot
	pending []*slot  // not begun
	out     []*slot  // ended, not told
	told    int      // of out
	under   int      // begun or pending, not told
	s       *session // of those that are here
	here    int      // requests that s performs
	aside   int      // requests that have a goroutine

	bell chan struct{} // holds one token
	late atomic.Int32  // requests that were answered, and that the writer has yet to put into done

	mu     sync.Mutex
	done   []*slot
	asleep bool     // Wait waits for the bell
	beside *session // nil, or whose answers it waits for
}

// Done is the end of a request.
type Done struct {
	Tag int   // as Read or Write was given it
	Err error // as ReadAt or WriteAt returns it
}

// slot is the place of a request. It belongs to the session, or to its goroutine,
// from when it is begun until it is in done.
type slot struct {
	q     *Queue
	p     []byte
	off   int64
	tag   int
	write bool
	by    worker
	first outcome // of the session
	err   error   // what is told
}

// worker is who performs a request.
type worker uint8

const (
	nobody worker = iota
	theSession
	aGoroutine
)

// NewQueue makes an empty queue. There is nothing to be closed.
func (d *Disk) NewQueue() *Queue {
	return &Queue{d: d, bell: make(chan struct{}, 1)}
}

// Read starts what ReadAt does. p is the queue's until Wait has told the end.
func (q *Queue) Read(p []byte, off int64, tag int) { q.start(p, off, tag, false) }

// Write starts what WriteAt does. p may not change until Wait has told the end.
func (q *Queue) Write(p []byte, off int64, tag int) { q.start(p, off, tag, true) }

// Wait returns a request that has ended, waiting for one if need be. It reports
// false if none is under way.
func (q *Queue) Wait() (Done, bool) {
	for {
		for q.told < len(q.out) {
			k := q.out[q.told]
			q.out[q.told] = nil
			q.told++
			if q.ended(k) {
				e := Done{k.tag, k.err}
				k.p, k.first, k.err = nil, outcome{}, nil
				q.free = append(q.free, k)
				q.under--
				return e, true
			}
		}
		if q.under == 0 {
			return Done{}, false
		}
		q.mu.Lock()
		q.done, q.out, q.told = q.out[:0], q.done, 0
		q.mu.Unlock()
		if len(q.out) == 0 {
			q.more()
		}
	}
}

func (q *Queue) start(p []byte, off int64, tag int, write bool) {
	var k *slot
	if n := len(q.free); n > 0 {
		k = q.free[n-1]
		q.free = q.free[:n-1]
	} else {
		k = &slot{q: q}
	}
	k.p, k.off, k.tag, k.write, k.by = p, off, tag, write, nobody
	q.under++
	if k.err = q.d.check(off, int64(len(p)), write); k.err != nil {
		q.ring(k)
		return
	}
	if len(q.pending) > 0 || !q.begin(k) {
		q.pending = append(q.pending, k)
	}
}

// begin has the session perform a request, or a goroutine where that takes more
// than one command of it. It reports false if there is no room for it now.
func (q *Queue) begin(k *slot) bool {
	d := q.d
	s := d.cur.Load()
	whole := len(k.p) > 0 && len(k.p) <= d.chunk && (k.off|int64(len(k.p)))&int64(d.facts.block-1) == 0
	if !whole || q.here > 0 && q.s != s || s.doubts.Load() != s.cleared.Load() || k.write && !d.part.TryRLock() {
		q.setAside(k)
		return true
	}
	s.mu.Lock()
	if s.err != nil || !s.ready() {
		lost := s.err != nil
		s.mu.Unlock()
		if k.write {
			d.part.RUnlock()
		}
		if lost {
			q.setAside(k)
		}
		return lost
	}
	k.by, k.first = theSession, outcome{s: s, epoch: d.epoch.Load()}
	q.s = s
	q.here++
	c := d.command(k.p, k.off, k.write)
	s.take(&c).slot = k
	s.mu.Unlock()
	return true
}

// setAside has a goroutine do whatever a request still takes.
func (q *Queue) setAside(k *slot) {
	k.by = aGoroutine
	q.aside++
	go func() {
		k.err = k.finish()
		q.ring(k)
	}()
}

// finish does whatever a request still takes.
func (k *slot) finish() (err error) {
	d := k.q.d
	switch {
	case k.write && k.first.s == nil:
		_, err = d.WriteAt(k.p, k.off)
	case k.write:
		d.part.RLock()
		defer d.part.RUnlock()
		err = d.move(k.p, k.off, true, &k.first)
	case k.first.s == nil:
		_, err = d.ReadAt(k.p, k.off)
	default:
		err = d.move(k.p, k.off, false, &k.first)
	}
	return err
}

// ended reports whether a request of done is over. If not, it is set aside.
func (q *Queue) ended(k *slot) bool {
	switch k.by {
	case theSession:
		q.here--
		if s := k.first.s; k.first.err != nil || s.doubts.Load() != s.cleared.Load() {
			q.setAside(k)
			return false
		}
		if k.write {
			q.d.stable.wrote(k.first.epoch)
		}
	case aGoroutine:
		q.aside--
	case nobody:
	}
	return true
}

// more waits until something is in done. It reads for that where only what the
// target has yet to send can bring it, and nobody reads.
func (q *Queue) more() {
	q.beginPending()
	s := q.s
	if q.here > 0 && q.aside == 0 && q.late.Load() == 0 && s.toLead() {
		s.leadFor(party{q: q})
		return
	}
	q.mu.Lock()
	if len(q.done) > 0 {
		q.mu.Unlock()
		return
	}
	q.asleep = true
	if q.here > 0 {
		q.beside = s
		s.waiting.Add(1)
	}
	q.mu.Unlock()
	if q.here > 0 {
		s.attend()
	}
	<-q.bell
}

func (q *Queue) beginPending() {
	n := 0
	for n < len(q.pending) && q.begin(q.pending[n]) {
		n++
	}
	if n == 0 && len(q.pending) > 0 && q.here == 0 && q.aside == 0 {
		// Others have taken all the room: one waits for it as they do.
		q.setAside(q.pending[0])
		n = 1
	}
	if n > 0 {
		q.pending = append(q.pending[:0], q.pending[n:]...)
	}
}

// any reports whether something is in done.
func (q *Queue) any() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.done) > 0
}

// ring puts a request into done, and wakes Wait.
func (q *Queue) ring(k *slot) {
	q.mu.Lock()
	q.done = append(q.done, k)
	asleep := q.asleep
	if q.asleep = false; q.beside != nil {
		q.beside.waiting.Add(-1)
		q.beside = nil
	}
	q.mu.Unlock()
	if asleep {
		q.bell <- struct{}{}
	}
}

// take is how a session gives a command back.
func (q *Queue) take(s *session, t *task) {
	k := t.slot
	k.first.n, k.first.err = t.result()
	late := t.late
	s.put(t)
	if k.write {
		q.d.part.RUnlock()
	}
	q.ring(k)
	if late {
		q.late.Add(-1)
	}
}
