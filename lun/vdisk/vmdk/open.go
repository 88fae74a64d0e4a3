package vmdk

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/blockmap"
)

// cacheSize is how much of the tables one layer keeps. A chain of 17 layers
// stays below 64 MiB with all it has.
const cacheSize = 1 << 20

// image is one layer.
type image struct {
	dev     lun.Device // the file that was opened: it has the descriptor
	desc    *descriptor
	extents []*extent // by start, without gaps
	files   files
	pages   *vdisk.Pages
	opened  []lun.Device
	last    unpacked
	scan    int64 // bytes of grain tables that may still be looked through

	size     int64
	dirty    bool
	readOnly error
	parent   lun.Device
	parents  []vdisk.Layer
	warnings []error
}

// Open opens a VMDK descriptor, or a file that has one inside; see
// vdisk.OpenFunc. The device stays the caller's.
func Open(dev lun.Device, o vdisk.Options) (vdisk.Disk, error) {
	d, _, err := open(dev, o)
	if err != nil {
		return nil, err // not a nil *blockmap.Disk in an interface
	}
	return d, nil
}

func open(dev lun.Device, o vdisk.Options) (_ *blockmap.Disk, _ *image, err error) {
	m := &image{dev: dev, scan: maxScan}
	embedded, err := m.readDescriptor()
	if err != nil {
		return nil, nil, err
	}
	if o.Snapshot != "" {
		return nil, nil, fmt.Errorf("vmdk: %w as %.80q: the format has none", vdisk.ErrNoSnapshot, o.Snapshot)
	}
	var parent vdisk.Disk
	closer := func() error {
		var errs []error
		if parent != nil {
			errs = append(errs, parent.Close())
		}
		for _, f := range m.opened {
			errs = append(errs, vdisk.Close(f))
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closer())
		}
	}()
	if err := m.openExtents(o, embedded); err != nil {
		return nil, nil, err
	}
	if m.desc.parentCID != noParent {
		if parent, err = m.openParent(o); err != nil {
			return nil, nil, err
		}
		m.parent = parent
	}
	info := vdisk.Info{Format: format, Variant: m.desc.createType, Size: m.size, Dirty: m.dirty,
		ReadOnly: m.readOnly, Parents: m.parents, Warnings: m.warnings}
	if o.ReadOnly {
		info.ReadOnly = lun.ErrReadOnly
	}
	writes := []lun.Device{dev}
	for _, e := range m.extents {
		info.Block = max(info.Block, e.grain)
		if e.other {
			info.Files = append(info.Files, e.line.file)
			writes = append(writes, e.dev)
		}
	}
	return blockmap.New(blockmap.Config{Map: m.mapExtent, Info: info, Writes: writes, Check: m.overlaps, First: m.stamp, Close: closer}), m, nil
}

// readDescriptor finds the descriptor; embedded: inside the only extent.
func (m *image) readDescriptor() (embedded bool, err error) {
	size := m.dev.Size()
	if size < 4 {
		return false, lun.ErrNotFormat
	}
	var h sparseHeader
	if _, err := m.dev.ReadAt(h[:min(size, sector)], 0); err != nil {
		return false, fmt.Errorf("vmdk: read the first sector: %w", err)
	}
	off, n := int64(0), min(size, maxDescriptor)
	switch h.magic() {
	case magicCOWD:
		return false, damaged(0, "magicNumber", magicCOWD, "this is an extent: open the descriptor that lists it")
	case magicSparse:
		if size < sector {
			return false, damaged(size, "magicNumber", nil, "the file ends within its header")
		}
		o, l := h.descriptorOffset(), h.descriptorSize()
		if o == 0 || l == 0 {
			return false, damaged(28, "descriptorOffset", o, "this is an extent of a split disk: open the descriptor that lists it")
		}
		if o > maxSize/sector || l > maxDescriptor/sector || lun.CheckRange(int64(o)*sector, int64(l)*sector, size) != nil {
			return false, damaged(28, "descriptorOffset", o, "a descriptor of %d sectors is too large, or lies beyond the end of the file", l)
		}
		off, n, embedded = int64(o)*sector, int64(l)*sector, true
	default:
		if !isDescriptor(h[:min(size, sector)]) {
			return false, lun.ErrNotFormat
		}
	}
	b := make([]byte, n)
	if _, err := m.dev.ReadAt(b, off); err != nil {
		return false, fmt.Errorf("vmdk: read the descriptor at byte %d: %w", off, err)
	}
	if embedded && len(bytes.Trim(b, " \n\x00")) == 0 {
		return false, damaged(28, "descriptorOffset", off/sector, "there is no descriptor: this is an extent of a split disk, open the descriptor that lists it")
	}
	m.desc, err = parseDescriptor(b, off)
	return embedded, err
}

func (m *image) openExtents(o vdisk.Options, embedded bool) error {
	if embedded && len(m.desc.extents) != 1 {
		return damaged(m.desc.at, "extent", len(m.desc.extents), "a descriptor inside an extent can list no more than that")
	}
	for i := range m.desc.extents {
		e := &extent{line: m.desc.extents[i], start: m.size}
		e.write = !o.ReadOnly && !e.line.readOnly
		if e.line.readOnly && m.readOnly == nil {
			m.readOnly = errReadOnly
		}
		if embedded {
			e.line.kind, e.line.size, e.dev = "SPARSE", 0, m.dev
		} else if e.line.kind != "ZERO" {
			dev, err := o.File(e.line.file)
			if err != nil {
				return fmt.Errorf("vmdk: open an extent: %w", err)
			}
			m.opened = append(m.opened, dev)
			e.dev, e.other = dev, true
		}
		if e.dev != nil {
			m.files.add(e)
		}
		m.extents = append(m.extents, e)
		m.pages = vdisk.NewPages(&m.files, cacheSize) // of the files so far
		if err := m.readExtent(e); err != nil {
			return err
		}
		if m.size += e.line.size; m.size > maxSize {
			return damaged(e.line.at, "size", e.line.size/sector, "all extents together have more than %d bytes", int64(maxSize))
		}
	}
	return nil
}

func (m *image) readExtent(e *extent) error {
	switch e.line.kind {
	case "ZERO":
		return nil
	case "FLAT", "VMFS":
		if lun.CheckRange(e.line.off, e.line.size, e.dev.Size()) != nil {
			return damaged(e.line.at, "extent", e.line.size/sector, "the file %.200q has only %d bytes", e.line.file, e.dev.Size())
		}
		return nil
	}
	return m.readSparse(e)
}

// openParent opens the parent by its name as it stands or, for parent and child
// that were moved together, the last part of that.
func (m *image) openParent(o vdisk.Options) (vdisk.Disk, error) {
	hint := m.desc.parentHint
	if hint == "" {
		return nil, damaged(m.desc.at, "parentFileNameHint", nil, "the descriptor has a parentCID and names no parent")
	}
	names := []string{hint}
	if base := hint[strings.LastIndexAny(hint, `\/`)+1:]; base != hint && base != "" {
		names = append(names, base)
	}
	var parent *image
	d, name, err := o.FirstParent(format, names, func(dev lun.Device, o vdisk.Options) (vdisk.Disk, error) {
		d, p, err := open(dev, o)
		if err != nil {
			return nil, err
		}
		parent = p
		return d, nil
	})
	if err != nil {
		return nil, err
	}
	if cid := parent.desc.cid; cid != m.desc.parentCID {
		err := damaged(m.desc.at, "parentCID", fmt.Sprintf("%08x", m.desc.parentCID),
			"the file %.200q has the CID %08x: it is another disk, or was changed after the child was made", name, cid)
		return nil, errors.Join(err, d.Close())
	}
	m.parents = vdisk.Chain(name, d)
	m.warnings = append(m.warnings, vdisk.Inherited(name, d)...)
	return d, nil
}

// stamp gives the disk another CID, in as many digits as it has.
func (m *image) stamp() error {
	var b [4]byte
	rand.Read(b[:])
	b[0] &= 0x7f // ffffffff and fffffffe mean something else
	digits := []byte(hex.EncodeToString(b[:]))
	digits = digits[:min(m.desc.cidLen, len(digits))]
	if _, err := m.dev.WriteAt(digits, m.desc.cidAt); err != nil {
		return err
	}
	return m.dev.Sync()
}
