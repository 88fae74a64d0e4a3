package embedded

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cleave-san/cleave/lun"
)

const (
	// regionSize is how finely changes between two splits are known.
	regionSize = 64 << 10
	// maxTransfer is the most that one pass of the write path handles.
	maxTransfer = 32 << 20
	// parallelFrom is the size from which mirrors are written at once, if a
	// processor may be free: below it, waking a second thread costs more than
	// it saves.
	parallelFrom = 128 << 10
	// maxVolume is the largest volume in bytes.
	maxVolume = 16 << 40
)

// set is a device made of raw files that are kept equal: a volume's mirrors,
// or the one file of a split that is written to. It is the write path.
//
// Locks, in the order in which they are taken: a range of order, state, gate.
type set struct {
	label string // for messages: `volume "db"`
	size  atomic.Int64
	log   *intentLog
	order ranges

	// state serialises changes of the epoch that something failed for. It is
	// never held by an operation that goes well.
	state sync.Mutex
	gate  gate
	cur   *epoch // what the gate leads to while it is open

	// dropping is told, under state, that p failed, and makes it stable that it
	// is no longer in the set; if it can't, the operation fails. Only then does
	// the epoch begin in which others go on without p: what is acknowledged or
	// stable there is not on p, and a crash must not bring p back.
	dropping func(p *plex, cause error) error
	// dropped is told, under state, that the epoch has begun; old was the last
	// that p was in.
	dropped func(p *plex, old *epoch, cause error)

	applying atomic.Int32 // operations at work on the files

	// fatal is set when a change that must be stable could not be made so:
	// nothing is acknowledged from then on.
	fatal atomic.Pointer[error]

	cleaning    sync.Mutex
	cleanWanted atomic.Bool
	leaving     atomic.Pointer[leaving]
}

var errOffline = errors.New("no mirror can be used")

// enter joins the current epoch; the caller leaves it.
func (s *set) enter() *epoch { return s.gate.enter() }

// start opens the set: there was no epoch before.
func (s *set) start(first epoch0) {
	s.cur = newEpoch(first)
	s.gate.cur.Store(s.cur)
}

// flip makes next the current epoch and returns the one before, which has
// ended but for the operations still under way in it.
func (s *set) flip(next epoch0) *epoch {
	n := newEpoch(next)
	s.gate.shut()
	old := s.succeed(n)
	s.gate.reopen(n)
	old.leave()
	return old
}

// succeed makes n current. The gate is shut. When it is open again the caller
// calls leave on what this returns.
func (s *set) succeed(n *epoch) (old *epoch) {
	old = s.cur
	old.follow(n)
	s.cur = n
	return old
}

// op is one write, trim or zeroing on all files of an epoch.
type op struct {
	kind   opKind
	p      []byte
	off, n int64
	held   held
	span   span
	e      *epoch
	errs   []error
}

type opKind int

const (
	opWrite opKind = iota
	opTrim
	opZero
)

var ops = sync.Pool{New: func() any { return new(op) }}

func (s *set) writeAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), s.size.Load()); err != nil {
		return 0, fmt.Errorf("writing %d bytes at %d of %s: %w", len(p), off, s.label, err)
	}
	for n := 0; n < len(p); {
		k := int(min(int64(len(p)-n), s.log.maxOp))
		if err := s.do(opWrite, p[n:n+k], off+int64(n), int64(k)); err != nil {
			return n, fmt.Errorf("writing %d bytes at %d of %s: %w", len(p), off, s.label, err)
		}
		n += k
	}
	return len(p), nil
}

func (s *set) trim(off, n int64) error { return s.fill(opTrim, "trimming", off, n) }
func (s *set) zero(off, n int64) error { return s.fill(opZero, "zeroing", off, n) }

func (s *set) fill(k opKind, verb string, off, n int64) error {
	err := lun.CheckRange(off, n, s.size.Load())
	for at, end := off, off+n; err == nil && at < end; at += s.log.maxOp {
		err = s.do(k, nil, at, min(end-at, s.log.maxOp))
	}
	if err != nil {
		return fmt.Errorf("%s %d bytes at %d of %s: %w", verb, n, off, s.label, err)
	}
	return nil
}

// do performs one change of at most log.maxOp bytes.
func (s *set) do(k opKind, p []byte, off, n int64) error {
	if e := s.fatal.Load(); e != nil {
		return *e
	}
	o := ops.Get().(*op)
	o.kind, o.p, o.off, o.n = k, p, off, n
	err := s.log.begin(&o.held, off, n)
	if err == nil {
		// Admitted when its turn has come: whoever holds the range of an
		// operation keeps it out of the epoch.
		s.order.lock(&o.span, off, n)
		o.e = s.enter()
		err = s.apply(o)
		o.e.leave()
		s.order.unlock(&o.span)
		s.log.end(&o.held)
	}
	o.e, o.p = nil, nil
	ops.Put(o)
	return err
}

// apply carries an operation out on all files. The range is locked.
func (s *set) apply(o *op) error {
	o.e.note(o.off, o.n)
	all := len(o.e.insync) + len(o.e.filling)
	o.errs = slices.Grow(o.errs[:0], all)[:all]
	clear(o.errs)
	if n := s.applying.Add(1); o.n >= parallelFrom && o.kind == opWrite && all > 1 && int(n) < runtime.GOMAXPROCS(0) {
		writeTogether(o.e, o.p, o.off, o.errs)
	} else {
		o.runInTurn(all)
	}
	s.applying.Add(-1)
	for _, err := range o.errs {
		if err != nil || all == 0 {
			return s.settle(o)
		}
	}
	if len(o.e.insync) == 0 {
		return errOffline
	}
	return nil
}

func (o *op) plex(i int) *plex {
	if i < len(o.e.insync) {
		return o.e.insync[i]
	}
	return o.e.filling[i-len(o.e.insync)]
}

// giveWay is how often a small operation lets others run before it waits, in the
// kernel, for a file that somebody writes to.
const giveWay = 4

// runInTurn runs o on one file after the other, beginning with one that nobody
// writes to: a file system lets one writer into a file at a time, and those who
// wait for it burn a processor, or lose it, and would follow each other through
// all the others. A small operation first lets others have the processor, a few
// times and no longer: one file that is stuck never keeps a write from another.
func (o *op) runInTurn(all int) {
	first := 0
	for i := range all {
		if o.plex(i).writing.Load() == 0 {
			first = i
			break
		}
	}
	for k := range all {
		i := (first + k) % all
		p := o.plex(i)
		for n := 0; n < giveWay && o.n < parallelFrom && p.writing.Load() > 0; n++ {
			runtime.Gosched()
		}
		p.writing.Add(1)
		o.run(i)
		p.writing.Add(-1)
	}
}

func (o *op) run(i int) {
	f := o.plex(i).f
	switch o.kind {
	case opWrite:
		_, o.errs[i] = f.WriteAt(o.p, o.off)
	case opTrim:
		o.errs[i] = f.PunchHole(o.off, o.n)
	case opZero:
		o.errs[i] = f.Zero(o.off, o.n)
	}
}

// settle decides what an operation that failed on some files comes to. The
// files it failed on are dropped if one in sync took it; else the operation
// fails, and the files are made alike again in its range.
func (s *set) settle(o *op) error {
	s.state.Lock()
	defer s.state.Unlock()
	var first error
	succeeded := func(p *plex) bool {
		for i := range o.errs {
			if o.plex(i) == p {
				return o.errs[i] == nil
			}
		}
		return false
	}
	for i, err := range o.errs {
		if err == nil {
			continue
		}
		if first == nil {
			first = err
		}
		if p := o.plex(i); !inEpoch(s.cur, p) {
			p.fail(err) // it was split off meanwhile: the split fails, not we
		}
	}
	survivor := false
	for _, p := range s.cur.insync {
		survivor = survivor || succeeded(p)
	}
	if first == nil && !survivor {
		return errOffline
	}
	if !survivor {
		return errors.Join(noSpace(first), s.equalise(o))
	}
	for i, err := range o.errs {
		if p := o.plex(i); err != nil && inEpoch(s.cur, p) {
			if err := s.drop(p, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop takes p out of the set for good. s.state is held. The last file in sync
// is never dropped.
func (s *set) drop(p *plex, cause error) error {
	if len(without(s.cur.insync, p)) == 0 {
		return cause
	}
	p.fail(cause)
	if err := s.dropping(p, cause); err != nil {
		err = fmt.Errorf("recording that mirror %s failed (%w): %w", p.id, cause, err)
		s.fatal.Store(&err)
		return err
	}
	next := s.cur.parts()
	next.insync, next.filling, next.joining = without(next.insync, p), without(next.filling, p), without(next.joining, p)
	s.dropped(p, s.flip(next), cause)
	return nil
}

// equalise copies the range of an operation that failed everywhere from the
// first file in sync to the others, and drops those where that fails too.
func (s *set) equalise(o *op) error {
	if len(s.cur.insync)+len(s.cur.filling) < 2 {
		return nil
	}
	buf := make([]byte, o.n)
	src := s.cur.insync[0]
	if err := readFull(src.f, buf, o.off); err != nil {
		return fmt.Errorf("mirrors differ in the range: %w", err)
	}
	for _, p := range append(append([]*plex(nil), s.cur.insync[1:]...), s.cur.filling...) {
		have := make([]byte, o.n)
		err := readFull(p.f, have, o.off)
		if err == nil && string(have) == string(buf) {
			continue
		}
		if _, err := p.f.WriteAt(buf, o.off); err != nil {
			if err := s.drop(p, err); err != nil {
				return err
			}
		}
	}
	return nil
}

func inEpoch(e *epoch, p *plex) bool {
	for _, q := range e.insync {
		if q == p {
			return true
		}
	}
	for _, q := range e.filling {
		if q == p {
			return true
		}
	}
	return false
}

// readAt reads from one file in sync, and from another if that fails.
func (s *set) readAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), s.size.Load()); err != nil {
		return 0, fmt.Errorf("reading %d bytes at %d of %s: %w", len(p), off, s.label, err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	e := s.enter()
	defer e.leave()
	pl := e.reader()
	if pl == nil {
		return 0, s.offline("reading")
	}
	pl.busy.Add(1)
	err := readFull(pl.f, p, off)
	pl.busy.Add(-1)
	if err != nil {
		err = s.readElsewhere(e, pl, err, p, off)
	}
	if err != nil {
		return 0, fmt.Errorf("reading %d bytes at %d of %s: %w", len(p), off, s.label, err)
	}
	return len(p), nil
}

// reader is the least busy file that may be read from.
func (e *epoch) reader() *plex {
	if len(e.insync) == 0 {
		return nil
	}
	best := e.insync[0]
	if e.fixed {
		return best
	}
	for _, p := range e.insync[1:] {
		if p.busy.Load() < best.busy.Load() {
			best = p
		}
	}
	return best
}

// readElsewhere reads what bad could not give from another file in sync, and
// drops bad if that goes well. While reads are fixed to one file, another may
// take its place: what it holds is as good a state to have crashed in.
func (s *set) readElsewhere(e *epoch, bad *plex, cause error, p []byte, off int64) error {
	for _, other := range e.insync {
		if other == bad {
			continue
		}
		if err := readFull(other.f, p, off); err != nil {
			continue
		}
		s.state.Lock()
		defer s.state.Unlock()
		if !inEpoch(s.cur, bad) || !inEpoch(s.cur, other) {
			return nil
		}
		return s.drop(bad, cause)
	}
	return cause
}

// offline says why there is no file to use.
func (s *set) offline(verb string) error {
	if e := s.fatal.Load(); e != nil {
		return fmt.Errorf("%s: %w", verb, *e)
	}
	return fmt.Errorf("%s %s: %w", verb, s.label, errOffline)
}

// readFull reads all of p: a file that ends early was truncated by somebody.
func readFull(f io.ReaderAt, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("the file ends at byte %d: %w", off+int64(n), errCut)
	}
	return err
}

// sync makes what was acknowledged stable on every file in sync.
func (s *set) sync() error {
	e := s.enter()
	defer e.leave()
	if len(e.insync) == 0 {
		return s.offline("syncing")
	}
	if err := s.syncEpoch(e); err != nil {
		return fmt.Errorf("syncing %s: %w", s.label, err)
	}
	return nil
}

func (s *set) syncEpoch(e *epoch) error {
	if len(e.insync) == 0 {
		return errOffline
	}
	errs := syncAll(slices.Concat(e.insync, e.joining))
	for _, err := range errs {
		if err == nil {
			continue
		}
		return s.settle(&op{e: &epoch{insync: e.insync, filling: e.joining}, errs: errs})
	}
	return nil
}

// syncAll syncs files at once.
func syncAll(ps []*plex) []error {
	errs := make([]error, len(ps))
	var wg sync.WaitGroup
	for i := 1; i < len(ps); i++ {
		wg.Go(func() { errs[i] = ps[i].f.Sync() })
	}
	errs[0] = ps[0].f.Sync()
	wg.Wait()
	return errs
}

// cleanSoon has the intent log cleaned by a goroutine that start runs. At most
// one works and one waits.
func (s *set) cleanSoon(start func(func())) {
	if s.cleanWanted.Swap(true) {
		return
	}
	start(func() {
		s.cleaning.Lock()
		defer s.cleaning.Unlock()
		s.cleanWanted.Store(false)
		_ = s.cleanLocked(false) // what could not be synced has lost its place, or keeps its marks
	})
}

// cleanIdle syncs all files and clears marks of regions that were not written
// to for a while, unless marks are being cleared already.
func (s *set) cleanIdle() error {
	if !s.cleaning.TryLock() {
		return nil
	}
	defer s.cleaning.Unlock()
	return s.cleanLocked(true)
}

func (s *set) cleanLocked(idle bool) error {
	return s.log.clean(idle, func() error {
		e := s.enter()
		defer e.leave()
		if err := s.syncEpoch(e); err != nil {
			return err
		}
		for _, p := range e.filling {
			if err := p.f.Sync(); err != nil {
				s.state.Lock()
				if inEpoch(s.cur, p) {
					err = s.drop(p, err)
				}
				s.state.Unlock()
				if err != nil {
					return err
				}
			}
		}
		if err := e.flushMaps(); err != nil {
			return err
		}
		// After enter: who is in the epoch that began sees who left.
		return s.leaving.Load().settle()
	})
}

func (s *set) extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, s.size.Load()); err != nil {
		return fmt.Errorf("map of %d bytes at %d of %s: %w", n, off, s.label, err)
	}
	e := s.enter()
	defer e.leave()
	pl := e.reader()
	if pl == nil {
		return s.offline("map of")
	}
	return pl.f.Extents(off, n, fn)
}

// shutdown ends all I/O, syncs, clears the intent log and closes the files.
func (s *set) shutdown() error {
	closed := fmt.Errorf("%s: %w", s.label, lun.ErrClosed)
	before := s.fatal.Swap(&closed)
	s.log.close()
	e := s.cur
	<-s.flip(epoch0{}).idle
	var errs []error
	ps := append(append([]*plex(nil), e.insync...), e.filling...)
	if len(ps) > 0 {
		errs = syncAll(ps)
	}
	errs = append(errs, e.flushMaps())
	// Marks stay if anything was not synced, or is not yet equal.
	if errors.Join(errs...) == nil && !e.fixed && before == nil {
		errs = append(errs, s.log.clean(false, s.leaving.Load().settle))
	}
	for _, p := range ps {
		errs = append(errs, p.f.Close())
	}
	return errors.Join(append(errs, s.log.file.close())...)
}
