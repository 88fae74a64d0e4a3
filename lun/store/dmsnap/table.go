package dmsnap

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"github.com/cleave-san/cleave/lun"
)

// readTable reads the metadata areas. Area a is one chunk, number
// 1 + a*(E+1) with E exceptions to the area; the data chunks lie between. The
// first entry whose new chunk is 0 ends the table; a full area is followed by
// the next, which the kernel zeroes before it fills the one before.
func (s *Store) readTable() error {
	perArea := uint64(s.Chunk / entrySize)
	cowChunks := uint64(s.cow.Size() / s.Chunk)
	originChunks := uint64((s.origin + s.Chunk - 1) / s.Chunk)
	buf := make([]byte, s.Chunk)
	t := table{perArea: perArea, cow: cowChunks, origin: originChunks}
	for area := uint64(0); ; area++ {
		chunk := 1 + area*(perArea+1)
		if chunk >= cowChunks {
			break // a full store ends with its last area
		}
		at := int64(chunk) * s.Chunk
		if _, err := s.cow.ReadAt(buf, at); err != nil {
			return fmt.Errorf("read the snapshot's exception table at byte %d: %w", at, err)
		}
		s.Areas++
		more, err := t.add(buf, at)
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	if err := t.sort(); err != nil {
		return err
	}
	s.old, s.new = t.old, t.new
	return nil
}

type table struct {
	perArea, cow, origin uint64
	old, new             []uint64
}

// add takes an area's entries and reports whether another area follows.
func (t *table) add(buf []byte, at int64) (bool, error) {
	for i := 0; i+entrySize <= len(buf); i += entrySize {
		from, to := binary.LittleEndian.Uint64(buf[i:]), binary.LittleEndian.Uint64(buf[i+8:])
		if to == 0 {
			return false, nil
		}
		fail := func(off int, field string, v uint64, why string) (bool, error) {
			return false, &lun.FormatError{Format: format, Offset: at + int64(i+off), Field: field, Value: v, Reason: why}
		}
		switch {
		case from >= t.origin:
			return fail(0, "old_chunk", from, fmt.Sprintf("the origin has only %d chunks", t.origin))
		case to >= t.cow:
			return fail(8, "new_chunk", to, fmt.Sprintf("the store has only %d chunks", t.cow))
		case (to-1)%(t.perArea+1) == 0:
			return fail(8, "new_chunk", to, "is a chunk of the table itself")
		case len(t.old) >= MaxExceptions:
			return fail(0, "exceptions", uint64(len(t.old)), "larger tables are not read")
		}
		t.old, t.new = append(t.old, from), append(t.new, to)
	}
	return true, nil
}

// sort orders the table by old chunk and refuses a chunk, of either side, that
// is there twice.
func (t *table) sort() error {
	byNew := slices.Clone(t.new)
	slices.Sort(byNew)
	for i := 1; i < len(byNew); i++ {
		if byNew[i] == byNew[i-1] {
			return &lun.FormatError{Format: format, Offset: -1, Field: "new_chunk", Value: byNew[i], Reason: "keeps two different chunks of the origin"}
		}
	}
	if !slices.IsSorted(t.old) {
		sort.Sort(t)
	}
	for i := 1; i < len(t.old); i++ {
		if t.old[i] == t.old[i-1] {
			return &lun.FormatError{Format: format, Offset: -1, Field: "old_chunk", Value: t.old[i], Reason: "is in the exception table twice"}
		}
	}
	return nil
}

func (t *table) Len() int           { return len(t.old) }
func (t *table) Less(i, j int) bool { return t.old[i] < t.old[j] }
func (t *table) Swap(i, j int) {
	t.old[i], t.old[j] = t.old[j], t.old[i]
	t.new[i], t.new[j] = t.new[j], t.new[i]
}

// Lookup says where byte off of the snapshot lies: at byte at of the store if
// kept, else at the same byte of the origin; and for how many bytes that holds
// (up to the origin's end).
func (s *Store) Lookup(off int64) (at, run int64, kept bool) {
	end := s.origin - off
	if len(s.old) == 0 {
		return 0, end, false
	}
	chunk, in := uint64(off/s.Chunk), off%s.Chunk
	i, found := slices.BinarySearch(s.old, chunk)
	if !found {
		if i == len(s.old) {
			return 0, end, false
		}
		return 0, min(int64(s.old[i])*s.Chunk-off, end), false
	}
	n := s.Chunk - in
	for j := i + 1; j < len(s.old) && n < 1<<20 && s.old[j] == s.old[j-1]+1 && s.new[j] == s.new[j-1]+1; j++ {
		n += s.Chunk
	}
	return int64(s.new[i])*s.Chunk + in, min(n, end), true
}
