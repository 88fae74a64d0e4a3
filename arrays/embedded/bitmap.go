package embedded

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// wordsPerBlock is how many words of a bitmap share one checksum: with a
// 16-byte header they fill a 512-byte sector (see mapfile.go).
const (
	wordsPerBlock = 62
	bitsPerBlock  = wordsPerBlock * 64
)

// bitmap is a set of regions. Blocks without a bit take no memory. All methods
// may be called at once.
type bitmap struct {
	bits  atomic.Int64
	table atomic.Pointer[bitTable]
	ones  atomic.Int64
	alloc sync.Mutex // new blocks and new tables

	changes sync.Mutex
	changed []int64 // blocks that became dirty; some may be clean again
}

// bitTable has a place for each block. A larger one may take its place; the
// blocks stay the same.
type bitTable []atomic.Pointer[bitBlock]

type bitBlock struct {
	words [wordsPerBlock]atomic.Uint64
	dirty atomic.Bool // differs from the file
}

func newBitmap(n int64) *bitmap {
	b := new(bitmap)
	b.grow(n)
	return b
}

func blocksFor(bits int64) int64 { return (bits + bitsPerBlock - 1) / bitsPerBlock }

// regionsFor is how many regions of unit bytes cover size bytes.
func regionsFor(size, unit int64) int64 { return (size + unit - 1) / unit }

// n is how many bits there are.
func (b *bitmap) n() int64 { return b.bits.Load() }

// blocks is how many blocks there are.
func (b *bitmap) blocks() int64 { return int64(len(*b.table.Load())) }

// peek returns block i, nil if it has no bits.
func (b *bitmap) peek(i int64) *bitBlock { return (*b.table.Load())[i].Load() }

func (b *bitmap) block(i int64) *bitBlock {
	if blk := b.peek(i); blk != nil {
		return blk
	}
	b.alloc.Lock()
	defer b.alloc.Unlock()
	p := &(*b.table.Load())[i]
	blk := p.Load()
	if blk == nil {
		blk = new(bitBlock)
		p.Store(blk)
	}
	return blk
}

// grow makes room for n bits.
func (b *bitmap) grow(n int64) {
	b.alloc.Lock()
	defer b.alloc.Unlock()
	t := make(bitTable, blocksFor(n))
	if old := b.table.Load(); old != nil {
		for i := range *old {
			t[i].Store((*old)[i].Load())
		}
	}
	b.table.Store(&t)
	b.bits.Store(n)
}

// set adds bit i and reports whether it was new.
func (b *bitmap) set(i int64) bool {
	blk := b.block(i / bitsPerBlock)
	w, m := &blk.words[i%bitsPerBlock/64], uint64(1)<<(i%64)
	if w.Load()&m != 0 || w.Or(m)&m != 0 {
		return false
	}
	b.ones.Add(1)
	b.touch(blk, i/bitsPerBlock)
	return true
}

func (b *bitmap) clear(i int64) {
	blk := b.peek(i / bitsPerBlock)
	if blk == nil {
		return
	}
	w, m := &blk.words[i%bitsPerBlock/64], uint64(1)<<(i%64)
	if w.Load()&m == 0 || w.And(^m)&m == 0 {
		return
	}
	b.ones.Add(-1)
	b.touch(blk, i/bitsPerBlock)
}

// touch makes block i dirty after a change of it. Whoever finds it dirty knows
// that it is among those changed, so that takeChanged gives it.
func (b *bitmap) touch(blk *bitBlock, i int64) {
	if blk.dirty.Load() {
		return
	}
	b.changes.Lock()
	if !blk.dirty.Swap(true) {
		b.changed = append(b.changed, i)
	}
	b.changes.Unlock()
}

// takeChanged gives all blocks that became dirty since it was last called, in
// any order. What it returned the last time is its memory for the next.
func (b *bitmap) takeChanged(last []int64) []int64 {
	b.changes.Lock()
	defer b.changes.Unlock()
	out := b.changed
	b.changed = last[:0]
	return out
}

func (b *bitmap) get(i int64) bool {
	blk := b.peek(i / bitsPerBlock)
	return blk != nil && blk.words[i%bitsPerBlock/64].Load()&(1<<(i%64)) != 0
}

func (b *bitmap) count() int64 { return b.ones.Load() }

// setRange marks the regions of unit bytes that [off, off+n) touches.
func (b *bitmap) setRange(off, n, unit int64) {
	if n <= 0 {
		return
	}
	for i, last := off/unit, (off+n-1)/unit; i <= last; i++ {
		b.set(i)
	}
}

// or adds all of o's bits. o may be shorter or longer; bits beyond b's end are
// left out.
func (b *bitmap) or(o *bitmap) {
	for i := int64(0); i >= 0; i++ {
		if i = o.next(i); i < 0 || i >= b.n() {
			return
		}
		b.set(i)
	}
}

// next is the first bit that is set from i on, or -1.
func (b *bitmap) next(i int64) int64 {
	for i < b.n() {
		blk := b.peek(i / bitsPerBlock)
		if blk == nil {
			i = (i/bitsPerBlock + 1) * bitsPerBlock
			continue
		}
		w := blk.words[i%bitsPerBlock/64].Load() >> (i % bitsPerBlock % 64)
		if w != 0 {
			if i += int64(bits.TrailingZeros64(w)); i < b.n() {
				return i
			}
			return -1
		}
		i += 64 - i%bitsPerBlock%64
	}
	return -1
}

// run is the first run of bits that are set from i on, of at most most bits;
// n is 0 if there is none.
func (b *bitmap) run(i, most int64) (first, n int64) {
	if first = b.next(i); first < 0 {
		return 0, 0
	}
	n = 1
	for n < most && first+n < b.n() && b.get(first+n) {
		n++
	}
	return first, n
}

// countUnion is how many bits are in at least one of the sets.
func countUnion(sets []*bitmap) (n int64) {
	var blocks int64
	for _, b := range sets {
		blocks = max(blocks, b.blocks())
	}
	for i := range blocks {
		var words [wordsPerBlock]uint64
		for _, b := range sets {
			if i >= b.blocks() {
				continue
			}
			if blk := b.peek(i); blk != nil {
				for w := range words {
					words[w] |= blk.words[w].Load()
				}
			}
		}
		for _, w := range words {
			n += int64(bits.OnesCount64(w))
		}
	}
	return n
}
