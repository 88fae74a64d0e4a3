package overlay

import (
	"sync"
	"sync/atomic"
)

// pageBits blocks share a page of the map: 4 KiB of bits.
const pageBits = 32768

type page [pageBits / 64]atomic.Uint64

// present is the set of blocks that the layer holds. It only grows. Readers
// take no lock.
type present struct {
	pages sync.Map // int64 → *page
}

func (s *present) has(b int64) bool {
	p, ok := s.pages.Load(b / pageBits)
	if !ok {
		return false
	}
	return p.(*page).has(b % pageBits)
}

// runs calls fn for runs of blocks that are in the set, none of them longer than
// a page, until fn fails.
func (s *present) runs(fn func(first, n int64) error) error {
	var err error
	s.pages.Range(func(key, value any) bool {
		first, p := key.(int64)*pageBits, value.(*page)
		for b, n := int64(0), int64(0); b < pageBits; b += n {
			has := p.has(b)
			n = 1
			for b+n < pageBits && p.has(b+n) == has {
				n++
			}
			if !has {
				continue
			}
			if err = fn(first+b, n); err != nil {
				return false
			}
		}
		return true
	})
	return err
}

func (p *page) has(i int64) bool { return p[i/64].Load()&(1<<(i%64)) != 0 }

// set adds the blocks that the n bytes at off touch.
func (s *present) set(off, n int64) {
	last := (off + n - 1) / BlockSize
	for b := off / BlockSize; b <= last; {
		p, ok := s.pages.Load(b / pageBits)
		if !ok {
			p, _ = s.pages.LoadOrStore(b/pageBits, new(page))
		}
		word := b / 64
		from, to := b%64, min(last-word*64, 63)
		mask := ^uint64(0) << from & (^uint64(0) >> (63 - to))
		p.(*page)[word%(pageBits/64)].Or(mask)
		b = (word + 1) * 64
	}
}
