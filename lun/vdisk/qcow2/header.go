package qcow2

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
)

const (
	format = "qcow2"
	magic  = 0x514649FB // "QFI\xfb"

	headerV2 = 72
	headerV3 = 104

	minClusterBits, maxClusterBits = 9, 21

	// What QEMU bounds, too: a larger table is not of its making.
	maxL1       = 32 << 20
	maxReftable = 8 << 20
	maxName     = 1023

	// maxHeader is how much of the first cluster is searched for extensions;
	// all that QEMU writes takes less than 1 KiB.
	maxHeader = 64 << 10
)

// Incompatible features: who doesn't know a bit must not open the disk.
const (
	dirtyBit = 1 << iota
	corruptBit
	externalDataBit
	compressionBit
	extendedL2Bit
	knownIncompatible = dirtyBit | corruptBit | externalDataBit | compressionBit | extendedL2Bit
)

// Autoclear features: who writes the disk without knowing a bit clears it.
const (
	rawExternalBit = 1 << 1
)

// compression is how compressed clusters are packed.
type compression byte

const (
	deflate   compression = 0
	zstandard compression = 1
)

// Header extensions.
const (
	extEnd           = 0
	extBackingFormat = 0xE2792ACA
	extDataFile      = 0x44415441
)

// raw is the header's bytes, in the specification's order. Big-endian.
type raw []byte

func (b raw) u32(off int) uint32 { return binary.BigEndian.Uint32(b[off:]) }
func (b raw) u64(off int) uint64 { return binary.BigEndian.Uint64(b[off:]) }

func (b raw) magic() uint32            { return b.u32(0) }
func (b raw) version() uint32          { return b.u32(4) }
func (b raw) backingOffset() uint64    { return b.u64(8) }
func (b raw) backingSize() uint32      { return b.u32(16) }
func (b raw) clusterBits() uint32      { return b.u32(20) }
func (b raw) size() uint64             { return b.u64(24) }
func (b raw) cryptMethod() uint32      { return b.u32(32) }
func (b raw) l1Size() uint32           { return b.u32(36) }
func (b raw) l1Offset() uint64         { return b.u64(40) }
func (b raw) refcountOffset() uint64   { return b.u64(48) }
func (b raw) refcountClusters() uint32 { return b.u32(56) }
func (b raw) nbSnapshots() uint32      { return b.u32(60) }
func (b raw) snapshotsOffset() uint64  { return b.u64(64) }

// Version 3.
func (b raw) incompatible() uint64  { return b.u64(72) }
func (b raw) autoclear() uint64     { return b.u64(88) }
func (b raw) refcountOrder() uint32 { return b.u32(96) }
func (b raw) headerLength() uint32  { return b.u32(100) }
func (b raw) compressionType() compression {
	return compression(b[104]) // only if headerLength says that it is there
}

const autoclearOffset = 88

// header is what a valid header says.
type header struct {
	version      int
	clusterBits  uint
	size         int64
	l1           table
	refcounts    int64 // offset of the refcount table
	refEntries   int64
	refOrder     uint
	snapshots    int
	snapshotsOff int64

	incompatible, autoclear uint64
	compression             compression

	backing, backingFormat string
	dataFile               string
}

// table is an L1 table: the active one or that of a snapshot.
type table struct{ off, entries int64 }

func (h *header) cluster() int64    { return 1 << h.clusterBits }
func (h *header) extended() bool    { return h.incompatible&extendedL2Bit != 0 }
func (h *header) has(b uint64) bool { return h.incompatible&b != 0 }

// entrySize is that of an L2 entry.
func (h *header) entrySize() int64 {
	if h.extended() {
		return 16
	}
	return 8
}

// perL2 is how many guest bytes one L2 table maps.
func (h *header) perL2() int64 { return h.cluster() / h.entrySize() << h.clusterBits }

func damaged(off int64, field string, v any, reason string, a ...any) error {
	return &lun.FormatError{Format: format, Offset: off, Field: field, Value: v, Reason: fmt.Sprintf(reason, a...)}
}

// readHeader reads and checks the header and its extensions.
func readHeader(dev *vdisk.Pages, file int64) (*header, error) {
	b := make(raw, min(file, maxHeader))
	if len(b) < 4 {
		return nil, lun.ErrNotFormat
	}
	if _, err := dev.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read the qcow2 header: %w", err)
	}
	if b.magic() != magic {
		return nil, lun.ErrNotFormat
	}
	if len(b) < headerV2 {
		return nil, damaged(0, "header", nil, "the file of %d bytes ends in it", len(b))
	}
	h := &header{version: int(b.version()), refOrder: 4}
	length := uint32(headerV2)
	switch h.version {
	case 2:
	case 3:
		if len(b) < headerV3 {
			return nil, damaged(0, "header", nil, "the file of %d bytes ends in it", len(b))
		}
		length = b.headerLength()
		if err := h.readFeatures(b); err != nil {
			return nil, err
		}
	default:
		return nil, damaged(4, "version", h.version, "only versions 2 and 3 are read")
	}
	if err := h.readLayout(b, file); err != nil {
		return nil, err
	}
	if int64(length) > min(h.cluster(), int64(len(b))) {
		return nil, damaged(100, "header_length", length, "reaches out of the first cluster of %d bytes, or of the file", h.cluster())
	}
	return h, h.readNames(dev, file, b, int64(length))
}

// readFeatures reads what version 3 added.
func (h *header) readFeatures(b raw) error {
	h.incompatible, h.autoclear = b.incompatible(), b.autoclear()
	n := b.headerLength()
	if n < headerV3 || n%8 != 0 {
		return damaged(100, "header_length", n, "must be a multiple of 8 from %d", headerV3)
	}
	if unknown := h.incompatible &^ knownIncompatible; unknown != 0 {
		bit := bits.TrailingZeros64(unknown)
		return damaged(72, "incompatible_features", fmt.Sprintf("bit %d", bit), "is not known: a later version of QEMU made this disk")
	}
	if h.has(corruptBit) {
		return damaged(72, "incompatible_features", "corrupt", "who used the disk last found its tables to be wrong: run qemu-img check -r all on a copy")
	}
	if order := b.refcountOrder(); order > 6 {
		return damaged(96, "refcount_order", order, "must be 0 to 6")
	}
	h.refOrder = uint(b.refcountOrder())
	if n > headerV3 && len(b) > headerV3 {
		h.compression = b.compressionType()
	}
	switch {
	case h.compression > zstandard:
		return damaged(104, "compression_type", int(h.compression), "is not known: 0 (deflate) and 1 (zstd) are")
	case h.has(compressionBit) != (h.compression != deflate):
		return damaged(104, "compression_type", int(h.compression), "and bit 3 of incompatible_features contradict each other")
	}
	return nil
}

// readLayout reads sizes and places of the tables.
func (h *header) readLayout(b raw, file int64) error {
	switch b.cryptMethod() {
	case 0:
	case 1:
		return damaged(32, "crypt_method", "AES", "encrypted disks are not read: decrypt it with qemu-img convert")
	case 2:
		return damaged(32, "crypt_method", "LUKS", "encrypted disks are not read: decrypt it with qemu-img convert")
	default:
		return damaged(32, "crypt_method", b.cryptMethod(), "is not known")
	}
	c := b.clusterBits()
	if c < minClusterBits || c > maxClusterBits {
		return damaged(20, "cluster_bits", c, "must be %d to %d", minClusterBits, maxClusterBits)
	}
	h.clusterBits = uint(c)
	if h.extended() && c < 14 {
		return damaged(20, "cluster_bits", c, "must be 14 or more with extended L2 entries")
	}
	if b.size() > math.MaxInt64-uint64(h.perL2()) {
		return damaged(24, "size", b.size(), "is impossible")
	}
	h.size = int64(b.size())
	var err error
	if h.l1, err = h.table(40, b.l1Offset(), 36, b.l1Size(), h.size, file); err != nil {
		return err
	}
	h.refEntries = int64(b.refcountClusters()) << h.clusterBits / 8
	h.refcounts = int64(b.refcountOffset()) // both are checked before a write
	h.snapshots, h.snapshotsOff = int(b.nbSnapshots()), int64(b.snapshotsOffset())
	return nil
}

// table checks the place of an L1 table for a disk of size bytes. The fields'
// own offsets are for messages.
func (h *header) table(offField int64, off uint64, sizeField int64, entries uint32, size, file int64) (table, error) {
	need := (size + h.perL2() - 1) / h.perL2()
	n := int64(entries)
	switch {
	case n*8 > maxL1:
		return table{}, damaged(sizeField, "l1_size", n, "is more than %d", maxL1/8)
	case n < need:
		return table{}, damaged(sizeField, "l1_size", n, "is too small: a disk of %d bytes takes %d", size, need)
	case n == 0:
		return table{}, nil
	case off%uint64(h.cluster()) != 0 || off == 0:
		return table{}, damaged(offField, "l1_table_offset", off, "is not at the start of a cluster of %d bytes", h.cluster())
	case off > uint64(file) || n*8 > file-int64(off):
		return table{}, damaged(offField, "l1_table_offset", off, "the table of %d entries ends beyond the file of %d bytes", n, file)
	}
	return table{int64(off), n}, nil
}

// readNames reads the extensions and the backing file's name, all of which lie
// in the first cluster.
func (h *header) readNames(dev *vdisk.Pages, file int64, b raw, length int64) error {
	first := min(h.cluster(), file)
	if int64(len(b)) > first {
		b = b[:first]
	}
	end := int64(len(b))
	name := int64(0)
	if v := b.backingOffset(); v != 0 {
		n := b.backingSize()
		switch {
		case n > maxName:
			return damaged(16, "backing_file_size", n, "is more than %d", maxName)
		case v > math.MaxInt64-maxName || int64(v)+int64(n) > first:
			return damaged(8, "backing_file_offset", v, "reaches out of the first cluster of %d bytes, or of the file", h.cluster())
		}
		buf := make([]byte, n)
		if _, err := dev.ReadAt(buf, int64(v)); err != nil {
			return fmt.Errorf("read the backing file's name: %w", err)
		}
		h.backing, name = string(buf), int64(v)
	}
	if name >= length && name < end {
		end = name // extensions end before the name, at the latest
	}
	return h.readExtensions(b, length, end)
}

func (h *header) readExtensions(b raw, at, end int64) error {
	for at+8 <= end {
		kind, n := b.u32(int(at)), int64(b.u32(int(at)+4))
		if kind == extEnd {
			break
		}
		if n > end-at-8 {
			return damaged(at+4, "header extension length", n, "ends beyond the header")
		}
		data := string(b[at+8 : at+8+n])
		switch kind {
		case extBackingFormat:
			h.backingFormat = data
		case extDataFile:
			h.dataFile = data
		}
		at += 8 + (n+7)/8*8
	}
	if h.has(externalDataBit) && h.dataFile == "" {
		return damaged(72, "incompatible_features", "external data file", "no header extension names the file")
	}
	return nil
}
