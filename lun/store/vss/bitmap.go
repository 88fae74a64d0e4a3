package vss

import "sync"

const bitsPerBlock = body * 8

// bitmap is a chain of blocks, a bit for each block of the volume, the lowest
// first. What lies behind its end is 0. Its blocks are read when they are asked
// for, and some are kept.
type bitmap struct {
	v  *Volume
	at []uint64

	mu   sync.Mutex
	kept map[int][]byte
}

const keptBlocks = 64

// readBitmap finds the blocks of a bitmap; off 0 has none.
func (v *Volume) readBitmap(off uint64) (*bitmap, error) {
	m := &bitmap{v: v, kept: make(map[int][]byte)}
	need := int((v.dev.Size()/Block)/bitsPerBlock) + 1
	err := v.walk(off, recBitmap, need, func(at int64, _ []byte) (bool, error) {
		m.at = append(m.at, uint64(at-blockHeader))
		return len(m.at) < need, nil
	})
	return m, err
}

// bit is that of a block.
func (m *bitmap) bit(block int64) (bool, error) {
	i := int(block / bitsPerBlock)
	if i >= len(m.at) {
		return false, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.kept[i]
	if b == nil {
		b = make([]byte, Block)
		if _, err := m.v.block(b, m.at[i], recBitmap); err != nil {
			return false, err
		}
		if len(m.kept) == keptBlocks {
			clear(m.kept)
		}
		m.kept[i] = b
	}
	at := block % bitsPerBlock
	return b[blockHeader+at/8]>>(at%8)&1 != 0, nil
}
