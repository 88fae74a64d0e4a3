package vhdx

import (
	"encoding/binary"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// region is an entry of the region table, section 2.2.3.2.
//
//	off size field
//	  0  16  Guid
//	 16   8  FileOffset, a multiple of 1 MiB
//	 24   4  Length, a multiple of 1 MiB
//	 28   4  Required
type region struct {
	name     string
	off, len int64
}

// readRegions reads the first of the two region tables that is whole.
func (m *image) readRegions() error {
	var bad error
	for _, at := range tableAt {
		b := make([]byte, tableSize)
		if _, err := m.src.ReadAt(b, at); err != nil {
			return fmt.Errorf("vhdx: read the region table at byte %d: %w", at, err)
		}
		err := checkTable(b, at)
		if err == nil {
			if bad != nil {
				m.warnings = append(m.warnings, fmt.Errorf("%w; the second region table is whole and is used", bad))
			}
			return m.parseRegions(b, at)
		}
		if bad == nil {
			bad = err
		}
	}
	return bad
}

func checkTable(b []byte, at int64) error {
	if string(b[:4]) != "regi" {
		return damaged(at, "Signature", string(b[:4]), "a region table begins with \"regi\"")
	}
	if want, got := binary.LittleEndian.Uint32(b[4:]), sum(b); got != want {
		return damaged(at+4, "Checksum", fmt.Sprintf("%#08x", want), "the region table sums to %#08x: it is damaged", got)
	}
	return nil
}

func (m *image) parseRegions(b []byte, at int64) error {
	le := binary.LittleEndian
	n := le.Uint32(b[8:])
	if n > maxRegions {
		return damaged(at+8, "EntryCount", n, "a region table has at most %d entries", maxRegions)
	}
	seen := make(map[string]bool)
	for i := range int64(n) {
		e, where := b[16+32*i:], at+16+32*i
		name := guid(e[:16]).String()
		off, length := le.Uint64(e[16:]), int64(le.Uint32(e[24:]))
		required := le.Uint32(e[28:])&1 != 0
		known := name == regionBAT || name == regionMetadata
		switch {
		case seen[name]:
			return damaged(where, "Guid", name, "the region is listed twice")
		case !known && required:
			return damaged(where, "Guid", name, "a region of an unknown kind that is required to read the file")
		case off < mib || off%mib != 0 || off > maxFile:
			return damaged(where+16, "FileOffset", off, "must be a multiple of 1 MiB, after the headers")
		case length == 0 || length%mib != 0:
			return damaged(where+24, "Length", length, "must be a multiple of 1 MiB")
		case known && lun.CheckRange(int64(off), length, m.src.Size()) != nil:
			return damaged(where+16, "FileOffset", off, "the region of %d bytes lies beyond the end of the file", length)
		}
		seen[name] = true
		r := region{name, int64(off), length}
		for _, other := range m.regions {
			if r.off < other.off+other.len && other.off < r.off+r.len {
				return damaged(where+16, "FileOffset", off, "the regions %s and %s overlap", r.name, other.name)
			}
		}
		if len(m.regions) < 64 { // an unknown one that is not required may be overlooked
			m.regions = append(m.regions, r)
		}
		switch name {
		case regionBAT:
			m.bat = r
		case regionMetadata:
			m.meta = r
		}
	}
	switch {
	case m.bat.len == 0:
		return damaged(at, "Guid", nil, "the BAT region (%s) is missing", regionBAT)
	case m.meta.len == 0:
		return damaged(at, "Guid", nil, "the metadata region (%s) is missing", regionMetadata)
	}
	return nil
}

// Flags of a metadata table entry.
const (
	itemIsUser     = 1
	itemIsRequired = 4
)

// item is a metadata item that was read.
type item struct {
	at   int64
	data []byte
}

// readMetadata reads the metadata table, section 2.6.1, and the items in it
// that are known.
func (m *image) readMetadata() error {
	le := binary.LittleEndian
	b := make([]byte, tableSize)
	at := m.meta.off
	if _, err := m.src.ReadAt(b, at); err != nil {
		return fmt.Errorf("vhdx: read the metadata table at byte %d: %w", at, err)
	}
	if string(b[:8]) != "metadata" {
		return damaged(at, "Signature", string(b[:8]), "the metadata table begins with \"metadata\"")
	}
	n := le.Uint16(b[10:])
	if n > maxItems {
		return damaged(at+10, "EntryCount", n, "the metadata table has at most %d entries", maxItems)
	}
	limits := map[string]int64{itemFileParameters: 8, itemVirtualDiskSize: 8, itemLogicalSectorSize: 4,
		itemPhysicalSectorSize: 4, itemVirtualDiskID: 16, itemParentLocator: 64 * kib}
	items := make(map[string]item)
	for i := range int64(n) {
		e, where := b[32+32*i:], at+32+32*i
		name, flags := guid(e[:16]).String(), le.Uint32(e[24:])
		limit, known := limits[name]
		if known = known && flags&itemIsUser == 0; !known {
			if flags&itemIsRequired != 0 {
				return damaged(where, "ItemID", name, "metadata of an unknown kind that is required to read the file")
			}
			continue
		}
		off, length := int64(le.Uint32(e[16:])), int64(le.Uint32(e[20:]))
		if _, twice := items[name]; twice {
			return damaged(where, "ItemID", name, "the item is listed twice")
		}
		if length > limit || (length < limit && name != itemParentLocator) {
			return damaged(where+20, "Length", length, "the item %s has %d bytes", name, limit)
		}
		if off < tableSize || off+length > m.meta.len {
			return damaged(where+16, "Offset", off, "the item lies outside of the metadata region's %d bytes", m.meta.len)
		}
		it := item{m.meta.off + off, make([]byte, length)}
		if _, err := m.src.ReadAt(it.data, it.at); err != nil {
			return fmt.Errorf("vhdx: read metadata at byte %d: %w", it.at, err)
		}
		items[name] = it
	}
	return m.useItems(items)
}

func (m *image) useItems(items map[string]item) error {
	le := binary.LittleEndian
	for _, need := range []struct{ name, what string }{{itemFileParameters, "file parameters"},
		{itemVirtualDiskSize, "virtual disk size"}, {itemLogicalSectorSize, "logical sector size"}} {
		if _, ok := items[need.name]; !ok {
			return damaged(m.meta.off, "ItemID", nil, "the metadata item %s (%s) is missing", need.what, need.name)
		}
	}
	p := items[itemFileParameters]
	m.block = int64(le.Uint32(p.data))
	if m.block < mib || m.block > 256*mib || m.block&(m.block-1) != 0 {
		return damaged(p.at, "BlockSize", m.block, "must be a power of two from 1 MiB to 256 MiB")
	}
	flags := le.Uint32(p.data[4:])
	m.fixed, m.differs = flags&1 != 0, flags&2 != 0

	s := items[itemLogicalSectorSize]
	m.sector = int64(le.Uint32(s.data))
	if m.sector != 512 && m.sector != 4096 {
		return damaged(s.at, "LogicalSectorSize", m.sector, "must be 512 or 4096")
	}
	m.ratio = (1 << 23) * m.sector / m.block

	v := items[itemVirtualDiskSize]
	size := le.Uint64(v.data)
	if size == 0 || size > maxSize || size%uint64(m.sector) != 0 {
		return damaged(v.at, "VirtualDiskSize", size, "must be a number of whole sectors of %d bytes, and at most %d", m.sector, int64(maxSize))
	}
	m.size = int64(size)
	if m.differs {
		l, ok := items[itemParentLocator]
		if !ok {
			return damaged(m.meta.off, "ItemID", nil, "the parent locator (%s) is missing from a differencing disk", itemParentLocator)
		}
		m.locator, m.locAt = l.data, l.at
	}
	return nil
}
