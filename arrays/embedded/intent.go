package embedded

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cleave-san/cleave/lun"
)

// intentLog says which coarse regions of a device may differ between its
// mirrors if the machine stops now. A region's mark is stable before a write
// to it begins, and is cleared, lazily, after the mirrors were synced.
//
// Marks are set for many writes by one sync: whoever finds the file idle
// writes for all who wait.
type intentLog struct {
	file  *mapFile
	limit int // regions
	// maxOp is the most bytes that one begin may ask for: two fit at once.
	maxOp int64
	full  func() // asks for a clean; must not block

	mu       sync.Mutex
	changed  sync.Cond
	regions  map[int64]*logRegion
	fresh    []*logRegion // marked in memory, not yet being flushed
	flushing bool
	tick     uint32
	waiting  int // in admit
	failures int // of clean
	failure  error
	closed   bool
}

type logRegion struct {
	index    int64
	inflight int
	touched  uint32 // tick of the last write
	stable   bool
	adopted  bool // left by a crash, and in flight for the recovery
	cleaning bool // a clean is under way and no write came since it began
	clearing bool // its mark is being cleared and no write came since
}

var errMapClosed = fmt.Errorf("intent log: %w", lun.ErrClosed)

// minMarks is the smallest limit, in regions.
const minMarks = 4

func newIntentLog(f *mapFile, limitBytes int64, full func()) *intentLog {
	l := &intentLog{file: f, full: full, limit: max(int(limitBytes/f.unit), minMarks), regions: make(map[int64]*logRegion)}
	l.maxOp = min(int64(l.limit/2-1)*f.unit, maxTransfer) // it may touch one region more
	l.changed.L = &l.mu
	return l
}

// begin returns when all regions of [off, off+n) are marked and the marks
// stable. Each begin that returns nil is followed by one end.
func (l *intentLog) begin(off, n int64) error {
	first, last := off/l.file.unit, (off+n-1)/l.file.unit
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.admit(first, last); err != nil {
		return err
	}
	stable := true
	for i := first; i <= last; i++ {
		r := l.regions[i]
		if r == nil {
			r = &logRegion{index: i}
			l.regions[i] = r
			l.mark(r)
		} else if r.clearing {
			r.clearing = false
			l.mark(r)
		}
		r.inflight++
		r.touched = l.tick
		r.cleaning = false
		stable = stable && r.stable
	}
	for !stable {
		if l.flushing {
			l.changed.Wait()
		} else if err := l.flushLocked(); err != nil {
			l.release(first, last)
			return err
		}
		stable = true
		for i := first; i <= last; i++ {
			stable = stable && l.regions[i].stable
		}
	}
	return nil
}

// mark sets a region's mark. It is stable after the next flush.
func (l *intentLog) mark(r *logRegion) {
	l.fresh = append(l.fresh, r)
	l.file.set(r.index)
}

// admit waits until the regions from first to last fit under the limit. It
// holds nothing while it waits, so those in flight always get to their end.
func (l *intentLog) admit(first, last int64) error {
	failures := l.failures
	for {
		if l.closed {
			return errMapClosed
		}
		missing := 0
		for i := first; i <= last; i++ {
			if l.regions[i] == nil {
				missing++
			}
		}
		if missing == 0 || len(l.regions)+missing <= l.limit {
			return nil
		}
		if l.failures != failures {
			return fmt.Errorf("intent log is full and can't be cleared: %w", l.failure)
		}
		l.full()
		l.waiting++
		l.changed.Wait()
		l.waiting--
	}
}

// flushLocked makes all marks stable. l.mu is held at call and return, and
// released while the disk works.
func (l *intentLog) flushLocked() error {
	batch := l.fresh
	l.fresh = nil
	l.flushing = true
	l.mu.Unlock()
	err := l.file.flush()
	l.mu.Lock()
	l.flushing = false
	if err == nil {
		for _, r := range batch {
			r.stable = true
		}
	}
	l.changed.Broadcast()
	return err
}

// end says that a write to the range is over, whatever came of it.
func (l *intentLog) end(off, n int64) {
	l.mu.Lock()
	l.release(off/l.file.unit, (off+n-1)/l.file.unit)
	l.mu.Unlock()
}

func (l *intentLog) release(first, last int64) {
	for i := first; i <= last; i++ {
		l.regions[i].inflight--
	}
	if l.waiting > 0 {
		l.changed.Broadcast()
	}
}

// wake has those who wait for room look again.
func (l *intentLog) wake() {
	l.mu.Lock()
	l.changed.Broadcast()
	l.mu.Unlock()
}

// errNotNow says that marks can't be cleared until a split has come to its end.
// Whoever waits for room is woken then.
var errNotNow = errors.New("a mirror that is being split off has failed")

// clean clears the marks of regions that nobody writes to, after sync has made
// what was written to them stable. With idle, only regions that were not
// written to since the tick before the last.
func (l *intentLog) clean(idle bool, sync func() error) error {
	l.mu.Lock()
	n := 0
	for _, r := range l.regions {
		r.cleaning = r.inflight == 0 && r.stable && (!idle || l.tick-r.touched >= 2)
		if r.cleaning {
			n++
		}
	}
	l.mu.Unlock()
	if n == 0 {
		return nil
	}
	err := sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(err, errNotNow) {
		return err
	}
	if err == nil {
		err = l.clearLocked()
	}
	if err != nil {
		l.failures++
		l.failure = err
	}
	l.changed.Broadcast()
	return err
}

// clearLocked clears the marks of regions that are clean. Room is made when that
// is stable, and not for regions that a write has come to meanwhile.
func (l *intentLog) clearLocked() error {
	var cleared []*logRegion
	for _, r := range l.regions {
		if r.cleaning {
			r.cleaning, r.stable, r.clearing = false, false, true
			l.file.clear(r.index)
			cleared = append(cleared, r)
		}
	}
	for l.flushing {
		l.changed.Wait()
	}
	err := l.flushLocked()
	for _, r := range cleared {
		if err == nil && r.clearing {
			delete(l.regions, r.index)
		}
	}
	return err
}

// nextTick is called once in every LogIdle/2.
func (l *intentLog) nextTick() (marked int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tick++
	return len(l.regions)
}

// adopt takes over the marks that a crash left in the file.
func (l *intentLog) adopt() {
	for i := int64(0); ; i++ {
		if i = l.file.next(i); i < 0 {
			return
		}
		l.regions[i] = &logRegion{index: i, stable: true, inflight: 1, adopted: true}
	}
}

// adopted are the regions that adopt took over and recovered has not let go,
// in order.
func (l *intentLog) adopted() []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []int64
	for i, r := range l.regions {
		if r.adopted {
			out = append(out, i)
		}
	}
	slices.Sort(out)
	return out
}

// recovered lets go of a region that adopt took over.
func (l *intentLog) recovered(i int64) {
	l.mu.Lock()
	l.regions[i].adopted = false
	l.release(i, i)
	l.mu.Unlock()
}

// marked is how many regions are marked.
func (l *intentLog) marked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.regions)
}

// close fails whoever waits.
func (l *intentLog) close() {
	l.mu.Lock()
	l.closed = true
	l.changed.Broadcast()
	l.mu.Unlock()
}
