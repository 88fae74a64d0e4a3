package ext4

import (
	"fmt"

	"github.com/cleave-san/cleave/lun/fs"
)

// run is consecutive blocks of a file that are alike: [from, from+n) of the
// file, at the blocks from at on. Of a hole n may be less than it could be.
type run struct {
	from, n uint64
	kind    fs.Kind
	at      uint64
}

// maxLogical is the number of blocks that a file can have.
const maxLogical = 1 << 32

// run finds the run in which a block of a file is.
func (f *FS) run(n *inode, block uint64) (run, error) {
	if n.has(flagExtents) {
		return f.extent(n, block)
	}
	return f.mapped(n, block)
}

// Extent trees: ext4_extent_header, then entries of 12 bytes.
const (
	extentMagic  = 0xF30A
	extentSize   = 12
	maxWritten   = 32768 // ee_len above it: unwritten
	maxTreeDepth = 5
)

// extent looks a block up in the extent tree. What a node says must lie within
// what its parent says of it, so that no tree is larger than it may be.
func (f *FS) extent(n *inode, block uint64) (run, error) {
	node, low, high := n.blocks(), uint64(0), uint64(maxLogical)
	bad := func(field string, value any, reason string) error {
		return damaged(-1, field, value, fmt.Sprintf("inode %d: %s", n.number, reason))
	}
	for depth := -1; ; {
		count, capacity, d := int(le.Uint16(node[2:])), int(le.Uint16(node[4:])), int(le.Uint16(node[6:]))
		switch {
		case le.Uint16(node) != extentMagic:
			return run{}, bad("eh_magic", le.Uint16(node), "a node of the extent tree is none")
		case depth < 0 && d > maxTreeDepth, depth >= 0 && d != depth:
			return run{}, bad("eh_depth", d, "the extent tree has another depth")
		case count > capacity || extentSize*(capacity+1) > len(node):
			return run{}, bad("eh_entries", count, "a node of the extent tree has more entries than room")
		}
		depth = d
		entry := func(i int) []byte { return node[extentSize*(i+1):] }
		first := func(i int) uint64 { return uint64(le.Uint32(entry(i))) }
		// The last entry that does not begin after the block.
		i, j := 0, count
		for i < j {
			if m := (i + j) / 2; first(m) <= block {
				i = m + 1
			} else {
				j = m
			}
		}
		if i < count {
			if first(i) >= high || i > 0 && first(i) <= first(i-1) {
				return run{}, bad("ee_block", first(i), "the extent tree is out of order")
			}
			high = first(i)
		}
		if i--; i < 0 { // before the first entry of the node
			return run{from: block, n: high - block, kind: fs.Hole}, nil
		}
		if first(i) < low {
			return run{}, bad("ee_block", first(i), "the extent tree is out of order")
		}
		low = first(i)
		e := entry(i)
		if depth == 0 {
			return f.leaf(n, e, block, high)
		}
		depth--
		at := uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32
		b, err := f.block(at, "ei_leaf")
		if err != nil {
			return run{}, err
		}
		if tail := extentSize * (int(le.Uint16(b[4:])) + 1); f.s.csum() {
			if tail+4 > len(b) || crc32c(n.seed, b[:tail]) != le.Uint32(b[tail:]) {
				return run{}, damaged(int64(at)*f.s.blockSize, "et_checksum", nil, fmt.Sprintf("a node of the extent tree of inode %d has a wrong checksum", n.number))
			}
		}
		node = b
	}
}

// leaf reads an extent. next is where the following one begins.
func (f *FS) leaf(n *inode, e []byte, block, next uint64) (run, error) {
	r := run{from: uint64(le.Uint32(e)), n: uint64(le.Uint16(e[4:])), at: uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32}
	if r.n > maxWritten {
		r.n, r.kind = r.n-maxWritten, fs.Unwritten
	}
	if r.n == 0 || r.from+r.n > next {
		return run{}, damaged(-1, "ee_len", r.n, fmt.Sprintf("inode %d: extents overlap", n.number))
	}
	if r.at == 0 || r.at >= f.s.blocks || r.n > f.s.blocks-r.at {
		return run{}, damaged(-1, "ee_start", r.at, fmt.Sprintf("inode %d: an extent lies outside of the file system", n.number))
	}
	if block >= r.from+r.n {
		return run{from: block, n: next - block, kind: fs.Hole}, nil
	}
	return r, nil
}

// mapped looks a block up in the block map of ext2 and ext3: twelve blocks, then
// trees of one, two and three levels.
func (f *FS) mapped(n *inode, block uint64) (run, error) {
	per := uint64(f.s.blockSize / 4)
	table, i, span := n.blocks(), block, uint64(1)
	if block >= 12 {
		rest, levels := block-12, 1
		for span = per; rest >= span; levels++ {
			if levels == 3 {
				return run{from: block, n: maxLogical - min(block, maxLogical-1), kind: fs.Hole}, nil
			}
			rest -= span
			span *= per
		}
		i = uint64(11 + levels)
		for ; levels > 0; levels-- {
			at := uint64(le.Uint32(table[4*i:]))
			if at == 0 {
				return run{from: block, n: span - rest, kind: fs.Hole}, nil
			}
			b, err := f.block(at, "i_block")
			if err != nil {
				return run{}, err
			}
			table, span = b, span/per
			i, rest = rest/span, rest%span
		}
	}
	return f.inTable(n, table, i, block)
}

// inTable takes as many entries of a table as are alike.
func (f *FS) inTable(n *inode, table []byte, i, block uint64) (run, error) {
	end := uint64(len(table) / 4)
	if block < 12 {
		end = 12
	}
	at := uint64(le.Uint32(table[4*i:]))
	if at == 0 {
		r := run{from: block, n: 1, kind: fs.Hole}
		for i++; i < end && le.Uint32(table[4*i:]) == 0; i++ {
			r.n++
		}
		return r, nil
	}
	r := run{from: block, n: 1, at: at}
	for i++; i < end && uint64(le.Uint32(table[4*i:])) == at+r.n; i++ {
		r.n++
	}
	if at >= f.s.blocks || r.n > f.s.blocks-at {
		return run{}, damaged(-1, "i_block", at, fmt.Sprintf("inode %d: a block lies outside of the file system", n.number))
	}
	return r, nil
}
