package xfs

import (
	"fmt"
	"sort"

	"github.com/cleave-san/cleave/lun/fs"
)

const (
	treeMagic4 = 0x424D4150 // "BMAP"
	treeMagic5 = 0x424D4133 // "BMA3"
	treeLevels = 9          // XFS_BM_MAXLEVELS is less

	// maxBlock is above all blocks of a file.
	maxBlock = uint64(1) << 54
)

// run is blocks of a fork that are alike.
type run struct {
	from, n uint64 // blocks of the fork
	at      int64  // byte on the device, if not a hole
	kind    fs.Kind
}

// record is an extent as it is kept (struct xfs_bmbt_rec): a flag, 54 bits of the
// block in the fork, 52 of the one on the device, 21 of their number.
type record struct {
	from, fsb, n uint64
	unwritten    bool
}

func parseRecord(b []byte) record {
	high, low := be.Uint64(b), be.Uint64(b[8:])
	return record{from: high >> 9 & (maxBlock - 1), fsb: high&0x1FF<<43 | low>>21, n: low & (1<<21 - 1), unwritten: high>>63 != 0}
}

// run finds what holds a block of a fork.
func (f *FS) run(n *inode, k *fork, block uint64) (run, error) {
	switch k.format {
	case formatExtents:
		if k.count > uint64(len(k.raw)/16) {
			return run{}, damaged(n.at, "di_nextents", k.count, fmt.Sprintf("inode %d: that many extents do not fit its %s fork", n.number, k.name))
		}
		return f.inRecords(n, k.raw[:16*k.count], block, 0, maxBlock)
	case formatTree:
		return f.inTree(n, k, block)
	}
	return run{}, damaged(n.at+5, "di_format", k.format, fmt.Sprintf("inode %d: its %s fork has no blocks", n.number, k.name))
}

// inRecords finds a block among records that tell of blocks from low to below high.
func (f *FS) inRecords(n *inode, b []byte, block, low, high uint64) (run, error) {
	count := len(b) / 16
	i := sort.Search(count, func(i int) bool { return parseRecord(b[16*i:]).from > block })
	if i > 0 {
		r := parseRecord(b[16*(i-1):])
		low = r.from + r.n
		if r.n == 0 || low > maxBlock {
			return run{}, damaged(n.at, "br_blockcount", r.n, fmt.Sprintf("inode %d: no extent has that length", n.number))
		}
		if block < low {
			return f.mapped(n, r)
		}
	}
	if i < count {
		high = min(high, parseRecord(b[16*i:]).from)
	}
	if high <= block {
		return run{}, damaged(n.at, "br_startoff", high, fmt.Sprintf("inode %d: extents are not in order", n.number))
	}
	return run{from: min(low, block), n: high - min(low, block), kind: fs.Hole}, nil
}

func (f *FS) mapped(n *inode, r record) (run, error) {
	at, ok := f.s.byteOf(r.fsb, r.n)
	if !ok {
		return run{}, damaged(n.at, "br_startblock", r.fsb, fmt.Sprintf("inode %d: an extent lies outside of the file system", n.number))
	}
	out := run{from: r.from, n: r.n, at: at}
	if r.unwritten {
		out.kind = fs.Unwritten
	}
	return out, nil
}

// inTree descends from the root in the inode (struct xfs_bmdr_block). Levels
// decrease on the way, so it ends.
func (f *FS) inTree(n *inode, k *fork, block uint64) (run, error) {
	if len(k.raw) < 20 {
		return run{}, damaged(n.at, "di_forkoff", len(k.raw), fmt.Sprintf("inode %d: no root of a tree fits its %s fork", n.number, k.name))
	}
	level, count, fit := int(be.Uint16(k.raw)), int(be.Uint16(k.raw[2:])), (len(k.raw)-4)/16
	if level == 0 || level > treeLevels || count == 0 || count > fit {
		return run{}, damaged(n.at, "bb_level", level, fmt.Sprintf("inode %d: its %s fork has no root of a tree", n.number, k.name))
	}
	keys, pointers := k.raw[4:], k.raw[4+8*fit:]
	low, high := uint64(0), maxBlock
	for {
		i := sort.Search(count, func(i int) bool { return be.Uint64(keys[8*i:]) > block })
		if i < count {
			high = min(high, be.Uint64(keys[8*i:]))
		}
		if i == 0 {
			return run{from: low, n: max(high, block+1) - low, kind: fs.Hole}, nil
		}
		low = max(low, be.Uint64(keys[8*(i-1):]))
		level--
		b, err := f.treeBlock(n, be.Uint64(pointers[8*(i-1):]), level)
		if err != nil {
			return run{}, err
		}
		head := f.treeHeader()
		count = int(be.Uint16(b[6:]))
		if fit = (len(b) - head) / 16; count > fit {
			return run{}, damaged(-1, "bb_numrecs", count, fmt.Sprintf("inode %d: that many records do not fit a block", n.number))
		}
		if level == 0 {
			return f.inRecords(n, b[head:head+16*count], block, low, high)
		}
		keys, pointers = b[head:], b[head+8*fit:]
	}
}

func (f *FS) treeHeader() int {
	if f.s.v5 {
		return 72
	}
	return 24
}

// treeBlock reads a block of a fork's tree.
func (f *FS) treeBlock(n *inode, fsb uint64, level int) ([]byte, error) {
	at, ok := f.s.byteOf(fsb, 1)
	if !ok {
		return nil, damaged(-1, "bb_ptr", fsb, fmt.Sprintf("inode %d: a block of its tree lies outside of the file system", n.number))
	}
	b := make([]byte, f.s.blockSize)
	if _, err := f.meta.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("xfs inode %d: %w", n.number, err)
	}
	want := uint32(treeMagic4)
	if f.s.v5 {
		want = treeMagic5
	}
	if magic := be.Uint32(b); magic != want {
		return nil, damaged(at, "bb_magic", magic, fmt.Sprintf("is no block of the tree of inode %d", n.number))
	}
	if got := int(be.Uint16(b[4:])); got != level {
		return nil, damaged(at+4, "bb_level", got, fmt.Sprintf("the tree of inode %d should have level %d there", n.number, level))
	}
	if f.s.v5 {
		if err := f.verify(b, at, treeFields, n.number); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// readFork reads size bytes of metadata from a block of a fork on, and tells
// where on the device the first lies. ok is false if that is a hole, of which
// next is the end.
func (f *FS) readFork(n *inode, k *fork, block uint64, size int64) (b []byte, at int64, next uint64, ok bool, err error) {
	b = make([]byte, size)
	for done := int64(0); done < size; {
		r, err := f.run(n, k, block)
		if err != nil {
			return nil, 0, 0, false, err
		}
		if r.kind != fs.Data {
			if done == 0 && r.kind == fs.Hole {
				return nil, 0, r.from + r.n, false, nil
			}
			return nil, 0, 0, false, damaged(n.at, "br_state", block, fmt.Sprintf("inode %d: a block of its %s fork is a hole", n.number, k.name))
		}
		from := r.at + int64(block-r.from)*f.s.blockSize
		if done == 0 {
			at = from
		}
		part := b[done:min(size, done+int64(r.from+r.n-block)*f.s.blockSize)]
		if _, err := f.meta.ReadAt(part, from); err != nil {
			return nil, 0, 0, false, fmt.Errorf("xfs inode %d: %w", n.number, err)
		}
		done += int64(len(part))
		block = r.from + r.n
	}
	return b, at, 0, true, nil
}
