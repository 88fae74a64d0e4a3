package lvm2

import (
	"fmt"
	"sync"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/store/dmthin"
)

// pools keeps the thin pools of a group that were opened, so that all volumes
// of a pool share one cache. It is the one part of a Group that changes.
type pools struct {
	nodes *dmthin.Cache // of all groups that were assembled together
	mu    sync.Mutex
	open  map[*LV]*Pool
}

// Pool is an opened thin pool.
type Pool struct {
	*dmthin.Pool
	LV *LV
	// Warning is what LVM would not like about the pool, though it can be read;
	// nil if there is nothing.
	Warning error
}

// Pool opens a thin pool, once.
func (g *Group) Pool(lv *LV) (*Pool, error) { return g.pool(lv, newDescent()) }

func (g *Group) pool(lv *LV, d descent) (*Pool, error) {
	g.pools.mu.Lock()
	p := g.pools.open[lv]
	g.pools.mu.Unlock()
	if p != nil {
		return p, nil
	}
	p, err := g.openPool(lv, d)
	if err != nil {
		return nil, fmt.Errorf("thin pool %s/%s: %w", g.Name, lv.Name, err)
	}
	g.pools.mu.Lock()
	defer g.pools.mu.Unlock()
	if other := g.pools.open[lv]; other != nil {
		return other, nil
	}
	if g.pools.open == nil {
		g.pools.open = make(map[*LV]*Pool)
	}
	g.pools.open[lv] = p
	return p, nil
}

func (g *Group) openPool(lv *LV, d descent) (*Pool, error) {
	f := fields{where: fmt.Sprintf("%s/%s/segment1", g.where, lv.Name)}
	if lv.Role != "thin-pool" || len(lv.Segments) != 1 {
		return nil, f.fail("type", lv.Role, "is no thin pool")
	}
	s := lv.Segments[0]
	if s.refused != nil {
		return nil, s.refused
	}
	meta, err := g.openName(s.pool.metadata, d)
	if err != nil {
		return nil, err
	}
	data, err := g.openName(s.pool.data, d)
	if err != nil {
		return nil, err
	}
	pool, err := dmthin.Open(meta, data, g.pools.nodes)
	if err != nil {
		return nil, err
	}
	p := &Pool{Pool: pool, LV: lv}
	if s.pool.chunk != pool.BlockSize {
		return nil, f.fail("chunk_size", s.pool.chunk/sectorSize, fmt.Sprintf("the pool's own metadata says %d sectors", pool.BlockSize/sectorSize))
	}
	text, kernel := s.pool.transaction, pool.Transaction
	switch {
	case text == kernel, s.pool.messages && text == kernel+1:
		// As it should be, or on the way there: LVM writes what it will tell
		// the kernel, tells it, and then writes that it has.
	case text == kernel+1, kernel == text+1:
		p.Warning = f.fail("transaction_id", text, fmt.Sprintf("the pool's own metadata says %d: LVM would not activate it, but what it holds is read", kernel))
	default:
		return nil, f.fail("transaction_id", text, fmt.Sprintf("the pool's own metadata says %d: they are not of the same time", kernel))
	}
	return p, nil
}

// Thin opens a thin volume: for those who need to know what of it is mapped and
// where. Its data device is the pool's, not a PV.
func (g *Group) Thin(lv *LV) (*dmthin.Thin, *Pool, error) { return g.thin(lv, newDescent()) }

func (g *Group) thin(lv *LV, d descent) (*dmthin.Thin, *Pool, error) {
	f := fields{where: fmt.Sprintf("%s/%s/segment1", g.where, lv.Name)}
	if lv.Role != "thin" || len(lv.Segments) != 1 {
		return nil, nil, f.fail("type", lv.Role, "is no thin volume in one piece")
	}
	s := lv.Segments[0]
	if s.refused != nil {
		return nil, nil, s.refused
	}
	poolLV := g.lvs[s.thin.pool]
	if poolLV == nil {
		return nil, nil, f.fail("thin_pool", s.thin.pool, "no such logical volume")
	}
	pool, err := g.pool(poolLV, d.down())
	if err != nil {
		return nil, nil, err
	}
	var external lun.Device
	if s.thin.external != "" {
		if external, err = g.openName(s.thin.external, d); err != nil {
			return nil, nil, fmt.Errorf("external origin %s: %w", s.thin.external, err)
		}
	}
	t, err := pool.Thin(s.thin.device, lv.Size, external)
	return t, pool, err
}
