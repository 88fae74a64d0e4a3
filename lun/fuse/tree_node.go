package fuse

import (
	"sync"

	"github.com/cleave-san/cleave/lun/fs"
)

// nodes are the files that the kernel knows, by the number that it was given for
// each, until it forgets them. All methods may be called at once.
type nodes struct {
	mu     sync.Mutex
	byRef  map[fs.Ref]uint64
	byNode map[uint64]known
	last   uint64
}

type known struct {
	ref   fs.Ref
	times uint64 // that it was told
	bare  bool   // it has no attributes
}

func newNodes(root fs.Ref) nodes {
	return nodes{byRef: map[fs.Ref]uint64{root: rootNode}, byNode: map[uint64]known{rootNode: {ref: root, times: 1}}, last: rootNode}
}

func (n *nodes) get(node uint64) (known, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k, ok := n.byNode[node]
	return k, ok
}

// know counts that the kernel is told of a file.
func (n *nodes) know(ref fs.Ref, st fs.Stat) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	node, ok := n.byRef[ref]
	if !ok {
		n.last++
		node = n.last
		n.byRef[ref] = node
	}
	k := n.byNode[node]
	n.byNode[node] = known{ref, k.times + 1, st.NoXattrs}
	return node
}

func (n *nodes) forget(node, times uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k, ok := n.byNode[node]
	switch {
	case !ok || node == rootNode:
	case k.times <= times:
		delete(n.byNode, node)
		delete(n.byRef, k.ref)
	default:
		k.times -= times
		n.byNode[node] = k
	}
}
