package vhd

import (
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/blockmap"
)

// cacheSize is how much of the tables one layer keeps. A chain of 17 layers
// stays below 64 MiB with all it has.
const cacheSize = 1 << 20

// image is one layer.
type image struct {
	dev    lun.Device
	pages  *vdisk.Pages
	foot   footer
	head   dynamicHeader
	headAt int64

	size   int64 // of the disk
	block  int64 // bytes of a block's data
	bitmap int64 // bytes of the sector bitmap before it
	table  int64 // offset of the BAT
	count  int64 // entries of it

	parent   lun.Device // nil: none
	parents  []vdisk.Layer
	warnings []error
}

// Open opens a VHD file; see vdisk.OpenFunc. The device stays the caller's.
func Open(dev lun.Device, o vdisk.Options) (vdisk.Disk, error) {
	d, _, err := open(dev, o)
	if err != nil {
		return nil, err // not a nil *blockmap.Disk in an interface
	}
	return d, nil
}

func open(dev lun.Device, o vdisk.Options) (*blockmap.Disk, *image, error) {
	m := &image{dev: dev, pages: vdisk.NewPages(dev, cacheSize)}
	if err := m.readFooter(); err != nil {
		return nil, nil, err
	}
	if o.Snapshot != "" {
		return nil, nil, fmt.Errorf("vhd: %w as %.80q: the format has none", vdisk.ErrNoSnapshot, o.Snapshot)
	}
	c := blockmap.Config{Map: m.mapFixed, Writes: []lun.Device{dev}}
	kind := m.foot.diskType()
	if kind != fixed {
		if err := m.readHeader(); err != nil {
			return nil, nil, err
		}
		c.Map, c.Check = m.mapDynamic, m.overlaps
	}
	if kind == differencing {
		closer, err := m.openParent(o)
		if err != nil {
			return nil, nil, err
		}
		c.Close = closer
	}
	c.Info = vdisk.Info{Format: format, Variant: kind.String(), Size: m.size, Block: m.block, Parents: m.parents, Warnings: m.warnings}
	if o.ReadOnly {
		c.Info.ReadOnly = lun.ErrReadOnly
	}
	return blockmap.New(c), m, nil
}

// readFooter takes the footer at the end or, where that is damaged, its copy.
func (m *image) readFooter() error {
	end := m.dev.Size() - sector
	if end < 0 {
		return lun.ErrNotFormat
	}
	at := end
	err := m.footerAt(at)
	if err != nil {
		if !errors.Is(err, lun.ErrNotFormat) && !isDamage(err) {
			return err
		}
		at = 0
		switch copyErr := m.footerAt(at); {
		case copyErr == nil && m.foot.diskType() == fixed:
			// A fixed disk has no copy: this is the content of a disk, whose
			// first sector happens to be a footer.
			return err
		case copyErr == nil && errors.Is(err, lun.ErrNotFormat):
			m.warnings = append(m.warnings, damaged(end, "Cookie", nil, "the footer is missing; its copy at the front is whole and is used"))
		case copyErr == nil:
			m.warnings = append(m.warnings, fmt.Errorf("%w; its copy at the front is whole and is used", err))
		case errors.Is(err, lun.ErrNotFormat):
			return copyErr
		default:
			return err
		}
	}
	return m.checkFooter(at, end)
}

func isDamage(err error) bool {
	var fe *lun.FormatError
	return errors.As(err, &fe)
}

func (m *image) footerAt(at int64) error {
	if _, err := m.dev.ReadAt(m.foot[:], at); err != nil {
		return fmt.Errorf("vhd: read the footer at byte %d: %w", at, err)
	}
	if m.foot.cookie() != footerCookie {
		return lun.ErrNotFormat
	}
	if want, got := m.foot.checksum(), sum(m.foot[:], 64); got != want {
		return damaged(at+64, "Checksum", fmt.Sprintf("%#08x", want), "the footer sums to %#08x: it is damaged", got)
	}
	return nil
}

func (m *image) checkFooter(at, end int64) error {
	if v := m.foot.version(); v>>16 != version>>16 {
		return damaged(at+12, "File Format Version", fmt.Sprintf("%#08x", v), "only version 1 is known")
	}
	switch m.foot.diskType() {
	case fixed, dynamic, differencing:
	default:
		return damaged(at+60, "Disk Type", uint32(m.foot.diskType()), "is neither fixed (2), dynamic (3) nor differencing (4)")
	}
	size, field, where := m.foot.size(), "Disk Geometry", at+56
	if size == m.foot.currentSize() {
		field, where = "Current Size", at+48
	}
	if size == 0 || size > maxSize || size%sector != 0 {
		return damaged(where, field, size, "must be a number of whole sectors, and at most %d", int64(maxSize))
	}
	m.size = int64(size)
	if m.foot.diskType() == fixed && m.size > end {
		return damaged(where, field, size, "the file has only %d bytes before its footer", end)
	}
	return nil
}

func (m *image) readHeader() error {
	const field = "Data Offset"
	off := m.foot.dataOffset()
	if off > maxSize || lun.CheckRange(int64(off), headerSize, m.dev.Size()) != nil {
		return damaged(16, field, off, "the dynamic header would lie beyond the end of the file")
	}
	at := int64(off)
	m.headAt = at
	if _, err := m.dev.ReadAt(m.head[:], at); err != nil {
		return fmt.Errorf("vhd: read the dynamic header at byte %d: %w", at, err)
	}
	h := &m.head
	if h.cookie() != headerCookie {
		return damaged(at, "Cookie", h.cookie(), "the dynamic header begins with %q", headerCookie)
	}
	if want, got := h.checksum(), sum(h[:], 36); got != want {
		return damaged(at+36, "Checksum", fmt.Sprintf("%#08x", want), "the dynamic header sums to %#08x: it is damaged", got)
	}
	if v := h.version(); v>>16 != version>>16 {
		return damaged(at+24, "Header Version", fmt.Sprintf("%#08x", v), "only version 1 is known")
	}
	m.block = int64(h.blockSize())
	if m.block < sector || m.block > maxBlock || m.block&(m.block-1) != 0 {
		return damaged(at+32, "Block Size", m.block, "must be a power of two from %d to %d", sector, maxBlock)
	}
	m.bitmap = (m.block/sector/8 + sector - 1) / sector * sector
	m.count = int64(h.maxTableEntries())
	if need := (m.size + m.block - 1) / m.block; m.count < need {
		return damaged(at+28, "Max Table Entries", m.count, "a disk of %d bytes has %d blocks", m.size, need)
	}
	table := h.tableOffset()
	if table > maxSize || lun.CheckRange(int64(table), 4*m.count, m.dev.Size()) != nil {
		return damaged(at+16, "Table Offset", table, "a table of %d entries would lie beyond the end of the file", m.count)
	}
	m.table = int64(table)
	return nil
}
