package embedded

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// ScrubOptions says what a scrub does about differences.
type ScrubOptions struct {
	// Repair copies what more than half of at least three mirrors hold to the
	// others. Without it, and where there is no such majority, nothing is
	// changed: no copy is known to be the right one.
	Repair bool
}

// ScrubReport says how far a scrub is, or what it came to. Sizes are bytes.
type ScrubReport struct {
	Begun  time.Time `json:"begun"`
	Ended  time.Time `json:"ended,omitzero"` // zero while it is under way
	Repair bool      `json:"repair,omitempty"`
	// Done of Size are gone through, and Compared of them were read from every
	// mirror: what is a hole in all of them is not.
	Size     int64 `json:"size"`
	Done     int64 `json:"done"`
	Compared int64 `json:"compared"`
	Mirrors  int   `json:"mirrors"` // that were compared last
	// Differing bytes were found at so many Places; Repaired of them are equal
	// now. Differences are the first places, at most 64.
	Differing   int64             `json:"differing"`
	Repaired    int64             `json:"repaired"`
	Places      int64             `json:"places"`
	Differences []ScrubDifference `json:"differences,omitempty"`
	// Rate is bytes a second now, and Remaining how long the rest takes at that;
	// 0 if it is over, or nothing moves.
	Rate      int64         `json:"rate,omitempty"`
	Remaining time.Duration `json:"remaining,omitempty"`
	// Reason says in one line why it ended early; empty if it did not.
	Reason string `json:"reason,omitempty"`
}

// Left is how many bytes still differ.
func (r *ScrubReport) Left() int64 { return r.Differing - r.Repaired }

// ScrubDifference is a place at which mirrors differ, with what each held. Its
// ends are at multiples of 4 KiB or at the volume's end.
type ScrubDifference struct {
	Off      int64         `json:"off"`
	Len      int64         `json:"len"`
	Mirrors  []ScrubMirror `json:"mirrors"`
	Repaired bool          `json:"repaired,omitempty"`
}

// ScrubMirror is what a mirror held at a difference.
type ScrubMirror struct {
	ID     lun.Identity `json:"id"`
	Pool   string       `json:"pool"`
	SHA256 string       `json:"sha256"` // of the place's bytes, in hex
}

const (
	// scrubChunk is compared at once. Writes to it wait so long, and so do
	// splits, since they wait for whoever is in the epoch that they end.
	scrubChunk = 256 << 10
	// scrubBlock is how finely mirrors are compared: what damages a file does
	// so by blocks of its file system.
	scrubBlock = 4 << 10
	// keptDifferences is how many places a report lists.
	keptDifferences = 64
)

// Scrub compares all mirrors of a volume that are in sync, while it is in use,
// within the limit of Options.ResyncRate, and returns when it has come to its
// end, with an error if that was not the volume's. Differences are no error:
// they are in the report, and told by an event. When ctx ends, so does the
// scrub; what it has repaired stays so.
//
// What is compared is what a read gives, which may be in the host's page cache:
// damage to a disk under it shows once that was evicted. A mirror that can't be
// read is dropped, as by any other read. A volume that has a scrub under way is
// Busy; one with fewer than two mirrors in sync, or whose mirrors are still
// being compared after a crash, is NotSynchronized.
func (a *Array) Scrub(ctx context.Context, ref driver.VolumeID, o ScrubOptions) (ScrubReport, error) {
	if ctx.Err() != nil {
		return ScrubReport{}, notBegun(ctx, "scrub")
	}
	s, err := a.beginScrub(ref, o)
	if err != nil {
		return ScrubReport{}, err
	}
	defer context.AfterFunc(ctx, func() { s.cancel(context.Cause(ctx)) })()
	<-s.done
	return s.report(true), s.err
}

// StartScrub is Scrub in the background: it returns when that has begun.
// VolumeInfo tells how far it is, WaitScrub what it came to.
func (a *Array) StartScrub(ref driver.VolumeID, o ScrubOptions) error {
	_, err := a.beginScrub(ref, o)
	return err
}

// WaitScrub returns what the volume's scrub came to that is under way, or the
// last one since Open if none is, as Scrub does. When ctx ends first, the scrub
// goes on and the report says how far it is. NotFound: there was none.
func (a *Array) WaitScrub(ctx context.Context, ref driver.VolumeID) (ScrubReport, error) {
	s, err := a.lastScrub(ref)
	if err != nil {
		return ScrubReport{}, err
	}
	select {
	case <-s.done:
		return s.report(true), s.err
	case <-ctx.Done():
		return s.report(true), fmt.Errorf("waiting for the scrub of %s: %w", s.v.label, context.Cause(ctx))
	}
}

// StopScrub ends the volume's scrub, and returns when it has ended. It is
// success if none is under way.
func (a *Array) StopScrub(ref driver.VolumeID) error {
	v, err := a.find(ref)
	if err == nil {
		v.stopScrub(errScrubStopped)
	}
	return err
}

var errScrubStopped = errors.New("it was stopped")

// scrub is one scrub of a volume, under way or over.
type scrub struct {
	v      *volume
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{}
	err    error // once done
	pace   pace  // of rep.Done

	// Only its goroutine uses these.
	bufs   [][]byte
	known  int64          // up to here there is data in some mirror
	mended map[*plex]bool // to be synced

	mu  sync.Mutex
	rep ScrubReport
}

func (a *Array) lastScrub(ref driver.VolumeID) (*scrub, error) {
	v, err := a.find(ref)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.scrub == nil {
		return nil, driver.Errorf(driver.NotFound, "%s was not scrubbed since the array was opened", v.label)
	}
	return v.scrub, nil
}

func (a *Array) beginScrub(ref driver.VolumeID, o ScrubOptions) (*scrub, error) {
	v, err := a.find(ref)
	if err != nil {
		return nil, err
	}
	n := v.mirrorsInSync()
	if n < 2 {
		return nil, scrubNeedsTwo(v, n)
	}
	if v.recovering.Load() > 0 {
		return nil, errStillRecovering(v)
	}
	s := &scrub{v: v, done: make(chan struct{}), mended: map[*plex]bool{}}
	s.rep = ScrubReport{Begun: a.o.Now().UTC(), Repair: o.Repair, Size: v.size.Load(), Mirrors: n}
	s.ctx, s.cancel = context.WithCancelCause(a.bg)
	if err := v.setScrub(s); err != nil {
		s.cancel(nil)
		return nil, err
	}
	if !a.start(s.run) {
		s.end(fmt.Errorf("array: %w", lun.ErrClosed))
		return nil, s.err
	}
	return s, nil
}

// setScrub makes s the volume's scrub, unless another is under way.
func (v *volume) setScrub(s *scrub) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.gone:
		return driver.Errorf(driver.NotFound, "%s was deleted", v.label)
	case v.blocked != "":
		return driver.Errorf(driver.Busy, "%s can't be scrubbed: %s", v.label, v.blocked)
	case v.scrub != nil && !v.scrub.over():
		return driver.Errorf(driver.Busy, "%s is being scrubbed already", v.label)
	}
	v.scrub = s
	return nil
}

func scrubNeedsTwo(v *volume, n int) error {
	return driver.Errorf(driver.NotSynchronized, "%s has fewer than two mirrors in sync (%d): there is nothing to compare", v.label, n)
}

func errStillRecovering(v *volume) error {
	return driver.Errorf(driver.NotSynchronized, "%s: its mirrors are being compared after a crash already", v.label)
}

func (s *scrub) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// report is how far it is; all: with the list of differences.
func (s *scrub) report(all bool) ScrubReport {
	s.mu.Lock()
	r := s.rep
	s.mu.Unlock()
	r.Differences = slices.Clone(r.Differences)
	if !all {
		r.Differences = nil
	}
	if r.Ended.IsZero() {
		r.Rate = s.pace.perSecond(time.Now(), r.Done)
		r.Remaining = timeFor(r.Size-r.Done, r.Rate)
	}
	return r
}

// reach notes that all up to off is gone through.
func (s *scrub) reach(off int64) {
	size := s.v.size.Load()
	s.mu.Lock()
	s.rep.Done, s.rep.Size = off, size
	s.mu.Unlock()
	s.pace.reach(time.Now(), off)
}

func (s *scrub) run() {
	begun := time.Now()
	s.pace.start(begun, 0)
	err := s.pass()
	if serr := s.syncMended(); err == nil {
		err = serr
	}
	if err == nil {
		s.tell(time.Since(begun).Round(time.Millisecond))
	}
	s.end(err)
}

// end is the last that happens to a scrub.
func (s *scrub) end(err error) {
	s.mu.Lock()
	s.rep.Ended = s.v.a.o.Now().UTC()
	if err != nil {
		s.err = fmt.Errorf("scrub of %s: at byte %d: %w", s.v.label, s.rep.Done, err)
		s.rep.Reason = s.err.Error()
	}
	s.mu.Unlock()
	s.cancel(nil)
	close(s.done)
}

// tell sends the events of a scrub that came to the volume's end.
func (s *scrub) tell(took time.Duration) {
	r, v := s.report(true), s.v
	if r.Places > 0 {
		d := r.Differences[0]
		e := Event{Kind: ScrubDiffers, Volume: driver.VolumeID(v.id.String()), Name: v.name}
		e.Text = fmt.Sprintf("%s: its mirrors differed in %d bytes at %d places, the first %d bytes at %d", v.label, r.Differing, r.Places, d.Len, d.Off)
		switch left := r.Left(); {
		case left == 0:
			e.Severity = Warning
			e.Text += "; all were repaired from the majority: look after the disk that was wrong"
		case r.Repair:
			e.Text += fmt.Sprintf("; %d bytes have no majority and stay: find out which mirror is right, remove the other and add a new one", left)
		default:
			e.Text += "; nothing was changed: `cleave volume scrub --repair` copies what a majority holds"
		}
		v.a.emit(e)
	}
	v.a.event(ScrubDone, v, lun.Identity{}, "%s: %d bytes of %d mirrors were compared in %v: %d bytes differed, %d were repaired", v.label, r.Compared, r.Mirrors, took, r.Differing, r.Repaired)
}

// pass goes through the volume once.
func (s *scrub) pass() error {
	v := s.v
	for off := int64(0); ; {
		size := v.size.Load() // it may grow meanwhile
		if off >= size {
			return nil
		}
		at, err := s.nextData(off, size)
		if err != nil {
			return err
		}
		s.reach(at)
		n := min(scrubChunk-at%scrubChunk, size-at)
		if err := v.a.copies.wait(s.ctx, n); err != nil {
			return context.Cause(s.ctx)
		}
		if n > 0 {
			if err := s.compare(at, n); err != nil {
				return err
			}
		}
		off = at + n
		s.reach(off)
	}
}

var errFound = errors.New("found")

// nextData is the first offset from off on at which a mirror has data, or size.
func (s *scrub) nextData(off, size int64) (int64, error) {
	if off < s.known {
		return off, nil
	}
	e := s.v.enter()
	defer e.leave()
	if len(e.insync) < 2 {
		return 0, scrubNeedsTwo(s.v, len(e.insync))
	}
	next := size
	for _, p := range e.insync {
		err := p.f.Extents(off, size-off, func(x lun.Extent) error {
			if x.Hole {
				return s.ctx.Err()
			}
			if x.Off < next {
				next, s.known = x.Off, x.Off+x.Len
			}
			return errFound
		})
		if err != nil && !errors.Is(err, errFound) {
			if s.ctx.Err() != nil {
				return 0, context.Cause(s.ctx)
			}
			return off, nil // whether it can be read is seen by reading it
		}
	}
	return max(off, next-next%scrubBlock), nil
}

// compare reads a range from all mirrors while nobody writes to it, and deals
// with what differs.
func (s *scrub) compare(off, n int64) error {
	v := s.v
	var sp span
	v.order.lock(&sp, off, n)
	defer v.order.unlock(&sp)
	e := v.enter()
	defer e.leave()
	if e.fixed {
		return errStillRecovering(v)
	}
	ps, err := s.read(e, off, n)
	if err != nil {
		return err
	}
	if len(ps) < 2 {
		return scrubNeedsTwo(v, len(ps))
	}
	s.mu.Lock()
	s.rep.Compared += n
	s.rep.Mirrors = len(ps)
	s.mu.Unlock()
	return s.differences(ps, n, func(lo, hi int64, votes []int) error {
		return s.differs(ps, off, lo, hi, votes)
	})
}

// read fills bufs with what each mirror in sync holds. One that can't be read is
// dropped.
func (s *scrub) read(e *epoch, off, n int64) (ps []*plex, err error) {
	for _, p := range e.insync {
		if len(s.bufs) == len(ps) {
			s.bufs = append(s.bufs, make([]byte, scrubChunk))
		}
		p.busy.Add(1)
		err := readFull(p.f, s.bufs[len(ps)][:n], off)
		p.busy.Add(-1)
		if err == nil {
			ps = append(ps, p)
		} else if err := s.drop(p, err); err != nil {
			return nil, err
		}
	}
	return ps, nil
}

func (s *scrub) drop(p *plex, cause error) error {
	s.v.state.Lock()
	defer s.v.state.Unlock()
	if !inEpoch(s.v.cur, p) {
		return nil
	}
	return s.v.drop(p, cause)
}

// differences calls fn for each run of blocks in bufs that differ in the same
// way: votes has for each mirror the first that holds the same.
func (s *scrub) differences(ps []*plex, n int64, fn func(lo, hi int64, votes []int) error) error {
	var from int64
	var run []int // nil: the blocks before are equal
	votes := make([]int, len(ps))
	for lo := int64(0); lo < n; lo += scrubBlock {
		equal := s.vote(votes, lo, min(lo+scrubBlock, n))
		if run != nil && (equal || !slices.Equal(run, votes)) {
			if err := fn(from, lo, run); err != nil {
				return err
			}
			run = nil
		}
		if run == nil && !equal {
			from, run = lo, slices.Clone(votes)
		}
	}
	if run == nil {
		return nil
	}
	return fn(from, n, run)
}

// vote finds for each mirror the first that holds the same in a block.
func (s *scrub) vote(votes []int, lo, hi int64) (equal bool) {
	equal = true
	for i := range votes {
		votes[i] = i
		for j := range i {
			if votes[j] == j && bytes.Equal(s.bufs[j][lo:hi], s.bufs[i][lo:hi]) {
				votes[i] = j
				break
			}
		}
		equal = equal && votes[i] == 0
	}
	return equal
}

// majority is the first of those of at least three mirrors that more than half
// agree with, or -1.
func majority(votes []int) int {
	count := make([]int, len(votes))
	for _, j := range votes {
		if count[j]++; len(votes) >= 3 && 2*count[j] > len(votes) {
			return j
		}
	}
	return -1
}

// differs records a place at which mirrors differ, and repairs it if it may.
func (s *scrub) differs(ps []*plex, off, lo, hi int64, votes []int) error {
	d := ScrubDifference{Off: off + lo, Len: hi - lo}
	for i, p := range ps {
		sum := sha256.Sum256(s.bufs[i][lo:hi])
		d.Mirrors = append(d.Mirrors, ScrubMirror{ID: p.id, Pool: p.pool, SHA256: fmt.Sprintf("%x", sum)})
	}
	right := majority(votes)
	if s.rep.Repair && right >= 0 {
		for i, p := range ps {
			if votes[i] == right {
				continue
			}
			if err := writeSparse(p.f, s.bufs[right][lo:hi], d.Off); err != nil {
				if err := s.drop(p, err); err != nil {
					return err
				}
			}
			s.mended[p] = true
		}
		d.Repaired = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rep.Places++
	s.rep.Differing += d.Len
	if d.Repaired {
		s.rep.Repaired += d.Len
	}
	if len(s.rep.Differences) < keptDifferences {
		s.rep.Differences = append(s.rep.Differences, d)
	}
	return nil
}

// syncMended makes repairs stable. A mirror on which that fails is dropped.
func (s *scrub) syncMended() error {
	e := s.v.enter()
	defer e.leave()
	for p := range s.mended {
		if !inEpoch(e, p) {
			continue // what became of it, was synced for that
		}
		if err := p.f.Sync(); err != nil {
			if err := s.drop(p, err); err != nil {
				return err
			}
		}
	}
	return nil
}
