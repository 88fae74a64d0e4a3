package xfs

import (
	"fmt"

	"github.com/cleave-san/cleave/lun/fs"
)

// The log is a ring of blocks of 512 bytes. Each begins with the number of the
// cycle that it was written in, but for record headers, which begin with a magic
// and have the cycle next. So the head, where the log goes on, is where the
// cycle drops by one; a log in its first cycle has zeroes there.
const (
	logBlock  = 512
	logMagic  = 0xFEEDBABE
	unmounted = 0x20 // XLOG_UNMOUNT_TRANS
	// logCycles is what a record header holds cycles of: 32 KiB of record.
	logCycles = 32 << 10
	// logWindow is how far from the head writes may have been under way when the
	// power went: eight buffers of 256 KiB.
	logWindow = 8 * (256<<10 + 8*logBlock) / logBlock
)

// logReader reads blocks of the log.
type logReader struct {
	f  *FS
	at int64 // byte on the device
	n  int64 // blocks
}

func (l *logReader) block(i int64) ([]byte, error) {
	b := make([]byte, logBlock)
	if _, err := l.f.meta.ReadAt(b, l.at+i*logBlock); err != nil {
		return nil, fmt.Errorf("xfs log: %w", err)
	}
	return b, nil
}

func (l *logReader) cycle(i int64) (uint32, error) {
	b, err := l.block(i)
	if err != nil {
		return 0, err
	}
	if c := be.Uint32(b); c != logMagic {
		return c, nil
	}
	return be.Uint32(b[4:]), nil
}

func dirty(why string) error {
	return fmt.Errorf("xfs: %s: the log is not recovered here (attach it and mount it, or unmount it before it is split): %w", why, fs.ErrDirty)
}

// logClean is nil if the last thing in the log is the record of an unmount. What
// is not certain is dirty.
func (f *FS) logClean() error {
	s := f.s
	if s.logStart == 0 {
		return dirty("the log is on another device")
	}
	at, ok := s.byteOf(s.logStart, s.logBlocks)
	if !ok || s.logBlocks == 0 {
		return damaged(48, "sb_logstart", s.logStart, "the log is not within the file system")
	}
	l := &logReader{f, at, int64(s.logBlocks) * s.blockSize / logBlock}
	first, err := l.cycle(0)
	if err != nil {
		return err
	}
	last, err := l.cycle(l.n - 1)
	if err != nil {
		return err
	}
	if first == 0 && last == 0 {
		return l.zeroed()
	}
	head, err := l.head(first, last)
	if err != nil {
		return err
	}
	return l.endsInUnmount(head, first, last)
}

// zeroed is nil if nothing was ever logged.
func (l *logReader) zeroed() error {
	for i := range min(l.n, 2*logWindow) {
		if c, err := l.cycle(i); err != nil || c != 0 {
			if err == nil {
				err = dirty("the log does not begin at its beginning")
			}
			return err
		}
	}
	return nil
}

// head finds the first block that is not of the first one's cycle, 0 if all are.
func (l *logReader) head(first, last uint32) (int64, error) {
	if first == last {
		return 0, nil
	}
	if last != first-1 && (last != 0 || first != 1) {
		return 0, dirty("the log's cycles do not follow each other")
	}
	return l.drop(first, last)
}

// endsInUnmount wants the record before the head to be of an unmount, and nothing
// near it to be out of order.
func (l *logReader) endsInUnmount(head int64, first, last uint32) error {
	near := min(logWindow, l.n/2)
	for i := head - near; i < head+near; i++ {
		at, want := (i+l.n)%l.n, first
		if at >= head && head != 0 {
			want = last
		}
		if c, err := l.cycle(at); err != nil {
			return err
		} else if c != want {
			return dirty("writes to the log were under way")
		}
	}
	for back := int64(1); back <= near; back++ {
		at := (head - back + l.n) % l.n
		b, err := l.block(at)
		if err != nil {
			return err
		}
		if be.Uint32(b) == logMagic {
			return l.unmountAt(at, back, b)
		}
	}
	return dirty("the log has no last record")
}

// unmountAt looks at a record whose header is block at, n before the head:
// xlog_check_unmount_rec().
func (l *logReader) unmountAt(at, n int64, header []byte) error {
	headers := int64(1)
	if size := int64(be.Uint32(header[320:])); be.Uint32(header[8:])&2 != 0 && size > logCycles {
		headers = (size + logCycles - 1) / logCycles
	}
	blocks := (int64(be.Uint32(header[12:])) + logBlock - 1) / logBlock
	if headers+blocks != n || blocks == 0 || be.Uint32(header[40:]) != 1 {
		return dirty("not unmounted")
	}
	op, err := l.block((at + headers) % l.n)
	if err != nil {
		return err
	}
	if op[9]&unmounted == 0 {
		return dirty("not unmounted")
	}
	return nil
}
