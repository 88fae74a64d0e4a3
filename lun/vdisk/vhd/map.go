package vhd

import (
	"encoding/binary"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk/blockmap"
)

func (m *image) mapFixed(off, n int64) (blockmap.Run, error) {
	return blockmap.Run{Kind: blockmap.Own, Len: n, Dev: m.dev, Off: off}, nil
}

// bitmapWindow is how much of a sector bitmap is looked at once.
const bitmapWindow = 512

func (m *image) mapDynamic(off, n int64) (blockmap.Run, error) {
	i, in := off/m.block, off%m.block
	n = min(n, m.block-in)
	at, ok, err := m.entry(i)
	if err != nil {
		return blockmap.Run{}, err
	}
	if !ok {
		return blockmap.Parent(m.parent, off, n), nil
	}
	first := in / sector
	window := first / 8 / bitmapWindow * bitmapWindow
	b := make([]byte, min(bitmapWindow, m.bitmap-window))
	if _, err := m.pages.ReadAt(b, at+window); err != nil {
		return blockmap.Run{}, fmt.Errorf("vhd: read the sector bitmap of block %d: %w", i, err)
	}
	sectors := (in+n-1)/sector - first + 1
	here, run := blockmap.BitRun(b, blockmap.MSBFirst, int(first-window*8), int(sectors))
	n = min(n, (first+int64(run))*sector-in)
	if !here {
		return blockmap.Parent(m.parent, off, n), nil
	}
	return blockmap.Run{Kind: blockmap.Own, Len: n, Dev: m.dev, Off: at + m.bitmap + in}, nil
}

// entry reads the BAT: where block i begins with its sector bitmap.
func (m *image) entry(i int64) (at int64, ok bool, err error) {
	var b [4]byte
	if _, err := m.pages.ReadAt(b[:], m.table+4*i); err != nil {
		return 0, false, fmt.Errorf("vhd: read BAT entry %d: %w", i, err)
	}
	v := binary.BigEndian.Uint32(b[:])
	if v == absent {
		return 0, false, nil
	}
	at = int64(v) * sector
	length := m.bitmap + min(m.block, m.size-i*m.block)
	fail := func(reason string) (int64, bool, error) {
		return 0, false, damaged(m.table+4*i, fmt.Sprintf("BAT entry %d", i), v, "%s", reason)
	}
	switch {
	case lun.CheckRange(at, length, m.dev.Size()) != nil:
		return fail("the block lies beyond the end of the file")
	case at < sector:
		return fail("the block lies over the copy of the footer")
	case at < m.headAt+headerSize && m.headAt < at+length:
		return fail("the block lies over the dynamic header")
	case at < m.table+4*m.count && m.table < at+length:
		return fail("the block lies over the BAT")
	}
	return at, true, nil
}

// overlaps looks for blocks that share bytes of the file.
func (m *image) overlaps() error {
	stride := (m.bitmap + m.block) / sector
	claims := blockmap.NewClaims(m.dev.Size()/sector, stride)
	if claims == nil {
		return fmt.Errorf("vhd: blocks of %d bytes in a file of %d bytes: too many to check, so nothing is written: %w", m.block, m.dev.Size(), lun.ErrReadOnly)
	}
	for i := range (m.size + m.block - 1) / m.block {
		at, ok, err := m.entry(i)
		if err != nil {
			return err
		}
		if ok && !claims.Claim(at/sector) {
			return damaged(m.table+4*i, fmt.Sprintf("BAT entry %d", i), at/sector, "the block overlaps another one: neither is written")
		}
	}
	return nil
}
