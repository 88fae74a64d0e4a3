package dmsnap

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"sync"

	"github.com/cleave-san/cleave/lun"
)

// Metadata areas lie a chunk for every E+1 chunks apart, so that on a store with
// small chunks there are thousands of small reads: some are made at once.
const (
	readsAtOnce = 64
	bytesAtOnce = 4 << 20
)

// readTable reads the metadata areas. Area a is one chunk, number
// 1 + a*(E+1) with E exceptions to the area; the data chunks lie between. The
// first entry whose new chunk is 0 ends the table; a full area is followed by
// the next, which the kernel zeroes before it fills the one before.
func (s *Store) readTable() error {
	t := table{
		perArea: uint64(s.Chunk / entrySize), cow: uint64(s.cow.Size() / s.Chunk),
		origin: uint64((s.origin + s.Chunk - 1) / s.Chunk),
	}
	// Twice as many areas each time: a small table is not read far beyond.
	most := int(max(1, min(readsAtOnce, bytesAtOnce/s.Chunk)))
	buf := make([]byte, s.Chunk)
	for n, area, more := 1, uint64(0), true; more; n = min(2*n, most) {
		if len(buf) < n*int(s.Chunk) {
			buf = make([]byte, n*int(s.Chunk))
		}
		areas := s.readAreas(&t, area, buf[:n*int(s.Chunk)])
		for i, a := range areas {
			if a.err != nil {
				return a.err
			}
			s.Areas++
			var err error
			if more, err = t.add(buf[i*int(s.Chunk):][:s.Chunk], a.at); err != nil {
				return err
			}
			if !more {
				break
			}
		}
		area += uint64(n)
		more = more && len(areas) == n // a full store ends with its last area
	}
	t.list, t.blocks = slices.Concat(t.blocks...), nil
	if err := t.sort(); err != nil {
		return err
	}
	s.table = t.list
	s.index = newIndex(s.table)
	return nil
}

// area is one that was read.
type area struct {
	at  int64 // on the store
	err error
}

// readAreas reads as many areas from first on as buf has room for and the store
// has.
func (s *Store) readAreas(t *table, first uint64, buf []byte) []area {
	var areas []area
	for i := range uint64(len(buf)) / uint64(s.Chunk) {
		chunk := 1 + (first+i)*(t.perArea+1)
		if chunk >= t.cow {
			break
		}
		areas = append(areas, area{at: int64(chunk) * s.Chunk})
	}
	var wg sync.WaitGroup
	for i := range areas {
		read := func() {
			a := &areas[i]
			if _, err := s.cow.ReadAt(buf[int64(i)*s.Chunk:][:s.Chunk], a.at); err != nil {
				a.err = fmt.Errorf("read the snapshot's exception table at byte %d: %w", a.at, err)
			}
		}
		if len(areas) == 1 {
			read()
			continue
		}
		wg.Go(read)
	}
	wg.Wait()
	return areas
}

// exception says that the store keeps chunk old of the origin in its chunk new.
type exception struct{ old, new uint64 }

// block is how many exceptions are gathered in one piece, so that a table of a
// size that nobody knows does not grow by being copied again and again.
const block = 8192

type table struct {
	perArea, cow, origin uint64
	blocks               [][]exception
	count                int
	list                 []exception // all of them, in the end
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
		case t.count >= MaxExceptions:
			return fail(0, "exceptions", uint64(t.count), "larger tables are not read")
		}
		k := len(t.blocks) - 1
		if k < 0 || len(t.blocks[k]) == block {
			size := block
			if k < 0 {
				size = 0 // most tables are small
			}
			t.blocks, k = append(t.blocks, make([]exception, 0, size)), k+1
		}
		t.blocks[k] = append(t.blocks[k], exception{from, to})
		t.count++
	}
	return true, nil
}

// sort orders the table by old chunk and refuses a chunk, of either side, that
// is there twice. It needs no memory besides the table's.
func (t *table) sort() error {
	byNew := func(a, b exception) int { return cmp.Compare(a.new, b.new) }
	byOld := func(a, b exception) int { return cmp.Compare(a.old, b.old) }
	if !slices.IsSortedFunc(t.list, byNew) { // as the kernel allocates, it is
		slices.SortFunc(t.list, byNew)
	}
	for i := 1; i < len(t.list); i++ {
		if t.list[i].new == t.list[i-1].new {
			return &lun.FormatError{Format: format, Offset: -1, Field: "new_chunk", Value: t.list[i].new, Reason: "keeps two different chunks of the origin"}
		}
	}
	if !slices.IsSortedFunc(t.list, byOld) {
		slices.SortFunc(t.list, byOld)
	}
	for i := 1; i < len(t.list); i++ {
		if t.list[i].old == t.list[i-1].old {
			return &lun.FormatError{Format: format, Offset: -1, Field: "old_chunk", Value: t.list[i].old, Reason: "is in the exception table twice"}
		}
	}
	return nil
}

// index cuts the range of old chunks that a table has into equal pieces, eight
// exceptions each if they were spread evenly, and tells where each begins: a
// lookup then searches in a few cache lines and not in all of the table.
type index struct {
	first, width uint64
	begin        []uint32 // of each piece; one more for the end
}

func newIndex(list []exception) index {
	if len(list) == 0 {
		return index{}
	}
	first, last := list[0].old, list[len(list)-1].old
	pieces := uint64(len(list)/8 + 1)
	x := index{first: first, width: (last-first)/pieces + 1, begin: make([]uint32, pieces+1)}
	at := 0
	for p := range x.begin {
		for at < len(list) && (list[at].old-first)/x.width < uint64(p) {
			at++
		}
		x.begin[p] = uint32(at)
	}
	x.begin[pieces] = uint32(len(list))
	return x
}

// find is where chunk is in the list, or would be.
func (x *index) find(list []exception, chunk uint64) int {
	if len(list) == 0 || chunk <= x.first {
		return 0
	}
	p := (chunk - x.first) / x.width
	if p >= uint64(len(x.begin)-1) {
		return len(list)
	}
	lo, hi := int(x.begin[p]), int(x.begin[p+1])
	return lo + sort.Search(hi-lo, func(i int) bool { return list[lo+i].old >= chunk })
}

// Lookup says where byte off of the snapshot lies: at byte at of the store if
// kept, else at the same byte of the origin; and for how many bytes that holds
// (up to the origin's end).
func (s *Store) Lookup(off int64) (at, run int64, kept bool) {
	end := s.origin - off
	if len(s.table) == 0 {
		return 0, end, false
	}
	chunk, in := uint64(off/s.Chunk), off%s.Chunk
	i := s.index.find(s.table, chunk)
	if i == len(s.table) {
		return 0, end, false
	}
	if s.table[i].old != chunk {
		return 0, min(int64(s.table[i].old)*s.Chunk-off, end), false
	}
	n := s.Chunk - in
	for j := i + 1; j < len(s.table) && n < 1<<20 && s.table[j].old == s.table[j-1].old+1 && s.table[j].new == s.table[j-1].new+1; j++ {
		n += s.Chunk
	}
	return int64(s.table[i].new)*s.Chunk + in, min(n, end), true
}
