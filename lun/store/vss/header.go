package vss

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cleave-san/cleave/lun"
)

const (
	format = "vss"
	// Block is the granularity of stores, in bytes.
	Block  = 16384
	sector = 512

	headerAt = 0x1E00 // of the volume header
	// CatalogField is where a volume says at which byte its catalog begins, 8
	// bytes in one sector. Zeroes there: there are no shadow copies.
	CatalogField = headerAt + 48
	// Guard is the sector without which a volume has no shadow copies.
	Guard       = headerAt
	blockHeader = 128 // before each block's own content
	body        = Block - blockHeader
	// maxVolume is what 32 bits of blocks reach; VSS itself ends there, too.
	maxVolume = 1 << 46
)

// signature is the GUID 3808876b-c176-4e48-b7ae-04046e6cc752 that all structures
// begin with.
const signature = "\x6b\x87\x08\x38\x76\xc1\x48\x4e\xb7\xae\x04\x04\x6e\x6c\xc7\x52"

// record is the type of a structure.
type record uint32

const (
	recVolume record = 1 + iota
	recCatalog
	recBlockList
	recStore
	recRanges
	recBitmap
)

func (r record) String() string {
	switch r {
	case recVolume:
		return "volume header"
	case recCatalog:
		return "catalog"
	case recBlockList:
		return "block list"
	case recStore:
		return "store header"
	case recRanges:
		return "range list"
	case recBitmap:
		return "bitmap"
	}
	return fmt.Sprintf("record type %d", uint32(r))
}

var le = binary.LittleEndian

func damaged(off int64, field string, v any, why string) error {
	return &lun.FormatError{Format: format, Offset: off, Field: field, Value: v, Reason: why}
}

// The volume header, 512 bytes. Little-endian.
//
//	off size field
//	  0  16  signature
//	 16   4  version: 1 of Vista and 7, 2 of 8 and later
//	 20   4  record type 1
//	 24   8  its own offset
//	 48   8  catalog offset; 0: there are no shadow copies
//	 64  16  volume GUID
//	 80  16  GUID of the volume that the stores are on
type volumeHeader []byte

func (h volumeHeader) version() uint32 { return le.Uint32(h[16:]) }
func (h volumeHeader) record() record  { return record(le.Uint32(h[20:])) }
func (h volumeHeader) offset() uint64  { return le.Uint64(h[24:]) }
func (h volumeHeader) catalog() uint64 { return le.Uint64(h[48:]) }
func (h volumeHeader) volume() guid    { return guid(h[64:80]) }
func (h volumeHeader) storage() guid   { return guid(h[80:96]) }
func versionKnown(v uint32) bool       { return v == 1 || v == 2 }
func readAt(d lun.Device, b []byte, off int64, what string) error {
	if _, err := d.ReadAt(b, off); err != nil {
		return fmt.Errorf("read the %s of shadow copies at byte %d: %w", what, off, err)
	}
	return nil
}

// block reads the block of a type at off, whose offset may be anything. b is of
// Block bytes, or shorter where only the first are needed.
//
//	off size field
//	  0  16  signature
//	 16   4  version
//	 20   4  record type
//	 24   8  offset in the chain
//	 32   8  its own offset on the volume
//	 40   8  offset of the next; 0: it is the last
func (v *Volume) block(b []byte, off uint64, want record) (next uint64, err error) {
	size := uint64(v.dev.Size())
	if off%sector != 0 || off > size || size-off < Block {
		return 0, damaged(-1, want.String(), off, fmt.Sprintf("is no place for a block on a volume of %d bytes", size))
	}
	at := int64(off)
	if err := readAt(v.dev, b, at, want.String()); err != nil {
		return 0, err
	}
	switch {
	case string(b[:16]) != signature:
		return 0, damaged(at, want.String(), nil, "does not begin with the signature")
	case !versionKnown(le.Uint32(b[16:])):
		return 0, damaged(at+16, "version", le.Uint32(b[16:]), "only 1 and 2 are read")
	case record(le.Uint32(b[20:])) != want:
		return 0, damaged(at+20, "record type", le.Uint32(b[20:]), fmt.Sprintf("a %s (%d) should be here", want, uint32(want)))
	case le.Uint64(b[32:]) != off:
		return 0, damaged(at+32, "offset", le.Uint64(b[32:]), "the block says that it lies elsewhere")
	}
	return le.Uint64(b[40:]), nil
}

// walk calls fn with the blocks of a chain, at most most of them: one more is an
// error, as is a block that is in it twice. fn may end it by more == false.
func (v *Volume) walk(first uint64, want record, most int, fn func(at int64, content []byte) (more bool, err error)) error {
	seen := make(map[uint64]bool)
	b := make([]byte, Block)
	for off := first; off != 0; {
		if seen[off] {
			return damaged(int64(off), "next", off, fmt.Sprintf("the chain of the %s runs in a circle", want))
		}
		if len(seen) == most {
			return damaged(int64(min(off, maxVolume)), "next", off, fmt.Sprintf("the %s has more than %d blocks", want, most))
		}
		seen[off] = true
		next, err := v.block(b, off, want)
		if err != nil {
			return err
		}
		more, err := fn(int64(off)+blockHeader, b[blockHeader:])
		if err != nil || !more {
			return err
		}
		off = next
	}
	return nil
}

// guid is in Microsoft's order of bytes: the first three fields little-endian.
type guid [16]byte

func (g guid) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g[:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:])
}

// filetime is a FILETIME: 100 ns since 1601 in UTC. The zero time where it makes
// no sense.
func filetime(t uint64) time.Time {
	const epoch = 116444736000000000 // 1970
	if t < epoch || t > epoch+1<<60 {
		return time.Time{}
	}
	t -= epoch
	return time.Unix(int64(t/1e7), int64(t%1e7)*100).UTC()
}
