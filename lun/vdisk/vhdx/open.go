package vhdx

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/blockmap"
)

// cacheSize is how much of the tables one layer keeps. A chain of 17 layers
// stays below 64 MiB with all it has.
const cacheSize = 1 << 20

// errReplay is why a disk with an unapplied log is read-only.
var errReplay = errors.New("the file's log has to be applied first (vhdx.Replay)")

// image is one layer.
type image struct {
	dev   lun.Device // the file
	src   lun.Device // the file with the log applied
	pages *vdisk.Pages

	head    header
	current int // which of the two headers it is
	regions []region
	bat     region
	meta    region

	size    int64 // of the disk
	block   int64
	sector  int64 // logical
	ratio   int64 // payload blocks to a sector bitmap block
	fixed   bool
	differs bool
	locator []byte // the item, of a differencing disk
	locAt   int64

	parent   lun.Device
	parents  []vdisk.Layer
	warnings []error
}

// Open opens a VHDX file; see vdisk.OpenFunc. The device stays the caller's.
func Open(dev lun.Device, o vdisk.Options) (vdisk.Disk, error) {
	d, _, err := open(dev, o)
	if err != nil {
		return nil, err // not a nil *blockmap.Disk in an interface
	}
	return d, nil
}

func open(dev lun.Device, o vdisk.Options) (*blockmap.Disk, *image, error) {
	m := &image{dev: dev, src: dev}
	if err := m.readHeaders(); err != nil {
		return nil, nil, err
	}
	if o.Snapshot != "" {
		return nil, nil, fmt.Errorf("vhdx: %w as %.80q: the format has none", vdisk.ErrNoSnapshot, o.Snapshot)
	}
	dirty := m.head.logGuid() != guid{}
	if dirty {
		applied, err := m.replay()
		if err != nil {
			return nil, nil, err
		}
		m.src = applied
	}
	m.pages = vdisk.NewPages(m.src, cacheSize)
	for _, read := range []func() error{m.readRegions, m.readMetadata, m.checkBAT} {
		if err := read(); err != nil {
			return nil, nil, err
		}
	}
	c := blockmap.Config{Map: m.mapBlock, Writes: []lun.Device{dev}, Check: m.overlaps, First: m.stamp}
	variant := "dynamic"
	switch {
	case m.differs:
		variant = "differencing"
		closer, err := m.openParent(o)
		if err != nil {
			return nil, nil, err
		}
		c.Close = closer
	case m.fixed:
		variant = "fixed"
	}
	c.Info = vdisk.Info{Format: format, Variant: variant, Size: m.size, Block: m.block, Dirty: dirty, Parents: m.parents, Warnings: m.warnings}
	switch {
	case o.ReadOnly:
		c.Info.ReadOnly = lun.ErrReadOnly
	case dirty:
		c.Info.ReadOnly = errReplay
	}
	return blockmap.New(c), m, nil
}

// readHeaders takes the valid header with the higher sequence number.
func (m *image) readHeaders() error {
	var id [8]byte
	if m.dev.Size() < mib {
		if m.dev.Size() < int64(len(id)) {
			return lun.ErrNotFormat
		}
	}
	if _, err := m.dev.ReadAt(id[:], 0); err != nil {
		return fmt.Errorf("vhdx: read the file type identifier: %w", err)
	}
	if string(id[:]) != signature {
		return lun.ErrNotFormat
	}
	if m.dev.Size() < mib {
		return damaged(0, "headers", m.dev.Size(), "the file ends within its headers")
	}
	var bad error
	found := false
	for i, at := range headerAt {
		var h header
		if _, err := m.dev.ReadAt(h[:], at); err != nil {
			return fmt.Errorf("vhdx: read the header at byte %d: %w", at, err)
		}
		if err := h.check(at); err != nil {
			bad = err
			continue
		}
		if !found || h.sequenceNumber() > m.head.sequenceNumber() {
			m.head, m.current, found = h, i, true
		}
	}
	switch {
	case !found:
		return bad
	case bad != nil:
		m.warnings = append(m.warnings, fmt.Errorf("%w; the other header is whole and is used", bad))
	}
	at := headerAt[m.current]
	if v := m.head.version(); v != 1 {
		return damaged(at+66, "Version", v, "only version 1 is known")
	}
	if m.head.logGuid() == (guid{}) {
		return nil
	}
	if v := m.head.logVersion(); v != 0 {
		return damaged(at+64, "LogVersion", v, "only version 0 is known, and the log is not empty")
	}
	return nil
}

func (h *header) check(at int64) error {
	if h.signature() != "head" {
		return damaged(at, "Signature", h.signature(), "a header begins with \"head\"")
	}
	if want, got := h.checksum(), sum(h[:]); got != want {
		return damaged(at+4, "Checksum", fmt.Sprintf("%#08x", want), "the header sums to %#08x: it is damaged", got)
	}
	return nil
}

// writeHeader makes h the current header: it takes the place of the older one,
// so that one whole header is there at any time.
func (m *image) writeHeader(h header) error {
	le := binary.LittleEndian
	le.PutUint64(h[8:], m.head.sequenceNumber()+1)
	le.PutUint32(h[4:], sum(h[:]))
	if _, err := m.dev.WriteAt(h[:], headerAt[1-m.current]); err != nil {
		return err
	}
	if err := m.dev.Sync(); err != nil {
		return err
	}
	m.head, m.current = h, 1-m.current
	return nil
}

// stamp tells children and other programs that the content changes.
func (m *image) stamp() error {
	h := m.head
	rand.Read(h[16:48]) // FileWriteGuid and DataWriteGuid
	return m.writeHeader(h)
}
