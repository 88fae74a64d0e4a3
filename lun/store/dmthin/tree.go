package dmthin

import "math"

// Sizes of the values in the leaves of the trees.
const (
	rootSize    = 8  // of a device's mapping tree, by device id
	mappingSize = 8  // data block << 24 | time, by block of the device
	detailSize  = 24 // of a device, by its id
)

// seek goes down a tree to the leaf that holds key. If it is there, i is its
// entry; if not, i is -1. next is a bound below which, from key or the entries
// of the leaf on, there are no keys outside this leaf: math.MaxUint64 at the
// tree's end.
func (p *Pool) seek(root, key uint64, leafSize int) (leaf *node, i int, next uint64, err error) {
	in := allKeys
	for depth := 0; ; depth++ {
		n, err := p.node(root, leafSize)
		if err != nil {
			return nil, -1, 0, err
		}
		if err := in.within(n, depth); err != nil {
			return nil, -1, 0, err
		}
		i = n.find(key)
		switch {
		case i < 0 && n.n > 0:
			return n, -1, n.key(0), nil
		case n.leaf:
			next = in.hi
			if in.open {
				next = math.MaxUint64
			}
			if i >= 0 && n.key(i) == key {
				return n, i, next, nil
			}
			if i+1 < n.n {
				next = n.key(i + 1)
			}
			return n, -1, next, nil
		}
		in = in.child(n, i)
		if root, err = p.follow(n, i); err != nil {
			return nil, -1, 0, err
		}
	}
}

// walk calls fn for the entries of a tree whose keys lie in [from, to), in
// order. Leaves that are not in the cache are not put there: a walk passes each
// once.
func (p *Pool) walk(root uint64, leafSize int, from, to uint64, fn func(n *node, i int) error) error {
	return p.walkNode(root, leafSize, from, to, allKeys, 0, fn)
}

func (p *Pool) walkNode(block uint64, leafSize int, from, to uint64, in bounds, depth int, fn func(n *node, i int) error) error {
	n := p.cache.get(p, block)
	if n == nil || n.leaf && n.size != leafSize {
		var err error
		if n, err = p.readNode(block, leafSize); err != nil {
			return err
		}
	}
	if err := in.within(n, depth); err != nil {
		return err
	}
	for i := max(n.find(from), 0); i < n.n && n.key(i) < to; i++ {
		if n.leaf {
			if n.key(i) < from {
				continue
			}
			if err := fn(n, i); err != nil {
				return err
			}
			continue
		}
		child, err := p.follow(n, i)
		if err == nil {
			err = p.walkNode(child, leafSize, from, to, in.child(n, i), depth+1, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
