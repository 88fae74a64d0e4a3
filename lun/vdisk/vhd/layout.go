package vhd

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"unicode/utf16"

	"github.com/cleave-san/cleave/lun"
)

const (
	format  = "vhd"
	sector  = 512
	version = 0x00010000

	footerCookie = "conectix"
	headerCookie = "cxsparse"
	headerSize   = 1024

	// maxSize is more than the 2,040 GiB that its makers allow, and keeps sums
	// of offsets far from overflow.
	maxSize  = 64 << 40
	maxBlock = 256 << 20

	absent = 0xffffffff // BAT entry of a block that isn't there
)

// diskType is the footer's field of that name.
type diskType uint32

const (
	fixed        diskType = 2
	dynamic      diskType = 3
	differencing diskType = 4
)

func (t diskType) String() string {
	switch t {
	case fixed:
		return "fixed"
	case dynamic:
		return "dynamic"
	case differencing:
		return "differencing"
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// footer is the hard disk footer, big-endian. All kinds have it in the last
// 512 bytes; dynamic and differencing ones also have a copy in the first.
//
//	off size field
//	  0   8  Cookie "conectix"
//	  8   4  Features
//	 12   4  File Format Version 0x00010000
//	 16   8  Data Offset of the dynamic header; all ones in a fixed disk
//	 24   4  Time Stamp, seconds since 2000-01-01
//	 28   4  Creator Application
//	 40   8  Original Size
//	 48   8  Current Size
//	 56   4  Disk Geometry: cylinders (2), heads, sectors per track
//	 60   4  Disk Type
//	 64   4  Checksum
//	 68  16  Unique Id
//	 84   1  Saved State
type footer [sector]byte

func (f *footer) cookie() string      { return string(f[:8]) }
func (f *footer) version() uint32     { return binary.BigEndian.Uint32(f[12:]) }
func (f *footer) dataOffset() uint64  { return binary.BigEndian.Uint64(f[16:]) }
func (f *footer) timeStamp() uint32   { return binary.BigEndian.Uint32(f[24:]) }
func (f *footer) creator() string     { return string(f[28:32]) }
func (f *footer) currentSize() uint64 { return binary.BigEndian.Uint64(f[48:]) }
func (f *footer) diskType() diskType  { return diskType(binary.BigEndian.Uint32(f[60:])) }
func (f *footer) checksum() uint32    { return binary.BigEndian.Uint32(f[64:]) }
func (f *footer) uniqueID() [16]byte  { return [16]byte(f[68:84]) }

// geometry is the size by cylinders, heads and sectors, in bytes.
func (f *footer) geometry() uint64 {
	return uint64(binary.BigEndian.Uint16(f[56:])) * uint64(f[58]) * uint64(f[59]) * sector
}

// maxGeometry is the geometry's limit: of a larger disk it says nothing.
const maxGeometry = 65535 * 16 * 255 * sector

// size is what the guest sees. Virtual PC and older QEMU show a disk of the
// geometry's size, whatever Current Size says; Hyper-V, XenServer and others go
// by Current Size.
func (f *footer) size() uint64 {
	switch f.creator() {
	case "win ", "qem2", "d2v ", "tap\x00", "CTXS":
		return f.currentSize()
	}
	if g := f.geometry(); g != 0 && g != maxGeometry {
		return g
	}
	return f.currentSize()
}

// dynamicHeader follows the copy of the footer, big-endian.
//
//	off size field
//	  0   8  Cookie "cxsparse"
//	  8   8  Data Offset, unused
//	 16   8  Table Offset
//	 24   4  Header Version 0x00010000
//	 28   4  Max Table Entries
//	 32   4  Block Size, without the sector bitmap
//	 36   4  Checksum
//	 40  16  Parent Unique ID
//	 56   4  Parent Time Stamp
//	 64 512  Parent Unicode Name, UTF-16 big-endian
//	576 192  Parent Locator Entries, 8 of 24 bytes
type dynamicHeader [headerSize]byte

func (h *dynamicHeader) cookie() string           { return string(h[:8]) }
func (h *dynamicHeader) tableOffset() uint64      { return binary.BigEndian.Uint64(h[16:]) }
func (h *dynamicHeader) version() uint32          { return binary.BigEndian.Uint32(h[24:]) }
func (h *dynamicHeader) maxTableEntries() uint32  { return binary.BigEndian.Uint32(h[28:]) }
func (h *dynamicHeader) blockSize() uint32        { return binary.BigEndian.Uint32(h[32:]) }
func (h *dynamicHeader) checksum() uint32         { return binary.BigEndian.Uint32(h[36:]) }
func (h *dynamicHeader) parentUniqueID() [16]byte { return [16]byte(h[40:56]) }
func (h *dynamicHeader) parentTimeStamp() uint32  { return binary.BigEndian.Uint32(h[56:]) }

func (h *dynamicHeader) parentUnicodeName() string {
	return utf16Text(h[64:576], binary.BigEndian)
}

// locator is one Parent Locator Entry.
//
//	off size field
//	  0   4  Platform Code
//	  4   4  Platform Data Space
//	  8   4  Platform Data Length, bytes
//	 16   8  Platform Data Offset
type locator struct {
	code   string
	length uint32
	offset uint64
}

func (h *dynamicHeader) locator(i int) locator {
	b := h[576+24*i:]
	return locator{string(b[:4]), binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint64(b[16:])}
}

// sum is the checksum of a structure whose checksum field begins at skip: the
// complement of the sum of the other bytes.
func sum(b []byte, skip int) uint32 {
	var s uint32
	for i, v := range b {
		if i < skip || i >= skip+4 {
			s += uint32(v)
		}
	}
	return ^s
}

// utf16Text decodes up to the first NUL.
func utf16Text(b []byte, order binary.ByteOrder) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := order.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

func hexID(id [16]byte) string { return hex.EncodeToString(id[:]) }

func damaged(off int64, field string, value any, reason string, args ...any) error {
	return &lun.FormatError{Format: format, Offset: off, Field: field, Value: value, Reason: fmt.Sprintf(reason, args...)}
}
