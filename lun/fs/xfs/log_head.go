package xfs

import (
	"errors"
	"fmt"
)

// maxTorn is how many records may have been under way when the power went: the
// kernel's buffers for the log (XLOG_MAX_ICLOGS).
const maxTorn = 8

// end finds where the log ends: the block after the last record that was written
// whole, with all before it. It is what xlog_find_head() does, and xlog_verify_head()
// for records that are torn.
//
// Writes to the log may have been under way in any order when the power went, up
// to logWindow before the place where the cycle drops. So the end is at the first
// block there that is of the cycle before, and then at the last record that ends.
func (l *logReader) end() (int64, error) {
	first, err := l.cycle(0)
	if err != nil {
		return 0, err
	}
	last, err := l.cycle(l.n - 1)
	if err != nil {
		return 0, err
	}
	head, err := l.drop(first, last)
	if err != nil {
		return 0, err
	}
	for back := min(logWindow, l.n-1); back > 0; back-- {
		at, want := head-back, first
		if at < 0 {
			at, want = at+l.n, last
			if head == 0 {
				want = first // of the cycle that ended with the log
			}
		}
		c, err := l.cycle(at)
		if err != nil {
			return 0, err
		}
		if c != want {
			head = at
			break
		}
	}
	return l.lastWhole(head)
}

// drop finds the first block of another cycle than the first one's; 0 if there is
// none.
func (l *logReader) drop(first, last uint32) (int64, error) {
	if first == last {
		return 0, nil
	}
	low, high := int64(0), l.n-1
	for low+1 < high {
		mid := low + (high-low)/2
		c, err := l.cycle(mid)
		if err != nil {
			return 0, err
		}
		if c == first {
			low = mid
		} else {
			high = mid
		}
	}
	return high, nil
}

// lastWhole is the end of the last record that ends at or before head.
func (l *logReader) lastWhole(head int64) (int64, error) {
	for back, end := int64(1), int64(0); back <= min(l.n, 2*logWindow); back++ {
		at := (head - back + l.n) % l.n
		r, _, _, err := l.header(at)
		switch {
		case errors.As(err, &torn{}):
			continue
		case err != nil:
			return 0, err
		case r.blocks == back-end:
			return (head - end + l.n) % l.n, nil
		}
		end = back // it was not written to its end: the log ends where it begins
	}
	return 0, damaged(l.at, "log", head, "has no record before its end")
}

// before finds the record that ends at a block.
func (l *logReader) before(end int64) (logRecord, error) {
	for back := int64(1); back <= min(l.n, logWindow); back++ {
		at := (end - back + l.n) % l.n
		r, _, _, err := l.header(at)
		if errors.As(err, &torn{}) {
			continue
		}
		if err == nil && r.blocks != back {
			err = damaged(l.at, "log", at, "the record before its end does not end there")
		}
		return r, err
	}
	return logRecord{}, damaged(l.at, "log", end, "has no record before its end")
}

// walk calls fn for the records from the oldest that is needed to the last. Where
// one near the end is torn, the log ends before it: fn is called again from the
// beginning then, after restart.
func (l *logReader) walk(restart func(), fn func(logRecord) error) error {
	end, err := l.end()
	if err != nil {
		return err
	}
	for range maxTorn + 1 {
		restart()
		last, err := l.before(end)
		if err != nil {
			return err
		}
		bad, err := l.each(last.tail, last, fn)
		if !errors.As(err, &torn{}) {
			return err
		}
		if (end-bad+l.n)%l.n > logWindow {
			return fmt.Errorf("xfs log: %w: its end can't be reached; xfs_repair on a copy may help", err)
		}
		end = bad
	}
	return damaged(l.at, "log", end, "has no end")
}

// each goes from tail to the record last. A torn error is about the record at bad.
func (l *logReader) each(tail lsn, last logRecord, fn func(logRecord) error) (bad int64, err error) {
	if tail.block() >= l.n || tail > last.lsn {
		return 0, damaged(l.at, "h_tail_lsn", uint64(tail), "is not within the log")
	}
	prev := lsn(0)
	for at, passed := tail.block(), int64(0); ; {
		r, err := l.record(at)
		if err != nil {
			return at, err
		}
		if r.lsn < tail || r.lsn <= prev || r.lsn > last.lsn {
			return at, torn{fmt.Errorf("record at block %d of the log: h_lsn is %#x, after %#x", at, uint64(r.lsn), uint64(prev))}
		}
		prev = r.lsn
		if err := fn(r); err != nil {
			return at, err
		}
		if r.lsn == last.lsn {
			return 0, nil
		}
		if passed += r.blocks; passed > l.n {
			return 0, damaged(l.at, "log", at, "has no end")
		}
		at = (at + r.blocks) % l.n
	}
}
