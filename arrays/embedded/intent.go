package embedded

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cleave-san/cleave/lun"
)

// intentLog says which coarse regions of a device may differ between its
// mirrors if the machine stops now. A region's mark is stable before a write
// to it begins, and is cleared, lazily, after the mirrors were synced.
//
// Marks are set for many writes by one sync (see held). Regions are small, so
// that random writes use up the limit with what they wrote and not with what lies
// around it; a stream, which would have to wait for a sync at every region, has
// those before it marked ahead.
type intentLog struct {
	file  *mapFile
	limit int // regions
	// early is how many regions may be marked before marks are cleared even if
	// none is idle: writes should never find the log full.
	early int
	// maxOp is the most bytes that one begin may ask for: two fit at once.
	maxOp int64
	full  func() // asks for a clean; must not block

	mu       sync.Mutex
	changed  sync.Cond
	regions  map[int64]*logRegion
	spare    []*logRegion // not in use
	fresh    []*logRegion // marked in memory, not yet being flushed
	flushed  []*logRegion // memory for the next fresh
	queue    []*held      // of writes that wait for a region in fresh
	served   []*held      // of those that wait for the flush under way
	marks    []int64      // of the flush under way
	streams  [8]int64     // regions at which a stream would go on, the latest ones
	stream   int          // of streams, the next to be replaced
	asked    bool         // full was called and no clean has begun since
	flushing bool
	// adopted are the marks that a crash left and that are not recovered; nil
	// if it left none.
	adopted  *bitmap
	tick     uint32
	failures int // of clean
	failure  error
	closed   bool

	waiting atomic.Int32 // in admit; changes under mu
	writers atomic.Int32 // between begin and end
}

type logRegion struct {
	index    int64
	inflight atomic.Int32 // goes up under the log's mu
	touched  uint32       // tick of the last write
	queued   bool         // in fresh
	stable   bool
	cleaning bool // a clean is under way and no write came since it began
	clearing bool // its mark is being cleared and no write came since
}

var errMapClosed = fmt.Errorf("intent log: %w", lun.ErrClosed)

const (
	// minMarks is the smallest limit, in regions.
	minMarks = 4
	// markAhead is how many bytes before a stream are marked with it.
	markAhead = 8 << 20
	// breath is after how many regions a long loop lets writes go on.
	breath = 256
)

func newIntentLog(f *mapFile, limitBytes int64, full func()) *intentLog {
	l := &intentLog{file: f, full: full, limit: max(int(limitBytes/f.unit), minMarks), regions: make(map[int64]*logRegion)}
	l.early = max(l.limit/2, 32)
	for i := range l.streams {
		l.streams[i] = -1
	}
	l.maxOp = min(int64(l.limit/2-1)*f.unit, maxTransfer) // it may touch one region more
	l.changed.L = &l.mu
	return l
}

// cleanEarly asks for a clean before the log is full.
func (l *intentLog) cleanEarly() {
	if len(l.regions) > l.early && !l.asked {
		l.asked = true
		l.full()
	}
}

// add takes a region into the log. One that a crash left marked stays so.
func (l *intentLog) add(i int64) *logRegion {
	r := new(logRegion)
	if n := len(l.spare); n > 0 {
		r, l.spare = l.spare[n-1], l.spare[:n-1]
	}
	r.index, r.touched, r.stable = i, l.tick, l.isAdopted(i)
	l.regions[i] = r
	if !r.stable {
		l.mark(r)
	}
	return r
}

func (l *intentLog) isAdopted(i int64) bool {
	return l.adopted != nil && i < l.adopted.n() && l.adopted.get(i)
}

// ahead marks what lies before a stream: a write that found its regions from
// missed to last not marked where an earlier such write, and what was marked
// with it, ended. A quarter of the log stays for others.
func (l *intentLog) ahead(missed, last int64) {
	for i, next := range l.streams {
		if next != missed {
			continue
		}
		end := min(last+markAhead/l.file.unit, l.file.n()-1)
		for last < end && l.count() < l.limit*3/4 {
			if last++; l.regions[last] == nil {
				l.add(last)
			}
		}
		l.streams[i] = last + 1
		return
	}
	l.streams[l.stream] = last + 1
	l.stream = (l.stream + 1) % len(l.streams)
}

// count is how many regions count towards the limit, and those that are adopted
// and written to again count twice.
func (l *intentLog) count() int {
	if l.adopted != nil {
		return len(l.regions) + int(l.adopted.count())
	}
	return len(l.regions)
}

// room is how many regions more may be marked. If a damaged map left more marks
// than the limit allows, writes do not wait until nearly all of them are
// recovered: only what is marked from now on is bounded.
func (l *intentLog) room() int {
	if l.adopted != nil && l.adopted.count() > int64(l.limit) {
		return l.limit - len(l.regions)
	}
	return l.limit - l.count()
}

// mark sets a region's mark. It is stable after the next flush.
func (l *intentLog) mark(r *logRegion) {
	r.queued = true
	l.fresh = append(l.fresh, r)
	l.file.set(r.index)
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
	l.asked = false
	var chosen []*logRegion
	n := 0
	for _, r := range l.regions {
		if r.cleaning = r.inflight.Load() == 0 && r.stable && (!idle || l.tick-r.touched >= 2); r.cleaning {
			chosen = append(chosen, r)
		}
		n++
		l.breathe(n)
	}
	l.mu.Unlock()
	if len(chosen) == 0 {
		return nil
	}
	err := sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(err, errNotNow) {
		return err
	}
	if err == nil {
		err = l.clearLocked(chosen)
	}
	if err != nil {
		l.failures++
		l.failure = err
	}
	l.changed.Broadcast()
	return err
}

// breathe lets those go on who wait for l.mu, in a loop's n-th round.
func (l *intentLog) breathe(n int) {
	if n%breath == 0 {
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
	}
}

// clearLocked clears the marks of regions that are clean. Room is made when that
// is stable, and not for regions that a write has come to meanwhile. Marks that
// a crash left stay until they are recovered.
func (l *intentLog) clearLocked(chosen []*logRegion) error {
	for i, r := range chosen {
		if r.cleaning {
			r.cleaning, r.stable, r.clearing = false, false, true
			if !l.isAdopted(r.index) {
				l.file.clear(r.index)
			}
		}
		l.breathe(i + 1)
	}
	for l.flushing {
		l.changed.Wait()
	}
	err := l.flushLocked(true)
	for i, r := range chosen {
		if err == nil && r.clearing {
			delete(l.regions, r.index)
			l.spare = append(l.spare, r)
			r.clearing = false
		}
		l.breathe(i + 1)
	}
	l.spare = l.spare[:min(len(l.spare), l.limit)]
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
	if l.file.count() == 0 {
		return
	}
	l.adopted = newBitmap(l.file.n())
	l.adopted.or(l.file.bitmap)
}

// adoptAll marks everything, as if a crash had left it so.
func (l *intentLog) adoptAll() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.file.n() {
		l.file.set(i)
	}
	l.adopt()
	for l.flushing {
		l.changed.Wait()
	}
	return l.flushLocked(true)
}

// nextAdopted is the first region from i on that adopt took over and recovered
// has not let go, or -1.
func (l *intentLog) nextAdopted(i int64) int64 {
	if l.adopted == nil || i >= l.adopted.n() {
		return -1
	}
	return l.adopted.next(i)
}

// leftAdopted is how many regions adopt took over and recovered has not let go.
func (l *intentLog) leftAdopted() int64 { return l.adopted.count() }

// recovered lets go of a region that adopt took over. Its mark is cleared as
// that of one that was written to just now: what was copied in it is not stable
// for a clean that began before.
func (l *intentLog) recovered(i int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.regions[i]; r == nil {
		l.add(i)
	} else if r.clearing { // its mark was not
		r.clearing, r.stable = false, true
	} else {
		r.cleaning = false
	}
	l.adopted.clear(i)
	l.cleanEarly()
	if l.waiting.Load() > 0 {
		l.changed.Broadcast()
	}
}

// marked is how many regions are marked, or a few more.
func (l *intentLog) marked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count()
}

// close fails whoever waits.
func (l *intentLog) close() {
	l.mu.Lock()
	l.closed = true
	l.changed.Broadcast()
	l.mu.Unlock()
}
