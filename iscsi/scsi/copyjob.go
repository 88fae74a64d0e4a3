package scsi

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// copyStep is how much is copied between looks at reservations, write protection
// and whether anybody still waits, in bytes.
const copyStep = 4 << 20

// copyJob is one segment with its units.
type copyJob struct {
	from, to       *Nexus
	fromOff, toOff int64
	length         int64

	gone interface{ Gone() bool } // whether the command was aborted; may be nil
	done func(bytes int64)
}

// Commands that stand for what a copy does on either end.
var (
	copyRead  = &op{name: "read of a copy", code: 0x88, access: isRead}
	copyWrite = &op{name: "write of a copy", code: 0x8a, access: isWrite, writes: true}
	noCDB     [16]byte
)

// admits asks what a command of the initiator's own would be asked.
func (n *Nexus) admits(o *op) result {
	if r := n.reachable(o); !r.ok() {
		return r
	}
	if r := n.unit.conflict(n, o, &noCDB); !r.ok() {
		return r
	}
	if code, no := n.protected(); o.writes && no {
		return check(code)
	}
	return result{}
}

// run copies the segment. What overlaps is copied as by memmove.
func (j *copyJob) run() result {
	j.from.unit.stats.reads.Add(1)
	j.to.unit.stats.writes.Add(1)
	backwards := j.from.unit == j.to.unit && j.fromOff < j.toOff && j.toOff < j.fromOff+j.length
	for at := int64(0); at < j.length; at += copyStep {
		n := min(copyStep, j.length-at)
		off := at
		if backwards {
			off = j.length - at - n
		}
		if j.gone != nil && j.gone.Gone() {
			return result{status: TaskAborted}
		}
		if err := j.step(off, n, backwards); err != nil {
			return aborted(err)
		}
		j.done(n)
	}
	return aborted(j.to.unit.stableErr())
}

// errRefused says that one end does not admit the copy (any more).
var errRefused = errors.New("reservation, write protection or access state forbids the copy")

// aborted is how a copy ends that a unit has failed: COPY ABORTED, except where
// nobody waits for it. A full pool is said as it is: hosts pause a machine
// for it, and give up on others.
func aborted(err error) result {
	switch {
	case err == nil:
		return result{}
	case errors.Is(err, lun.ErrNoSpace):
		return check(spaceFailed)
	}
	return check(thirdPartyFailure)
}

// step copies one piece. Other writes to the destination go on beside it; COMPARE
// AND WRITE does not, nor does PREEMPT AND ABORT return before it is over.
func (j *copyJob) step(off, n int64, backwards bool) error {
	u := j.to.unit
	// Known before it asks: whoever forbids it later finds it.
	defer u.steps.begin(j.to.id())()
	u.exclusive.RLock()
	defer u.exclusive.RUnlock()
	if r := j.from.admits(copyRead); !r.ok() {
		return errRefused
	}
	if r := j.to.admits(copyWrite); !r.ok() {
		return errRefused
	}
	if backwards || j.from.unit.extents == nil {
		return j.data(off, n, backwards)
	}
	return j.extents(off, n)
}

// maxCopyExtents bounds the extents of one piece that are looked at; what comes
// after is copied as data.
const maxCopyExtents = 1024

// extents copies the data of a piece, and makes holes where the source has them.
func (j *copyJob) extents(off, n int64) error {
	// Listed first: a device may hold a lock of its own while it lists.
	var list []lun.Extent
	end := off
	err := j.from.unit.extents.Extents(j.fromOff+off, n, func(e lun.Extent) error {
		e.Off -= j.fromOff
		if e.Off != end || e.Len <= 0 || e.Len > off+n-end {
			return errNoExtent
		}
		end = e.Off + e.Len
		if k := len(list) - 1; k >= 0 && list[k].Hole == e.Hole {
			list[k].Len += e.Len
			return nil
		}
		if len(list) == maxCopyExtents {
			return errEnough
		}
		list = append(list, e)
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	at := off
	for i := range list {
		e := list[i]
		if e.Hole {
			// Whole blocks of the destination only; the rest is read.
			from, to := j.inwards(e.Off, e.Off+e.Len)
			if from >= to {
				continue
			}
			if err := j.data(at, from-at, false); err != nil {
				return err
			}
			if err := j.hole(from, to-from); err != nil {
				return err
			}
			at = to
		}
	}
	return j.data(at, off+n-at, false)
}

// inwards rounds a range of the segment to whole blocks of both ends.
func (j *copyJob) inwards(from, to int64) (int64, int64) {
	mask := max(j.from.unit.blockSize(), j.to.unit.blockSize()) - 1
	return (from + mask) &^ mask, to &^ mask
}

func (j *copyJob) hole(off, n int64) error {
	switch u := j.to.unit; {
	case u.trim != nil:
		return u.trim.Trim(j.toOff+off, n)
	case u.zero != nil:
		return u.zero.WriteZeroes(j.toOff+off, n)
	}
	return j.data(off, n, false)
}

// data copies bytes.
func (j *copyJob) data(off, n int64, backwards bool) error {
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	for done := int64(0); done < n; {
		b := (*buf)[:min(n-done, Chunk)]
		at := off + done
		if backwards {
			at = off + n - done - int64(len(b))
		}
		if _, err := j.from.unit.dev.ReadAt(b, j.fromOff+at); err != nil {
			return err
		}
		if _, err := j.to.unit.dev.WriteAt(b, j.toOff+at); err != nil {
			return err
		}
		done += int64(len(b))
		j.from.unit.stats.readBytes.Add(uint64(len(b)))
		j.to.unit.stats.writeBytes.Add(uint64(len(b)))
	}
	return nil
}

// copySteps are the pieces that copies write to a unit at the moment, by the nexus
// that they are written for.
type copySteps struct {
	mu   sync.Mutex
	list []copyStepping
}

type copyStepping struct {
	by   nexusID
	over chan struct{}
}

// begin enters a step; the function that it returns leaves.
func (s *copySteps) begin(by nexusID) func() {
	st := copyStepping{by, make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, st)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.list = slices.DeleteFunc(s.list, func(o copyStepping) bool { return o.over == st.over })
		close(st.over)
	}
}

// stepPatience bounds how long PREEMPT AND ABORT waits for a step.
const stepPatience = 20 * time.Second

// wait returns when the steps of some nexuses that are under way are over, false if
// one isn't in time.
func (s *copySteps) wait(by []nexusID) bool {
	s.mu.Lock()
	list := slices.Clone(s.list)
	s.mu.Unlock()
	patience := time.NewTimer(stepPatience)
	defer patience.Stop()
	for _, st := range list {
		if !slices.Contains(by, st.by) {
			continue
		}
		select {
		case <-st.over:
		case <-patience.C:
			return false
		}
	}
	return true
}
