package btrfs

import (
	"bytes"
	"cmp"
	"fmt"
	"sort"
	"sync"
)

// Key is that of an item: struct btrfs_disk_key. Keys are ordered by their fields,
// the first first.
type Key struct {
	Object uint64
	Type   uint8
	Offset uint64
}

// Compare orders keys.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Object, o.Object), cmp.Compare(k.Type, o.Type), cmp.Compare(k.Offset, o.Offset))
}

func (k Key) String() string { return fmt.Sprintf("(%d %d %d)", int64(k.Object), k.Type, k.Offset) }

func (k Key) put(b []byte) {
	le.PutUint64(b, k.Object)
	b[8] = k.Type
	le.PutUint64(b[9:], k.Offset)
}

// ParseKey reads a key of KeySize bytes.
func ParseKey(b []byte) Key { return Key{le.Uint64(b), b[8], le.Uint64(b[9:])} }

// KeySize is that of a key on the disk.
const KeySize = 17

// Types of items.
const (
	InodeItem   = 1
	InodeRef    = 12
	InodeExtref = 13
	XattrItem   = 24
	DirItem     = 84
	DirIndex    = 96
	ExtentData  = 108
	RootItem    = 132
	RootBackref = 144
	RootRef     = 156
	chunkItem   = 228
)

// node is a tree block, as struct btrfs_header begins it:
//
//	off size field             behind it, at level 0, items of 25 bytes:
//	  0  32  csum                0 17 key, 17 4 offset (behind the header), 21 4 size
//	 32  16  fsid
//	 48   8  bytenr            and above, pointers of 33 bytes:
//	 80   8  generation          0 17 key, 17 8 blockptr, 25 8 generation
//	 88   8  owner
//	 96   4  nritems
//	100   1  level
type node []byte

const (
	nodeHeader = 101
	itemSize   = 25
	ptrSize    = 33
	maxLevel   = 8 // BTRFS_MAX_LEVEL
)

func (n node) bytenr() uint64     { return le.Uint64(n[48:]) }
func (n node) generation() uint64 { return le.Uint64(n[80:]) }
func (n node) owner() uint64      { return le.Uint64(n[88:]) }
func (n node) count() int         { return int(le.Uint32(n[96:])) }
func (n node) level() uint8       { return n[100] }

func (n node) slot(i int) []byte {
	if n.level() == 0 {
		return n[nodeHeader+i*itemSize:][:itemSize]
	}
	return n[nodeHeader+i*ptrSize:][:ptrSize]
}

func (n node) key(i int) Key { return ParseKey(n.slot(i)) }

func (n node) child(i int) pointer {
	s := n.slot(i)
	k := ParseKey(s)
	return pointer{le.Uint64(s[17:]), le.Uint64(s[25:]), n.level() - 1, &k}
}

func (n node) data(i int) []byte {
	s := n.slot(i)
	off := nodeHeader + int(le.Uint32(s[17:]))
	return n[off : off+int(le.Uint32(s[21:]))]
}

// find is the first slot whose key is at least k.
func (n node) find(k Key) int {
	return sort.Search(n.count(), func(i int) bool { return n.key(i).Compare(k) >= 0 })
}

// pointer is what a parent says of its child.
type pointer struct {
	logical, generation uint64
	level               uint8
	first               *Key // of the child; nil of a root
}

// is reports whether a block is what the parent says.
func (p pointer) is(n node) bool {
	return n.level() == p.level && n.generation() == p.generation && (p.first == nil || n.count() > 0 && n.key(0) == *p.first)
}

// check looks at a block that was read from a place for a pointer.
func (f *FS) check(n node, p pointer, at int64) error {
	bad := func(off int64, field string, v any, why string) error { return damaged(at+off, field, v, why) }
	switch {
	case !f.super.sum().fits(n):
		return bad(0, "csum", nil, "a tree block's checksum is wrong")
	case n.bytenr() != p.logical:
		return bad(48, "bytenr", n.bytenr(), fmt.Sprintf("the tree block of %d should be here", p.logical))
	case !bytes.Equal(n[32:48], f.super.blocksID()):
		return bad(32, "fsid", nil, "a tree block is of another file system")
	case n.level() != p.level:
		return bad(100, "level", n.level(), fmt.Sprintf("the parent says %d", p.level))
	case n.generation() != p.generation:
		return bad(80, "generation", n.generation(), fmt.Sprintf("the parent says %d", p.generation))
	}
	size := itemSize
	if n.level() > 0 {
		size = ptrSize
	}
	if n.count() < 0 || n.count() > (len(n)-nodeHeader)/size || n.count() == 0 && n.level() > 0 {
		return bad(96, "nritems", n.count(), "makes no sense")
	}
	if !p.is(n) { // the rest of it was looked at
		return bad(nodeHeader, "key", nil, "the parent says that another key is the first")
	}
	for i := range n.count() {
		if i > 0 && n.key(i-1).Compare(n.key(i)) >= 0 {
			return bad(nodeHeader+int64(i*size), "key", n.key(i).String(), "is out of order")
		}
		if n.level() > 0 {
			continue
		}
		s := n.slot(i)
		off, length := uint64(le.Uint32(s[17:])), uint64(le.Uint32(s[21:]))
		if off+length > uint64(len(n)-nodeHeader) || length > 0 && off < uint64(n.count()*itemSize) {
			return bad(nodeHeader+int64(i*size)+17, "item offset", off, "the item lies outside its leaf")
		}
	}
	return nil
}

// node reads a tree block from the first copy that is in order.
func (f *FS) node(p pointer) (node, error) {
	if n := f.cache.get(p.logical); n != nil && p.is(n) {
		return n, nil
	}
	places, run, err := f.locate(p.logical)
	if err != nil {
		return nil, err
	}
	size := int64(f.super.nodeSize())
	if run < size || p.logical%uint64(f.super.sectorSize()) != 0 {
		return nil, damaged(-1, "blockptr", p.logical, "is no place for a tree block")
	}
	for _, at := range places {
		n := make(node, size)
		bad := f.read(n, at)
		if bad == nil {
			bad = f.check(n, p, at)
		}
		if bad == nil {
			f.cache.put(p.logical, n)
			return n, nil
		}
		if err == nil {
			err = bad
		}
	}
	return nil, err
}

func (f *FS) read(b []byte, at int64) error {
	if _, err := f.dev.ReadAt(b, at); err != nil {
		return fmt.Errorf("read %d bytes of the file system at byte %d: %w", len(b), at, err)
	}
	return nil
}

// Tree is one of the file system's trees. It may be used by several goroutines.
type Tree struct {
	fs   *FS
	root pointer
}

// Walk calls fn for the items of a tree from a key on, in order, until fn says
// that it wants no more or fails. fn must not keep or change data.
func (t *Tree) Walk(from Key, fn func(k Key, data []byte) (more bool, err error)) error {
	w := walker{fs: t.fs, from: from, fn: fn}
	_, err := w.walk(t.root, true)
	return err
}

type walker struct {
	fs   *FS
	from Key
	fn   func(Key, []byte) (bool, error)
	last Key
	any  bool
}

func (w *walker) walk(p pointer, top bool) (bool, error) {
	n, err := w.fs.node(p)
	if err != nil {
		return false, err
	}
	if n.count() == 0 && !top {
		return false, damaged(-1, "nritems", 0, "a leaf is empty")
	}
	i := n.find(w.from)
	if n.level() > 0 && i > 0 && (i == n.count() || n.key(i) != w.from) {
		i-- // the child before may hold it
	}
	for ; i < n.count(); i++ {
		more := false
		if n.level() > 0 {
			more, err = w.walk(n.child(i), false)
		} else {
			k := n.key(i)
			if w.any && k.Compare(w.last) <= 0 {
				return false, damaged(-1, "key", k.String(), fmt.Sprintf("comes after %v in the tree of block %d", w.last, p.logical))
			}
			w.last, w.any = k, true
			more, err = w.fn(k, n.data(i))
		}
		if err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// Floor is the last item whose key is at most k, and a copy of it; nil data is
// none.
func (t *Tree) Floor(k Key) (found Key, data []byte, err error) {
	for p := t.root; ; {
		n, err := t.fs.node(p)
		if err != nil {
			return Key{}, nil, err
		}
		i := n.find(k)
		if i == n.count() || n.key(i) != k {
			i--
		}
		if i < 0 {
			return Key{}, nil, nil
		}
		if n.level() == 0 {
			return n.key(i), append([]byte{}, n.data(i)...), nil
		}
		p = n.child(i)
	}
}

// Get is a copy of the item of a key, nil if there is none.
func (t *Tree) Get(k Key) (data []byte, err error) {
	err = t.Walk(k, func(found Key, b []byte) (bool, error) {
		if found == k {
			data = append([]byte{}, b...)
		}
		return false, nil
	})
	return data, err
}

// cache keeps tree blocks that were read, up to cacheBytes of them.
type cache struct {
	mu    sync.Mutex
	held  int
	nodes map[uint64]node
}

const cacheBytes = 8 << 20

func (c *cache) get(logical uint64) node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[logical]
}

func (c *cache) put(logical uint64, n node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held += len(n); c.held > cacheBytes || c.nodes == nil {
		c.nodes, c.held = make(map[uint64]node), len(n)
	}
	c.nodes[logical] = n
}
