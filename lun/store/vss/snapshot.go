package vss

import (
	"fmt"
	"math/bits"
	"slices"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/extents"
)

// Snapshot is the content of a shadow copy: a read-only lun.Device with lun.Mapper.
// It may be used by several goroutines.
type Snapshot struct {
	Copy   *Copy
	Blocks int64 // that this copy's own store has, overlays included

	v         *Volume
	chain     []*store // its own, then the younger ones
	free, old *bitmap  // of the youngest copy only: what was not in use
}

// Open reads the block lists that a copy is read through.
func (v *Volume) Open(c *Copy) (*Snapshot, error) {
	s := &Snapshot{Copy: c, v: v}
	budget := int64(MaxIndex)
	i := slices.Index(v.Copies, c)
	if i < 0 {
		return nil, fmt.Errorf("shadow copy %s is none of this volume", c.ID)
	}
	for _, d := range v.Copies[i:] {
		err := d.Err
		var st *store
		if err == nil {
			st, err = v.readList(d, d == c, &budget)
		}
		switch {
		case err == nil:
		case d == c:
			return nil, err
		default:
			return nil, fmt.Errorf("shadow copy %d %w: %d: %w", c.Number, ErrChain, d.Number, err)
		}
		s.chain = append(s.chain, st)
	}
	s.Blocks = s.chain[0].base.blocks() + int64(len(s.chain[0].over))
	for _, st := range s.chain[1:] {
		st.targets = nil
	}
	if len(s.chain) > 1 {
		s.chain[0].targets = nil
		return s, nil
	}
	var err error
	if s.free, err = v.readBitmap(c.bitmap); err != nil {
		return nil, err
	}
	s.old, err = v.readBitmap(c.oldBitmap)
	return s, err
}

func (s *Snapshot) Size() int64                        { return s.Copy.Size }
func (s *Snapshot) Sync() error                        { return nil }
func (s *Snapshot) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }

// Place is where the bytes of a shadow copy lie: at At of the volume, or nowhere,
// and they are Zero. That holds for Run bytes, of which there are some.
type Place struct {
	At, Run int64
	Zero    bool
}

// Locate says where byte off, which is below Size, is read from.
func (s *Snapshot) Locate(off int64) (Place, error) {
	run := s.Size() - off
	for i, st := range s.chain {
		block, in := uint32(off/Block), off%Block
		if i == 0 {
			k := st.over.find(block, false)
			switch {
			case k == len(st.over):
			case st.over[k].block != block:
				run = min(run, int64(st.over[k].block)*Block-off)
			default:
				here := st.over[k].bits >> (in / sector)
				if here&1 != 0 {
					n := int64(bits.TrailingZeros32(^here))*sector - in%sector
					return Place{At: int64(st.over[k].at) + in, Run: min(run, n)}, nil
				}
				run = min(run, Block-in)
				if here != 0 {
					run = min(run, int64(bits.TrailingZeros32(here))*sector-in%sector)
				}
			}
		}
		k := st.base.find(block, true)
		switch {
		case k == len(st.base):
		case st.base[k].block > block:
			run = min(run, int64(st.base[k].block)*Block-off)
		default:
			e := st.base[k]
			rel := off - int64(e.block)*Block
			run = min(run, int64(e.bits)*Block-rel)
			at := int64(e.at&^forward) + rel
			if e.at&forward == 0 {
				return Place{At: at, Run: run}, nil
			}
			if off = at; off >= s.v.dev.Size() {
				return Place{}, damaged(-1, "relative offset", at, "a forwarder points behind the end of the volume")
			}
			run = min(run, s.v.dev.Size()-off)
			continue
		}
		if len(s.chain) == 1 {
			return s.unknown(off, run)
		}
	}
	return Place{At: off, Run: run}, nil
}

// unknown is for what the store of the youngest copy has nothing of: zeroes where
// it was not in use, the volume else.
func (s *Snapshot) unknown(off, run int64) (Place, error) {
	const most = 1024 // blocks that are looked at in one go
	first := off / Block
	was, n := false, int64(0)
	for b := first; b < first+most; b++ {
		if b > first && b*Block-off >= run {
			break
		}
		zero, err := s.unused(b)
		if err != nil {
			return Place{}, err
		}
		if b > first && zero != was {
			break
		}
		was, n = zero, (b+1)*Block-off
	}
	return Place{At: off, Run: min(run, n), Zero: was}, nil
}

func (s *Snapshot) unused(block int64) (bool, error) {
	if _, ok := slices.BinarySearch(s.chain[0].targets, uint32(block)); ok {
		return false, nil
	}
	free, err := s.free.bit(block)
	if err != nil || !free || len(s.old.at) == 0 {
		return free, err
	}
	return s.old.bit(block)
}

// ReadAt implements lun.Device.
func (s *Snapshot) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), s.Size()); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at, err := s.Locate(off + int64(done))
		if err != nil {
			return done, err
		}
		piece := p[done : done+int(min(at.Run, int64(len(p)-done)))]
		if at.Zero {
			clear(piece)
		} else if _, err := s.v.dev.ReadAt(piece, at.At); err != nil {
			return done, err
		}
		done += len(piece)
	}
	return len(p), nil
}

// Extents implements lun.Mapper.
func (s *Snapshot) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, s.Size()); err != nil {
		return err
	}
	for end := off + n; off < end; {
		at, err := s.Locate(off)
		if err != nil {
			return err
		}
		run := min(at.Run, end-off)
		if at.Zero {
			err = fn(lun.Extent{Off: off, Len: run, Hole: true})
		} else {
			err = extents.As(s.v.dev, at.At, run, off, fn)
		}
		if err != nil {
			return err
		}
		off += run
	}
	return nil
}
