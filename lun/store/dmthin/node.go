package dmthin

import (
	"encoding/binary"
	"fmt"
	"sort"
	"sync"

	"github.com/cleave-san/cleave/lun"
)

// A node of a B-tree is one block. Little-endian.
//
//	off size field
//	  0   4  csum
//	  4   4  flags: 1 internal, 2 leaf
//	  8   8  blocknr, its own
//	 16   4  nr_entries
//	 20   4  max_entries
//	 24   4  value_size
//	 28   4  padding
//	 32      keys, 8 bytes each, room for max_entries
//	         values, value_size each
//
// A value of an internal node is the block of a child, none of whose keys is
// below the key beside it.
const (
	nodeHeader   = 32
	nodeInternal = 1
	nodeLeaf     = 2
)

type node struct {
	b      []byte
	block  uint64
	leaf   bool
	n      int
	values int // where they begin
	size   int // of a value
}

func (n *node) key(i int) uint64   { return binary.LittleEndian.Uint64(n.b[nodeHeader+8*i:]) }
func (n *node) value(i int) []byte { return n.b[n.values+i*n.size:][:n.size] }
func (n *node) num(i int) uint64   { return binary.LittleEndian.Uint64(n.value(i)) }

// find returns the last entry whose key is not above k, -1 if there is none.
func (n *node) find(k uint64) int {
	return sort.Search(n.n, func(i int) bool { return n.key(i) > k }) - 1
}

func (n *node) fail(off int, field string, v any, why string) error {
	return &lun.FormatError{Format: format, Offset: int64(n.block)*blockSize + int64(off), Field: field, Value: v, Reason: why}
}

// parse checks a node by itself. leafSize is the size of the values in the
// leaves of its tree.
func (n *node) parse(leafSize int) error {
	le := binary.LittleEndian
	if want, got := le.Uint32(n.b), checksum(n.b[4:], nodeXOR); want != got {
		return n.fail(0, "csum", fmt.Sprintf("%#08x", want), fmt.Sprintf("the B-tree node sums to %#08x: it is damaged, or no node", got))
	}
	if v := le.Uint64(n.b[8:]); v != n.block {
		return n.fail(8, "blocknr", v, fmt.Sprintf("the B-tree node lies in block %d", n.block))
	}
	want := 8
	switch v := le.Uint32(n.b[4:]); v {
	case nodeInternal:
	case nodeLeaf:
		n.leaf, want = true, leafSize
	default:
		return n.fail(4, "flags", v, "a B-tree node is internal (1) or a leaf (2)")
	}
	if v := le.Uint32(n.b[24:]); v != uint32(want) {
		return n.fail(24, "value_size", v, fmt.Sprintf("values of this tree have %d bytes here", want))
	}
	room := le.Uint32(n.b[20:])
	if room > uint32((blockSize-nodeHeader)/(8+want)) {
		return n.fail(20, "max_entries", room, "is more than a block holds")
	}
	used := le.Uint32(n.b[16:])
	if used > room {
		return n.fail(16, "nr_entries", used, fmt.Sprintf("is more than max_entries, %d", room))
	}
	n.n, n.size, n.values = int(used), want, nodeHeader+8*int(room)
	for i := 1; i < n.n; i++ {
		if n.key(i) <= n.key(i-1) {
			return n.fail(nodeHeader+8*i, "key", n.key(i), "keys of a B-tree node must ascend")
		}
	}
	return nil
}

// bounds are the keys that a node may have: from lo on, and below hi unless it
// is open.
type bounds struct {
	lo, hi uint64
	open   bool
}

var allKeys = bounds{open: true}

// child is what the i-th child of n may have.
func (b bounds) child(n *node, i int) bounds {
	if i+1 < n.n {
		return bounds{lo: n.key(i), hi: n.key(i + 1)}
	}
	return bounds{n.key(i), b.hi, b.open}
}

// within checks a node against its parent. It is what keeps a walk of a damaged
// tree finite: as every node below the root has a key of its own, no block can
// be the child of two.
func (b bounds) within(n *node, depth int) error {
	switch {
	case n.n == 0 && (depth > 0 || !n.leaf):
		return n.fail(16, "nr_entries", 0, "only the root of an empty B-tree has none")
	case n.n == 0:
		return nil
	case n.key(0) < b.lo:
		return n.fail(nodeHeader, "key", n.key(0), fmt.Sprintf("is below the parent's key, %d", b.lo))
	case !b.open && n.key(n.n-1) >= b.hi:
		return n.fail(nodeHeader+8*(n.n-1), "key", n.key(n.n-1), fmt.Sprintf("is not below the parent's next key, %d", b.hi))
	case !n.leaf && depth+1 >= maxDepth:
		return n.fail(4, "flags", nodeInternal, fmt.Sprintf("the B-tree has more than %d levels", maxDepth))
	}
	return nil
}

// node reads a node, through the cache.
func (p *Pool) node(block uint64, leafSize int) (*node, error) {
	if n := p.cache.get(p, block); n != nil && (!n.leaf || n.size == leafSize) {
		return n, nil
	}
	n, err := p.readNode(block, leafSize)
	if err == nil {
		p.cache.put(p, n)
	}
	return n, err
}

func (p *Pool) readNode(block uint64, leafSize int) (*node, error) {
	n := &node{b: make([]byte, blockSize), block: block}
	if _, err := p.meta.ReadAt(n.b, int64(block)*blockSize); err != nil {
		return nil, fmt.Errorf("read block %d of the thin pool's metadata: %w", block, err)
	}
	return n, n.parse(leafSize)
}

// follow returns the block of the i-th child of n.
func (p *Pool) follow(n *node, i int) (uint64, error) {
	c := n.num(i)
	if c == 0 || c >= p.Metadata.Total {
		return 0, n.fail(n.values+8*i, "child", c, fmt.Sprintf("the metadata has %d blocks", p.Metadata.Total))
	}
	return c, nil
}

// Cache keeps nodes of any number of pools, CacheSize bytes in all. It may be
// used by several goroutines.
//
// It has two generations: what was used since the last change of generations is
// young, what was used in the one before is old, the rest is forgotten.
type Cache struct {
	mu         sync.Mutex
	young, old map[cached]*node
}

type cached struct {
	pool  *Pool
	block uint64
}

// A node takes its block and about a hundred bytes round it.
const cacheNodes = CacheSize / (blockSize + 128) / 2

func (c *Cache) get(p *Pool, block uint64) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := cached{p, block}
	n := c.young[at]
	if n == nil {
		if n = c.old[at]; n != nil {
			c.add(at, n)
		}
	}
	return n
}

func (c *Cache) put(p *Pool, n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(cached{p, n.block}, n)
}

func (c *Cache) add(at cached, n *node) {
	if c.young == nil || len(c.young) >= cacheNodes {
		c.old, c.young = c.young, make(map[cached]*node)
	}
	c.young[at] = n
}
