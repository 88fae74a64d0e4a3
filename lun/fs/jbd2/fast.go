package jbd2

import (
	"encoding/binary"

	"github.com/cleave-san/cleave/lun"
)

// Tags of the fast-commit area (fs/ext4/fast_commit.h), little-endian: tag and
// length, 16 bits each, then the value.
const (
	fcTail = 8
	fcHead = 9
	fcMax  = fcHead
)

// fastCommits refuses a journal with fast commits that belong to its end: they
// are changes of directories and extents, not blocks. The area of a journal that
// was committed in full since has only stale ones, which don't count.
func (l *Log) fastCommits() error {
	s := l.s
	if s.incompat&incompatFastCommit == 0 || s.last == s.maxLen {
		return nil
	}
	le := binary.LittleEndian
	b := make([]byte, s.blockSize)
	sum := uint32(0) // from the area's beginning, or the tail before
	for at := s.last + 1; at < s.maxLen; at++ {
		if err := l.read(b, at); err != nil {
			return err
		}
		first := at == s.last+1
		for o := 0; o+4 <= len(b); {
			tag, n := le.Uint16(b[o:]), int(le.Uint16(b[o+2:]))
			switch {
			case first && o == 0 && (tag != fcHead || n < 8 || le.Uint32(b[o+8:]) != l.end):
				return nil // of another transaction
			case tag == 0 || tag > fcMax || o+4+n > len(b):
				return nil // torn before a tail: nothing counts
			case tag == fcTail:
				if n < 8 || le.Uint32(b[o+4:]) != l.end {
					return nil
				}
				if crc32c(sum, b[o:o+8]) != le.Uint32(b[o+8:]) {
					return nil
				}
				return &lun.FormatError{Format: "jbd2", Offset: -1, Field: "fast_commit", Value: l.end,
					Reason: "the journal ends with fast commits, which are not replayed here: mount and unmount a copy, or use tune2fs -O ^fast_commit on the host"}
			}
			sum = crc32c(sum, b[o:o+4+n])
			o += 4 + n
		}
	}
	return nil
}
