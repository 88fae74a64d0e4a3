package vhdx

import (
	"encoding/binary"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk/blockmap"
)

// The BAT, section 2.5: after every ratio payload blocks comes the entry of the
// sector bitmap that covers them.
func (m *image) payloadIndex(i int64) int64 { return i + i/m.ratio }
func (m *image) bitmapIndex(i int64) int64  { return i/m.ratio*(m.ratio+1) + m.ratio }

func (m *image) blocks() int64 { return (m.size + m.block - 1) / m.block }

func (m *image) checkBAT() error {
	last := m.payloadIndex(m.blocks() - 1)
	if m.differs {
		last = m.bitmapIndex(m.blocks() - 1)
	}
	if need := 8 * (last + 1); need > m.bat.len {
		return damaged(m.bat.off, "BAT", m.bat.len, "a disk of %d bytes in blocks of %d needs a BAT of %d bytes", m.size, m.block, need)
	}
	return nil
}

// entry reads a BAT entry: its state and, if it is in use, where its length
// bytes lie.
func (m *image) entry(index, length int64) (state int, at int64, err error) {
	var b [8]byte
	where := m.bat.off + 8*index
	if _, err := m.pages.ReadAt(b[:], where); err != nil {
		return 0, 0, fmt.Errorf("vhdx: read BAT entry %d: %w", index, err)
	}
	v := binary.LittleEndian.Uint64(b[:])
	state = int(v & 7)
	if state != blockFull && state != blockPartial {
		return state, 0, nil
	}
	fail := func(reason string, args ...any) (int, int64, error) {
		return 0, 0, damaged(where, fmt.Sprintf("BAT entry %d", index), fmt.Sprintf("%#x", v), reason, args...)
	}
	units := v >> 20
	if units > maxFile/mib {
		return fail("the block lies beyond the end of the file")
	}
	at = int64(units) * mib
	if at < mib {
		return fail("the block lies over the headers")
	}
	if lun.CheckRange(at, length, m.src.Size()) != nil {
		return fail("the block lies beyond the end of the file")
	}
	for _, r := range m.regions {
		if at < r.off+r.len && r.off < at+length {
			return fail("the block lies over the region %s", r.name)
		}
	}
	if off := m.head.logOffset(); off < maxFile && at < int64(off)+int64(m.head.logLength()) && int64(off) < at+length {
		return fail("the block lies over the log")
	}
	return state, at, nil
}

func (m *image) payload(i int64) (state int, at int64, err error) {
	return m.entry(m.payloadIndex(i), min(m.block, m.size-i*m.block))
}

func (m *image) mapBlock(off, n int64) (blockmap.Run, error) {
	i, in := off/m.block, off%m.block
	n = min(n, m.block-in)
	state, at, err := m.payload(i)
	if err != nil {
		return blockmap.Run{}, err
	}
	own := blockmap.Run{Kind: blockmap.Own, Len: n, Dev: m.src, Off: at + in}
	switch state {
	case blockNotPresent:
		return blockmap.Parent(m.parent, off, n), nil
	case blockUndefined, blockZero, blockUnmapped:
		return blockmap.Run{Kind: blockmap.Zero, Len: n}, nil
	case blockFull:
		return own, nil
	case blockPartial:
		if m.differs {
			return m.mapPartial(off, own)
		}
	}
	index := m.payloadIndex(i)
	return blockmap.Run{}, damaged(m.bat.off+8*index, fmt.Sprintf("BAT entry %d", index), state, "a payload block has no such state here")
}

// bitmapWindow is how much of a sector bitmap is looked at once.
const bitmapWindow = 512

// mapPartial asks the sector bitmap which of a block's sectors are there.
func (m *image) mapPartial(off int64, own blockmap.Run) (blockmap.Run, error) {
	index := m.bitmapIndex(off / m.block)
	state, at, err := m.entry(index, mib)
	if err != nil {
		return blockmap.Run{}, err
	}
	if state != blockFull {
		return blockmap.Run{}, damaged(m.bat.off+8*index, fmt.Sprintf("BAT entry %d", index), state,
			"a block of the chunk is partially present, and its sector bitmap is not")
	}
	chunk := m.ratio * m.block
	first := off % chunk / m.sector
	window := first / 8 / bitmapWindow * bitmapWindow
	b := make([]byte, bitmapWindow)
	if _, err := m.pages.ReadAt(b, at+window); err != nil {
		return blockmap.Run{}, fmt.Errorf("vhdx: read the sector bitmap at byte %d: %w", at+window, err)
	}
	inSector := off % m.sector
	sectors := (inSector + own.Len + m.sector - 1) / m.sector
	here, run := blockmap.BitRun(b, blockmap.LSBFirst, int(first-window*8), int(sectors))
	own.Len = min(own.Len, int64(run)*m.sector-inSector)
	if !here {
		return blockmap.Parent(m.parent, off, own.Len), nil
	}
	return own, nil
}

// overlaps looks for payload blocks that share bytes of the file with one
// another or with a sector bitmap.
func (m *image) overlaps() error {
	claims := blockmap.NewClaims(m.src.Size()/mib, m.block/mib)
	if claims == nil {
		return fmt.Errorf("vhdx: blocks of %d bytes in a file of %d bytes: too many to check, so nothing is written: %w", m.block, m.src.Size(), lun.ErrReadOnly)
	}
	bitmaps := make(map[int64]bool)
	if m.differs {
		for i := int64(0); i < m.blocks(); i += m.ratio {
			state, at, err := m.entry(m.bitmapIndex(i), mib)
			if err != nil {
				return err
			}
			if state == blockFull {
				bitmaps[at] = true
			}
		}
	}
	for i := range m.blocks() {
		state, at, err := m.payload(i)
		if err != nil {
			return err
		}
		if state != blockFull && state != blockPartial {
			continue
		}
		free := claims.Claim(at / mib)
		for u := int64(0); u < m.block && len(bitmaps) > 0; u += mib {
			free = free && !bitmaps[at+u]
		}
		if !free {
			index := m.payloadIndex(i)
			return damaged(m.bat.off+8*index, fmt.Sprintf("BAT entry %d", index), at/mib, "the block overlaps another one: neither is written")
		}
	}
	return nil
}
