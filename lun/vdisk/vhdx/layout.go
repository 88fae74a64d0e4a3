package vhdx

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"unicode/utf16"

	"github.com/cleave-san/cleave/lun"
)

const (
	format    = "vhdx"
	signature = "vhdxfile" // file type identifier, section 2.2.1

	kib = 1 << 10
	mib = 1 << 20

	headerSize = 4 * kib
	tableSize  = 64 * kib // of a region table, and of the metadata table

	maxSize    = 64 << 40 // of a virtual disk, section 2.6.2.2
	maxFile    = 1 << 60  // no offset beyond it is looked at
	maxRegions = 2047     // section 2.2.3.1
	maxItems   = 2047     // section 2.6.1.1
)

var (
	headerAt = [2]int64{64 * kib, 128 * kib}
	tableAt  = [2]int64{192 * kib, 256 * kib}
)

// guid is a GUID as it is stored: the first three groups little-endian.
type guid [16]byte

func (g guid) String() string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g[:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:])
}

// Well-known GUIDs, as String prints them.
const (
	regionBAT      = "2dc27766-f623-4200-9d64-115e9bfd4a08"
	regionMetadata = "8b7ca206-4790-4b9a-b8fe-575f050f886e"

	itemFileParameters     = "caa16737-fa36-4d43-b3b6-33f0aa44e76b"
	itemVirtualDiskSize    = "2fa54224-cd1b-4876-b211-5dbed83bf4b8"
	itemLogicalSectorSize  = "8141bf1d-a96f-4709-ba47-f233a8faab5f"
	itemPhysicalSectorSize = "cda348c7-445d-4471-9cc9-e9885251c556"
	itemVirtualDiskID      = "beca12ab-b2e6-4523-93ef-c309e000c746"
	itemParentLocator      = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c"

	locatorVHDX = "b04aefb7-d19e-4a81-b789-25b8e9445913"
)

// header is section 2.2.2, little-endian.
//
//	off size field
//	  0   4  Signature "head"
//	  4   4  Checksum, CRC-32C of the 4 KiB with this field as zero
//	  8   8  SequenceNumber
//	 16  16  FileWriteGuid
//	 32  16  DataWriteGuid
//	 48  16  LogGuid; zero: the log is empty
//	 64   2  LogVersion 0
//	 66   2  Version 1
//	 68   4  LogLength
//	 72   8  LogOffset
type header [headerSize]byte

func (h *header) signature() string      { return string(h[:4]) }
func (h *header) checksum() uint32       { return binary.LittleEndian.Uint32(h[4:]) }
func (h *header) sequenceNumber() uint64 { return binary.LittleEndian.Uint64(h[8:]) }
func (h *header) dataWriteGuid() guid    { return guid(h[32:48]) }
func (h *header) logGuid() guid          { return guid(h[48:64]) }
func (h *header) logVersion() uint16     { return binary.LittleEndian.Uint16(h[64:]) }
func (h *header) version() uint16        { return binary.LittleEndian.Uint16(h[66:]) }
func (h *header) logLength() uint32      { return binary.LittleEndian.Uint32(h[68:]) }
func (h *header) logOffset() uint64      { return binary.LittleEndian.Uint64(h[72:]) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is the CRC-32C of a structure whose checksum is its second four bytes,
// with those as zero.
func sum(b []byte) uint32 {
	s := crc32.Update(0, castagnoli, b[:4])
	s = crc32.Update(s, castagnoli, make([]byte, 4))
	return crc32.Update(s, castagnoli, b[8:])
}

// State of a BAT entry, section 2.5.1.
const (
	blockNotPresent = 0
	blockUndefined  = 1
	blockZero       = 2
	blockUnmapped   = 3
	blockFull       = 6 // also of a sector bitmap
	blockPartial    = 7
)

func utf16Text(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(units))
}

func damaged(off int64, field string, value any, reason string, args ...any) error {
	return &lun.FormatError{Format: format, Offset: off, Field: field, Value: value, Reason: fmt.Sprintf(reason, args...)}
}
