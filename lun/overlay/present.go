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
	i := b % pageBits
	return p.(*page)[i/64].Load()&(1<<(i%64)) != 0
}

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
