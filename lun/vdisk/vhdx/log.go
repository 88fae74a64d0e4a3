package vhdx

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/cleave-san/cleave/lun"
)

const (
	logSector   = 4 * kib
	entryHeader = 64
	descriptor  = 32

	// maxLog bounds a log that is not empty. Hyper-V makes 1 MiB for every
	// 100 GB of disk.
	maxLog = 256 * mib
	// maxScan bounds how many times the log's length is read in the search for
	// entries. Old entries that newer ones overwrote in part have a header each
	// and are read in vain; there are few.
	maxScan = 16
	// maxPatches bounds what one log may change: sectors and runs of zeroes.
	maxPatches = 32 << 10
	maxZeroes  = 4 << 10
)

// logEntry is a valid entry, section 2.3.1.1.
//
//	off size field
//	  0   4  Signature "loge"
//	  4   4  Checksum, CRC-32C of the whole entry
//	  8   4  EntryLength
//	 12   4  Tail
//	 16   8  SequenceNumber
//	 24   4  DescriptorCount
//	 32  16  LogGuid
//	 48   8  FlushedFileOffset
//	 56   8  LastFileOffset
type logEntry struct {
	pos, length, tail int64 // in the log
	sequence          uint64
	descriptors       int64
	flushed, last     uint64
}

// logRing is the log's bytes, which go round.
type logRing struct {
	dev      lun.Device
	off, len int64
	id       guid
	budget   int64 // bytes that may still be read in the search
}

// at is where position pos lies in the file.
func (l *logRing) at(pos int64) int64 { return l.off + pos%l.len }

func (m *image) openLog() (*logRing, error) {
	where := headerAt[m.current]
	length, off := int64(m.head.logLength()), m.head.logOffset()
	switch {
	case length == 0 || length%mib != 0:
		return nil, damaged(where+68, "LogLength", length, "must be a multiple of 1 MiB")
	case length > maxLog:
		return nil, damaged(where+68, "LogLength", length, "no log of more than %d bytes is applied", maxLog)
	case off < mib || off%mib != 0 || off > maxFile || lun.CheckRange(int64(off), length, m.dev.Size()) != nil:
		return nil, damaged(where+72, "LogOffset", off, "the log of %d bytes lies beyond the end of the file, or over its headers", length)
	}
	return &logRing{m.dev, int64(off), length, m.head.logGuid(), maxScan * length}, nil
}

// entry reads and checks the entry at pos. ok is false where there is none that
// is valid, which is usual in a log.
func (l *logRing) entry(pos int64) (e logEntry, ok bool, err error) {
	var h [entryHeader]byte
	if _, err := l.dev.ReadAt(h[:], l.at(pos)); err != nil {
		return e, false, fmt.Errorf("vhdx: read the log at byte %d: %w", l.at(pos), err)
	}
	le := binary.LittleEndian
	if string(h[:4]) != "loge" || guid(h[32:48]) != l.id {
		return e, false, nil
	}
	e = logEntry{pos: pos, length: int64(le.Uint32(h[8:])), tail: int64(le.Uint32(h[12:])), sequence: le.Uint64(h[16:]),
		descriptors: int64(le.Uint32(h[24:])), flushed: le.Uint64(h[48:]), last: le.Uint64(h[56:])}
	switch {
	case e.length == 0, e.length%logSector != 0, e.length > l.len,
		e.tail%logSector != 0, e.tail >= l.len, e.sequence == 0,
		e.first() > e.length, e.flushed > maxFile, e.last > maxFile:
		return e, false, nil
	}
	if l.budget -= e.length; l.budget < 0 {
		return e, false, damaged(l.off, "log", nil, "its entries overlap one another many times over")
	}
	ok, err = l.whole(e, le.Uint32(h[4:]))
	return e, ok, err
}

// first is where the entry's data sectors begin: behind its descriptors.
func (e logEntry) first() int64 {
	return (entryHeader + descriptor*e.descriptors + logSector - 1) / logSector * logSector
}

// whole checks an entry's checksum, and then each of its descriptors.
func (l *logRing) whole(e logEntry, want uint32) (bool, error) {
	crc, b := uint32(0), make([]byte, logSector)
	for n := int64(0); n < e.length; n += logSector {
		if _, err := l.dev.ReadAt(b, l.at(e.pos+n)); err != nil {
			return false, fmt.Errorf("vhdx: read the log at byte %d: %w", l.at(e.pos+n), err)
		}
		if n == 0 {
			clear(b[4:8])
		}
		crc = crc32.Update(crc, castagnoli, b)
	}
	if crc != want {
		return false, nil
	}
	ok := true
	err := l.each(e, func(d change) error {
		ok = ok && d.valid
		return nil
	})
	return ok, err
}

// change is one descriptor of an entry.
type change struct {
	valid    bool
	off      int64 // in the file
	zero     int64 // length of a run of zeroes; 0: a sector of data
	src      int64 // of data: where its data sector lies in the file
	leading  [8]byte
	trailing [4]byte
}

// each calls fn for the descriptors of an entry, sections 2.3.1.2 to 2.3.1.4.
//
//	data "desc": TrailingBytes (4), LeadingBytes (8), FileOffset (8), SequenceNumber (8)
//	zero "zero": Reserved (4), ZeroLength (8), FileOffset (8), SequenceNumber (8)
//	data sector "data": SequenceHigh (4), Data (4084), SequenceLow (4)
func (l *logRing) each(e logEntry, fn func(change) error) error {
	le := binary.LittleEndian
	data := e.first()
	sector := int64(-1)
	b, s := make([]byte, logSector), make([]byte, logSector)
	for i := range e.descriptors {
		at := entryHeader + descriptor*i
		if at/logSector != sector {
			sector = at / logSector
			if _, err := l.dev.ReadAt(b, l.at(e.pos+sector*logSector)); err != nil {
				return fmt.Errorf("vhdx: read the log: %w", err)
			}
		}
		d := b[at%logSector:][:descriptor]
		off := le.Uint64(d[16:])
		c := change{off: int64(off), valid: off%logSector == 0 && off <= maxFile && le.Uint64(d[24:]) == e.sequence}
		switch string(d[:4]) {
		case "zero":
			n := le.Uint64(d[8:])
			c.zero = int64(n)
			c.valid = c.valid && n > 0 && n%logSector == 0 && n <= maxFile
		case "desc":
			c.src = l.at(e.pos + data)
			c.leading, c.trailing = [8]byte(d[8:16]), [4]byte(d[4:8])
			if data += logSector; data > e.length {
				c.valid = false
				break
			}
			if _, err := l.dev.ReadAt(s, c.src); err != nil {
				return fmt.Errorf("vhdx: read the log: %w", err)
			}
			seq := uint64(le.Uint32(s[4:]))<<32 | uint64(le.Uint32(s[logSector-4:]))
			c.valid = c.valid && string(s[:4]) == "data" && seq == e.sequence
		default:
			c.valid = false
		}
		if err := fn(c); err != nil || !c.valid {
			return err
		}
	}
	return nil
}

// active finds the active sequence, section 2.3.3: the valid and complete one
// whose last entry is the newest, from the entry that its Tail names on.
func (l *logRing) active() ([]logEntry, error) {
	valid := make(map[int64]logEntry)
	for pos := int64(0); pos < l.len; pos += logSector {
		e, ok, err := l.entry(pos)
		if err != nil {
			return nil, err
		}
		if ok {
			valid[pos] = e
		}
	}
	next := func(e logEntry) (logEntry, bool) {
		n, ok := valid[(e.pos+e.length)%l.len]
		return n, ok && n.sequence == e.sequence+1
	}
	// Only sequences that nothing precedes are followed: those that begin
	// within them have the same head and less of a tail.
	follows := make(map[int64]bool)
	for _, e := range valid {
		if n, ok := next(e); ok {
			follows[n.pos] = true
		}
	}
	var best []logEntry
	for pos := int64(0); pos < l.len; pos += logSector {
		e, ok := valid[pos]
		if !ok || follows[pos] {
			continue
		}
		var s []logEntry
		for length, ok := int64(0), true; ok; e, ok = next(e) {
			if length += e.length; length > l.len {
				break // it has come round to itself
			}
			s = append(s, e)
		}
		head := s[len(s)-1]
		if best != nil && head.sequence <= best[len(best)-1].sequence {
			continue
		}
		for i := range s {
			if s[i].pos == head.tail {
				best = s[i:]
				break
			}
		}
	}
	if best == nil {
		return nil, damaged(l.off, "log", l.id.String(), "the header says that the log is to be applied, and there is no valid and complete sequence in it")
	}
	return best, nil
}
