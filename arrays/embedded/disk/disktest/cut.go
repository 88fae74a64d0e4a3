package disktest

import (
	"maps"
	"math/rand/v2"
)

// Cut returns what a machine finds that lost its power at this moment. What is
// stable is there; of the rest, seed chooses. One seed makes the same of the
// same state, and seeds differ in kind: some lose everything, some nothing,
// some all data and no names, most of them each file its own part.
//
// The file system itself goes on; see the package's comment.
func (f *FS) Cut(seed uint64) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &FS{locks: map[string]bool{}, nodes: f.nodes}
	c := cutter{seed: seed, mood: rand.New(rand.NewPCG(seed, 0)).IntN(10), made: map[*node]*node{}}
	out.root = c.node(f.root)
	return out
}

type cutter struct {
	seed uint64
	mood int
	made map[*node]*node
}

// chances are how likely a file's or directory's changes survive, each for
// itself, and how likely one of those that do is torn.
func (c *cutter) chances(n *node, rng *rand.Rand) (survive, torn float64) {
	switch c.mood {
	case 0: // everything is lost
		return 0, 0
	case 1: // nothing is
		return 1, 0
	case 2: // names overtook data
		if n.dir {
			return 1, 0
		}
		return 0, 0
	case 3: // data overtook names
		if n.dir {
			return 0, 0
		}
		return 1, 0
	case 4, 5: // one file overtook another
		return float64(rng.IntN(2)), 0
	default:
		return []float64{0, 0.1, 0.5, 0.9, 1}[rng.IntN(5)], []float64{0, 0.3}[rng.IntN(2)]
	}
}

func (c *cutter) node(n *node) *node {
	if m := c.made[n]; m != nil {
		return m
	}
	m := &node{id: n.id, dir: n.dir}
	c.made[n] = m
	rng := rand.New(rand.NewPCG(c.seed, uint64(n.id)))
	survive, torn := c.chances(n, rng)
	if n.dir {
		c.names(m, n, rng, survive)
		return m
	}
	m.stable = n.stable
	if len(n.changes) > 0 {
		m.stable = scatter(n, rng, survive, torn)
	}
	m.stable.frozen.Store(true)
	m.live = m.stable
	return m
}

func (c *cutter) names(m, n *node, rng *rand.Rand, survive float64) {
	m.stableNames = maps.Clone(n.stableNames)
	for _, x := range n.moves {
		if rng.Float64() < survive {
			x.apply(m.stableNames)
		}
	}
	for k, child := range m.stableNames {
		m.stableNames[k] = c.node(child)
	}
	m.names = maps.Clone(m.stableNames)
}

// scatter is what is left of a file. Of two writes to one sector either may be
// what is there: as the first alone survives, or both do.
func scatter(n *node, rng *rand.Rand, survive, torn float64) *content {
	got := n.stable.thaw()
	size := n.stable.size
	for i := range n.changes {
		x := &n.changes[i]
		if rng.Float64() < survive {
			if rng.Float64() < torn {
				tear(x, got, rng)
			} else {
				x.apply(got)
			}
		}
		if rng.Float64() < survive {
			size = x.size
		}
	}
	got.size = max(size, int64(len(got.pages))*pageSize) // so that what lies beyond is cut off
	got.resize(size)
	return got
}

// tear applies some sectors of a change.
func tear(x *change, c *content, rng *rand.Rand) {
	for off, end := x.off, x.off+x.n; off < end; {
		n := min(sector-off%sector, end-off)
		if rng.IntN(2) == 0 {
			x.part(c, off, n)
		}
		off += n
	}
}
