package vss

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
)

// MaxIndex bounds what an open shadow copy holds in memory of its block lists, in
// bytes: four million runs of blocks, 64 GiB of them where nothing is in a row.
const MaxIndex = 64 << 20

const (
	descriptorSize = 32
	indexEntry     = 16
	// reverseEntry is what a forwarder costs while its list is being read.
	reverseEntry = 64
	maxList      = 1 << 16 // blocks of a list, full or not
)

// A block descriptor, 32 bytes:
//
//	 0  8  original offset
//	 8  8  relative offset: in the store, or of a forwarder where it points to
//	16  8  offset of the data on the volume
//	24  4  flags
//	28  4  bitmap of sectors, of an overlay
//
// All of the first three 0: the place is empty.
type descriptor struct {
	original, relative, data uint64
	flags                    flags
	bitmap                   uint32
}

type flags uint32

const (
	flagForwarder flags = 1 << iota
	flagOverlay
	flagUnused
	// Of 0x08 to 0x80 nothing is known, and they change nothing.
)

// store is the index of one store's block list.
type store struct {
	base    list     // blocks and forwarders, in runs
	over    list     // overlays
	targets []uint32 // blocks that forwarders still point to, sorted
}

// entry is, in base, bits blocks in a row of which the first is block; at is where
// they lie, plus forward where they are the next copy's. In over it is one block,
// of whose sectors those in bits lie at at.
type entry struct {
	block, bits uint32
	at          uint64
}

const forward = 1 // offsets are whole sectors

// list is sorted by block.
type list []entry

// find is the first entry that ends behind block, which it may not hold; in over
// bits are no count.
func (l list) find(block uint32, runs bool) int {
	return sort.Search(len(l), func(i int) bool {
		if runs {
			return uint64(l[i].block)+uint64(l[i].bits) > uint64(block)
		}
		return l[i].block >= block
	})
}

// blocks is how many blocks the list holds.
func (l list) blocks() (n int64) {
	for _, e := range l {
		n += int64(e.bits)
	}
	return n
}

// descriptors calls fn for each descriptor that is in use, in order.
func (v *Volume) descriptors(first uint64, fn func(at int64, d descriptor) error) error {
	return v.walk(first, recBlockList, maxList, func(at int64, b []byte) (bool, error) {
		for i := 0; i+descriptorSize <= len(b); i += descriptorSize {
			p := b[i : i+descriptorSize]
			d := descriptor{le.Uint64(p), le.Uint64(p[8:]), le.Uint64(p[16:]), flags(le.Uint32(p[24:])), le.Uint32(p[28:])}
			if d.original == 0 && d.relative == 0 && d.data == 0 || d.flags&flagUnused != 0 {
				continue
			}
			if err := fn(at+int64(i), d); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}

// check refuses a descriptor that points out of the volume.
func (v *Volume) check(at int64, d descriptor) error {
	size := uint64(v.dev.Size())
	switch {
	case d.original%Block != 0 || d.original >= size:
		return damaged(at, "original offset", d.original, fmt.Sprintf("is no block of a volume of %d bytes", size))
	case d.flags&flagForwarder != 0 && (d.relative%sector != 0 || d.relative >= size):
		return damaged(at+8, "relative offset", d.relative, fmt.Sprintf("points to no block of a volume of %d bytes", size))
	case d.flags&flagForwarder != 0 && d.flags&flagOverlay == 0:
	case d.data%sector != 0 || d.data > size || size-d.data < Block:
		return damaged(at+16, "store data offset", d.data, fmt.Sprintf("is no place for a block on a volume of %d bytes", size))
	}
	return nil
}

// readList makes the index of a copy's store. budget is what of MaxIndex is left.
// Overlays are kept only where they are wanted.
//
// The list is a log: what comes later counts. A forwarder says that the content of
// its original offset is what the next copy has at its relative offset; a later
// block of that relative offset is meant for where the forwarder is.
func (v *Volume) readList(c *Copy, overlays bool, budget *int64) (*store, error) {
	var blocks, over int64
	err := v.descriptors(c.list, func(at int64, d descriptor) error {
		switch {
		case d.flags&flagOverlay == 0:
			blocks++
		case overlays:
			over++
		}
		return v.take(budget, indexEntry, at)
	})
	if err != nil {
		return nil, err
	}
	b := builder{base: make(list, 0, blocks), over: make(list, 0, over), reverse: make(map[uint64]uint64)}
	err = v.descriptors(c.list, func(at int64, d descriptor) error {
		if err := v.check(at, d); err != nil {
			return err
		}
		if d.flags&flagForwarder != 0 {
			if err := v.take(budget, reverseEntry, at); err != nil {
				return err
			}
		}
		b.add(d, overlays)
		return nil
	})
	if err != nil {
		return nil, err
	}
	st := &store{base: runs(b.base), over: overlay(b.over)}
	for target := range b.reverse {
		if target%Block == 0 {
			st.targets = append(st.targets, uint32(target/Block))
		}
	}
	slices.Sort(st.targets)
	*budget += int64(cap(b.base)+cap(b.over))*indexEntry - int64(cap(st.base)+cap(st.over))*indexEntry
	return st, nil
}

// Count reads a copy's own block list and says how many blocks it has, overlays
// included. It needs no memory to speak of. That it has no error says that the list
// is in order, not that those of younger copies are.
func (v *Volume) Count(c *Copy) (n int64, err error) {
	if c.Err != nil {
		return 0, c.Err
	}
	err = v.descriptors(c.list, func(at int64, d descriptor) error {
		n++
		return v.check(at, d)
	})
	return n, err
}

func (v *Volume) take(budget *int64, n, at int64) error {
	if *budget -= n; *budget < 0 {
		return damaged(at, "block list", nil, fmt.Sprintf("the index of this shadow copy needs more than %d MiB", MaxIndex>>20))
	}
	return nil
}

type builder struct {
	base, over list
	reverse    map[uint64]uint64 // relative offset to original, of forwarders
}

func (b *builder) add(d descriptor, overlays bool) {
	o := d.original
	isOverlay := d.flags&flagOverlay != 0
	if to, ok := b.reverse[o]; ok && !isOverlay {
		delete(b.reverse, o)
		o = to
	}
	if d.flags&flagForwarder != 0 && o == d.relative {
		return
	}
	e := entry{block: uint32(o / Block), bits: 1, at: d.data}
	switch {
	case isOverlay && overlays:
		e.bits = d.bitmap
		b.over = append(b.over, e)
	case isOverlay:
	case d.flags&flagForwarder != 0:
		e.at = d.relative | forward
		b.base = append(b.base, e)
	default:
		b.base = append(b.base, e)
	}
	if d.flags&flagForwarder != 0 {
		b.reverse[d.relative] = o
	}
}

func byBlock(a, b entry) int { return cmp.Compare(a.block, b.block) }

// runs sorts a log of blocks: of two of one block the later one counts. Neighbours
// become one.
func runs(l list) list {
	slices.SortStableFunc(l, byBlock)
	out := l[:0]
	for i, e := range l {
		if i+1 < len(l) && l[i+1].block == e.block {
			continue
		}
		if k := len(out) - 1; k >= 0 && out[k].block+out[k].bits == e.block && out[k].at+uint64(out[k].bits)*Block == e.at {
			out[k].bits++
			continue
		}
		out = append(out, e)
	}
	return fitted(out)
}

// overlay sorts a log of overlays: those of one block are joined, and the data of
// all of them lies where that of the first does.
func overlay(l list) list {
	slices.SortStableFunc(l, byBlock)
	out := l[:0]
	for _, e := range l {
		if k := len(out) - 1; k >= 0 && out[k].block == e.block {
			out[k].bits |= e.bits
			continue
		}
		out = append(out, e)
	}
	return fitted(out)
}

// fitted gives memory back where most of it is not used.
func fitted(l list) list {
	if cap(l) > 2*len(l) {
		return slices.Clip(slices.Clone(l))
	}
	return l
}
