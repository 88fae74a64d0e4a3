package embedded

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
)

// journal is the part of an intent log's map file in which bits are stable before
// their blocks are written: the marks of all writes that wait at once, wherever
// they lie in the volume, cost one sector and one sync. Only set bits go into it.
// When it is full the blocks are written, and its sectors are used again from
// the first.
//
//	sector  0  CRC-32C of bytes 4 to 511
//	        4  how many bits it has
//	        8  lap: how often the journal was begun anew (uint64)
//	       16  number of the sector in the journal
//	       20  zero
//	       24  the bits (uint64 each)
//
// A sector that has room is written once more with further bits: it is on the
// disk as it was or as it is, never a part of either.
//
// What counts is the run of sectors from the first on that are of the first one's
// lap. A lap begins when all before it is stable in the blocks, so that the write
// of its first sector ends the one before at the moment from which it counts
// itself: what a cut of power leaves is all that was stable, and at most what was
// marked and then cleared while nothing new was marked.
//
// A sector of the run that fails its checksum means that all bits are taken to be
// set, since none but itself knew which it had.
type journal struct {
	sectors int64
	lap     uint64
	next    int64   // the sector that is written next; sectors if it is full
	last    []int64 // what it has already
	used    bool    // a lap on the disk has bits
	buf     []byte
}

const (
	minJournal = 4
	// maxJournal is large enough that the blocks of the largest log, all of
	// which may have changed, are written for some fifteen thousand marks at once.
	maxJournal = 256

	bitsPerSector = (sector - 24) / 8
)

// newJournal is one for a new map of so many blocks, of a size that makes writing
// all of them rare.
func newJournal(blocks int64) *journal {
	return &journal{sectors: min(max(blocks, minJournal), maxJournal), lap: 1}
}

// flushMarks makes bits that were set before the call stable, by the journal.
func (m *mapFile) flushMarks(marks []int64) error {
	m.flushing.Lock()
	defer m.flushing.Unlock()
	j := m.journal
	for len(marks) > 0 {
		if m.failed != nil {
			return m.failed
		}
		if j.next == j.sectors { // all of the marks are in the blocks
			return m.beginLap()
		}
		first := j.next
		j.buf, j.used = j.buf[:0], true
		for len(marks) > 0 && j.next < j.sectors {
			n := min(len(marks), bitsPerSector-len(j.last))
			j.last = append(j.last, marks[:n]...)
			marks = marks[n:]
			j.buf = j.appendSector(j.buf)
			if len(j.last) == bitsPerSector {
				j.next++
				j.last = j.last[:0]
			}
		}
		if err := m.writeJournal(first); err != nil {
			return err
		}
		if err := m.sync(); err != nil {
			return err
		}
	}
	return nil
}

// beginLap writes the blocks, so that the journal is free. m.flushing is held.
func (m *mapFile) beginLap() error {
	if err := m.flushBlocks(); err != nil {
		return err
	}
	m.journal.begin()
	return nil
}

// resetJournal begins a lap with a sector without bits, so that what was cleared
// is forgotten. It need not be stable: until the next mark is, what the lap before
// says may as well be believed. The blocks are stable, m.flushing is held.
func (m *mapFile) resetJournal() error {
	j := m.journal
	if !j.used {
		return nil
	}
	j.begin()
	j.buf, j.used = j.appendSector(j.buf[:0]), false
	return m.writeJournal(0)
}

// begin begins a lap.
func (j *journal) begin() {
	j.lap++
	j.next, j.last = 0, j.last[:0]
}

func (m *mapFile) writeJournal(first int64) error {
	if _, err := m.f.WriteAt(m.journal.buf, (1+first)*sector); err != nil {
		m.failed = fmt.Errorf("writing the journal of map %s: %w", filepath.Base(m.path), err)
	}
	return m.failed
}

// appendSector adds sector j.next to buf.
func (j *journal) appendSector(buf []byte) []byte {
	n := len(buf)
	buf = append(buf, emptySector[:]...)
	b := buf[n:]
	le := binary.LittleEndian
	le.PutUint32(b[4:], uint32(len(j.last)))
	le.PutUint64(b[8:], j.lap)
	le.PutUint32(b[16:], uint32(j.next))
	for i, bit := range j.last {
		le.PutUint64(b[24+8*i:], uint64(bit))
	}
	le.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return buf
}

// replay adds what the journal has to the bits of the blocks. bad is how many
// blocks' bits all had to be set. The next flush writes blocks, before the
// journal is used again.
func (m *mapFile) replay(f io.ReaderAt) (bad int64, err error) {
	j := m.journal
	buf := make([]byte, j.sectors*sector)
	n, err := f.ReadAt(buf, sector)
	if err != nil && err != io.EOF {
		return 0, err
	}
	j.next, j.used = j.sectors, true
	counts, first := true, uint64(0)
	for i := range int64((n + sector - 1) / sector) { // what the file lacks is zero
		b := buf[i*sector : (i+1)*sector]
		lap, err := journalLap(b, i)
		if i == 0 {
			first = lap
		}
		if counts && err != nil {
			bad = m.blocks()
		}
		if counts = counts && err == nil && lap != 0 && lap == first; counts {
			m.replaySector(b)
		}
		j.lap = max(j.lap, lap) // of what no sync covered too: it must not count later
	}
	for i := range bad {
		m.fillBlock(i)
	}
	return bad, nil
}

// journalLap is the lap of sector i, 0 if it was never written.
func journalLap(b []byte, i int64) (uint64, error) {
	le := binary.LittleEndian
	switch {
	case bytes.Equal(b, emptySector[:]):
		return 0, nil
	case le.Uint32(b) != crc32.Checksum(b[4:], castagnoli), le.Uint32(b[4:]) > bitsPerSector, int64(le.Uint32(b[16:])) != i:
		return 0, errMapDamaged
	}
	return le.Uint64(b[8:]), nil
}

func (m *mapFile) replaySector(b []byte) {
	le := binary.LittleEndian
	for i := range le.Uint32(b[4:]) {
		if bit := le.Uint64(b[24+8*i:]); bit < uint64(m.n()) {
			m.set(int64(bit))
		}
	}
}
