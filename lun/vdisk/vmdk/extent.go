package vmdk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

const (
	magicSparse = "KDMV"
	magicCOWD   = "COWD"

	maxGrain       = 65535 // sectors
	maxPackedGrain = 4096  // sectors of a compressed one, which is unpacked whole
	maxTableLen    = 8192  // entries of a grain table
	gdAtEnd        = 1<<64 - 1

	cowdTableLen = 4096
)

// Flags of a sparse header.
const (
	flagRedundant  = 1 << 1
	flagZeroGrain  = 1 << 2
	flagCompressed = 1 << 16
	flagMarkers    = 1 << 17
)

// sparseHeader is the SparseExtentHeader, little-endian, offsets in sectors.
//
//	off size field
//	  0   4  magicNumber "KDMV"
//	  4   4  version
//	  8   4  flags
//	 12   8  capacity
//	 20   8  grainSize
//	 28   8  descriptorOffset
//	 36   8  descriptorSize
//	 44   4  numGTEsPerGT
//	 48   8  rgdOffset
//	 56   8  gdOffset; all ones: the header is repeated at the end
//	 64   8  overHead
//	 72   1  uncleanShutdown
//	 73   4  "\n", " ", "\r", "\n"
//	 77   2  compressAlgorithm
type sparseHeader [sector]byte

func (h *sparseHeader) magic() string             { return string(h[:4]) }
func (h *sparseHeader) version() uint32           { return binary.LittleEndian.Uint32(h[4:]) }
func (h *sparseHeader) flags() uint32             { return binary.LittleEndian.Uint32(h[8:]) }
func (h *sparseHeader) capacity() uint64          { return binary.LittleEndian.Uint64(h[12:]) }
func (h *sparseHeader) grainSize() uint64         { return binary.LittleEndian.Uint64(h[20:]) }
func (h *sparseHeader) descriptorOffset() uint64  { return binary.LittleEndian.Uint64(h[28:]) }
func (h *sparseHeader) descriptorSize() uint64    { return binary.LittleEndian.Uint64(h[36:]) }
func (h *sparseHeader) numGTEsPerGT() uint32      { return binary.LittleEndian.Uint32(h[44:]) }
func (h *sparseHeader) rgdOffset() uint64         { return binary.LittleEndian.Uint64(h[48:]) }
func (h *sparseHeader) gdOffset() uint64          { return binary.LittleEndian.Uint64(h[56:]) }
func (h *sparseHeader) overHead() uint64          { return binary.LittleEndian.Uint64(h[64:]) }
func (h *sparseHeader) uncleanShutdown() bool     { return h[72] != 0 }
func (h *sparseHeader) lineEnds() string          { return string(h[73:77]) }
func (h *sparseHeader) compressAlgorithm() uint16 { return binary.LittleEndian.Uint16(h[77:]) }

// The COWDisk_Header, little-endian, of an extent of ESX.
//
//	off size field
//	  0   4  magicNumber "COWD"
//	  4   4  version 1
//	  8   4  flags
//	 12   4  numSectors
//	 16   4  grainSize
//	 20   4  gdOffset
//	 24   4  numGDEntries
func cowdField(h *sparseHeader, off int) uint64 {
	return uint64(binary.LittleEndian.Uint32(h[off:]))
}

// extent is a part of the disk.
type extent struct {
	line  extentLine
	start int64 // in the disk, bytes
	dev   lun.Device
	base  int64 // of its file among all files, see files
	write bool
	other bool // not the file that has the descriptor

	// Of a sparse extent; bytes, but where said.
	grain     int64
	tableLen  int64 // entries
	capacity  int64
	gd        int64
	overhead  int64
	zeroGrain bool
	packed    bool
}

func (e *extent) sparse() bool { return e.grain > 0 }

// Why an extent can't be written.
var (
	errPacked   = errors.New("the disk is compressed, and compressed grains are not written in place")
	errCOWD     = errors.New("the disk has COWD extents, which are only read")
	errTracked  = errors.New("the disk has extents of version 3, whose change tracking is not kept up")
	errTables   = errors.New("the grain tables are damaged, and only the redundant ones are read")
	errReadOnly = errors.New("the descriptor says that an extent is read-only")
)

// readSparse reads an extent's header and finds its grain directory.
func (m *image) readSparse(e *extent) error {
	var h sparseHeader
	if err := m.readHeader(e, &h, 0); err != nil {
		return err
	}
	switch h.magic() {
	case magicCOWD:
		return m.readCOWD(e, &h)
	case magicSparse:
	default:
		return m.damaged(e, 0, "magicNumber", h.magic(), "a sparse extent begins with %q or %q", magicSparse, magicCOWD)
	}
	if v := h.version(); v < 1 || v > 3 {
		return m.damaged(e, 4, "version", v, "only versions 1 to 3 are known")
	}
	if h.lineEnds() != "\n \r\n" {
		return m.damaged(e, 73, "singleEndLineChar", h.lineEnds(), "the file was changed as a text, on its way through some program")
	}
	if h.uncleanShutdown() {
		m.dirty = true
	}
	at := int64(0)
	if h.gdOffset() == gdAtEnd {
		// The footer lies before the end-of-stream marker, which has a sector.
		if at = e.dev.Size() - 2*sector; at < sector {
			return m.damaged(e, 56, "gdOffset", "at the end", "the file is too short for a footer")
		}
		if err := m.readHeader(e, &h, at); err != nil {
			return err
		}
		if h.magic() != magicSparse || h.gdOffset() == gdAtEnd {
			return m.damaged(e, at, "magicNumber", h.magic(), "the header sends for the footer, and there is none: the file was cut off")
		}
	}
	e.zeroGrain = h.flags()&flagZeroGrain != 0
	e.packed = h.flags()&flagCompressed != 0
	if e.packed {
		m.readOnly = errPacked
		switch {
		case h.compressAlgorithm() != 1:
			return m.damaged(e, at+77, "compressAlgorithm", h.compressAlgorithm(), "only deflate (1) is known")
		case h.flags()&flagMarkers == 0:
			return m.damaged(e, at+8, "flags", fmt.Sprintf("%#x", h.flags()), "compressed grains without markers are not read")
		}
	}
	if h.version() == 3 && m.readOnly == nil {
		m.readOnly = errTracked
	}
	if err := m.geometry(e, at, h.capacity(), h.grainSize(), uint64(h.numGTEsPerGT())); err != nil {
		return err
	}
	if e.overhead = maxSize; h.overHead() < maxSize/sector {
		e.overhead = int64(h.overHead()) * sector
	}
	gd, err := m.directory(e, at+56, "gdOffset", h.gdOffset())
	if h.flags()&flagRedundant == 0 || h.rgdOffset() == 0 {
		e.gd = gd
		return err
	}
	first := err
	if first == nil {
		first = m.tablesWhole(e, gd)
	}
	e.gd = gd
	if first == nil {
		return nil
	}
	spare, spareErr := m.directory(e, at+48, "rgdOffset", h.rgdOffset())
	if spareErr == nil {
		spareErr = m.tablesWhole(e, spare)
	}
	if spareErr == nil {
		e.gd, m.readOnly = spare, errTables
		m.warnings = append(m.warnings, fmt.Errorf("%w; the redundant grain directory is whole and is used", first))
		return nil
	}
	return err // of the directory; a damaged table shows when it is used
}

func (m *image) readCOWD(e *extent, h *sparseHeader) error {
	if v := h.version(); v != 1 {
		return m.damaged(e, 4, "version", v, "only version 1 of COWD is known")
	}
	m.readOnly = errCOWD
	if err := m.geometry(e, 0, cowdField(h, 12), cowdField(h, 16), cowdTableLen); err != nil {
		return err
	}
	tables := (e.capacity + e.grain*e.tableLen - 1) / (e.grain * e.tableLen)
	if n := int64(cowdField(h, 24)); n < tables {
		return m.damaged(e, 24, "numGDEntries", n, "a capacity of %d bytes needs %d", e.capacity, tables)
	}
	var err error
	e.gd, err = m.directory(e, 20, "gdOffset", cowdField(h, 20))
	return err
}

func (m *image) readHeader(e *extent, h *sparseHeader, at int64) error {
	if lun.CheckRange(at, sector, e.dev.Size()) != nil {
		return m.damaged(e, at, "magicNumber", nil, "the file ends within its header")
	}
	if _, err := e.dev.ReadAt(h[:], at); err != nil {
		return fmt.Errorf("vmdk: read the header of %.200q at byte %d: %w", e.line.file, at, err)
	}
	return nil
}

// geometry checks the sizes in a header that begins at byte at.
func (m *image) geometry(e *extent, at int64, capacity, grain, tableLen uint64) error {
	limit := uint64(maxGrain)
	if e.packed {
		limit = maxPackedGrain
	}
	switch {
	case grain == 0 || grain > limit || grain&(grain-1) != 0:
		return m.damaged(e, at, "grainSize", grain, "must be a power of two, and at most %d sectors", limit)
	case tableLen == 0 || tableLen > maxTableLen:
		return m.damaged(e, at, "numGTEsPerGT", tableLen, "must be at most %d", maxTableLen)
	case capacity == 0 || capacity > maxSize/sector:
		return m.damaged(e, at, "capacity", capacity, "must be at most %d sectors", int64(maxSize/sector))
	}
	e.capacity, e.grain, e.tableLen = int64(capacity)*sector, int64(grain)*sector, int64(tableLen)
	if e.line.size == 0 { // the extent of an embedded descriptor is as long as it says itself
		e.line.size = e.capacity
	}
	if e.capacity < e.line.size {
		return m.damaged(e, at, "capacity", capacity, "the descriptor gives the extent %d sectors", e.line.size/sector)
	}
	return nil
}

// tables is how many entries of the grain directory are in use.
func (e *extent) tables() int64 {
	span := e.grain * e.tableLen
	return (e.line.size + span - 1) / span
}

func (m *image) directory(e *extent, at int64, field string, off uint64) (int64, error) {
	if off == 0 || off > maxSize/sector || lun.CheckRange(int64(off)*sector, 4*e.tables(), e.dev.Size()) != nil {
		return 0, m.damaged(e, at, field, off, "a grain directory of %d entries would lie beyond the end of the file", e.tables())
	}
	return int64(off) * sector, nil
}

// damaged is a FormatError that names the file where there are several.
func (m *image) damaged(e *extent, off int64, field string, value any, reason string, args ...any) error {
	err := damaged(off, field, value, reason, args...)
	if e.other {
		return fmt.Errorf("extent %.200q: %w", e.line.file, err)
	}
	return err
}
