package jbd2

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/cleave-san/cleave/lun"
)

// All numbers in a journal are big-endian, unlike the rest of ext4.
var be = binary.BigEndian

const magic = 0xC03B3998

// Block types: h_blocktype of the header that every block of the journal's own
// begins with (h_magic, h_blocktype, h_sequence).
const (
	typeDescriptor = 1
	typeCommit     = 2
	typeSuperV1    = 3
	typeSuperV2    = 4
	typeRevoke     = 5

	headerSize = 12
)

// Features of the journal superblock.
const (
	compatChecksum = 0x1

	incompatRevoke      = 0x1
	incompat64Bit       = 0x2
	incompatAsyncCommit = 0x4
	incompatCsumV2      = 0x8
	incompatCsumV3      = 0x10
	incompatFastCommit  = 0x20
	incompatKnown       = 0x3f
)

// Flags of a descriptor's tag.
const (
	tagEscape   = 1
	tagSameUUID = 2
	tagLast     = 8
)

const (
	minJournal        = 1024 // JBD2_MIN_JOURNAL_BLOCKS
	defaultFastCommit = 256  // JBD2_DEFAULT_FAST_COMMIT_BLOCKS
	superSize         = 1024
	checksumCRC32     = 1 // h_chksum_type
	checksumCRC32C    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is the kernel's crc32c(): neither the start nor the result is
// inverted.
func crc32c(crc uint32, p []byte) uint32 { return ^crc32.Update(^crc, castagnoli, p) }

// crc32be is the kernel's crc32_be(): the IEEE polynomial, most significant bit
// first. Only journals of the time before metadata_csum use it.
func crc32be(crc uint32, p []byte) uint32 {
	for _, b := range p {
		crc = crc<<8 ^ beTable[byte(crc>>24)^b]
	}
	return crc
}

var beTable = func() (t [256]uint32) {
	for i := range t {
		c := uint32(i) << 24
		for range 8 {
			if c&(1<<31) != 0 {
				c = c<<1 ^ 0x04c11db7
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return t
}()

// super is the journal's superblock.
type super struct {
	raw       [superSize]byte
	blockSize int64
	maxLen    uint32 // blocks of the journal
	first     uint32 // first block of the log
	last      uint32 // end of the log; what follows is the fast-commit area
	sequence  uint32 // of the first transaction in the log
	start     uint32 // where that is; 0: the log is empty
	compat    uint32
	incompat  uint32
	seed      uint32 // of checksums
}

func (s *super) csum23() bool { return s.incompat&(incompatCsumV2|incompatCsumV3) != 0 }

// tagSize is journal_tag_bytes().
func (s *super) tagSize() int {
	if s.incompat&incompatCsumV3 != 0 {
		return 16
	}
	n := 8
	if s.incompat&incompatCsumV2 != 0 {
		n += 2
	}
	if s.incompat&incompat64Bit != 0 {
		n += 4
	}
	return n
}

// usable is how much of a descriptor or revoke block is not its checksum.
func (s *super) usable() int {
	if s.csum23() {
		return int(s.blockSize) - 4
	}
	return int(s.blockSize)
}

func damaged(field string, value any, reason string) error {
	return &lun.FormatError{Format: "jbd2", Offset: -1, Field: field, Value: value, Reason: reason}
}

func parseSuper(b []byte, blockSize, size int64) (*super, error) {
	s := &super{raw: [superSize]byte(b)}
	kind := be.Uint32(b[4:])
	switch {
	case be.Uint32(b) != magic:
		return nil, damaged("h_magic", be.Uint32(b), "the journal has no superblock")
	case kind != typeSuperV1 && kind != typeSuperV2:
		return nil, damaged("h_blocktype", kind, "the journal does not begin with a superblock")
	}
	s.blockSize = int64(be.Uint32(b[0xC:]))
	s.maxLen, s.first = be.Uint32(b[0x10:]), be.Uint32(b[0x14:])
	s.sequence, s.start = be.Uint32(b[0x18:]), be.Uint32(b[0x1C:])
	if kind == typeSuperV2 {
		s.compat, s.incompat = be.Uint32(b[0x24:]), be.Uint32(b[0x28:])
	}
	if s.blockSize != blockSize {
		return nil, damaged("s_blocksize", s.blockSize, "is not the file system's block size")
	}
	if unknown := s.incompat &^ incompatKnown; unknown != 0 {
		return nil, damaged("s_feature_incompat", unknown, "the journal uses features that are not known here")
	}
	if s.csum23() {
		if err := s.verify(b); err != nil {
			return nil, err
		}
	}
	if s.maxLen < 2 || int64(s.maxLen) > size/blockSize {
		return nil, damaged("s_maxlen", s.maxLen, "is not within the journal's file")
	}
	s.last = s.maxLen
	if n := s.fastBlocks(); n > 0 && s.maxLen >= n && s.maxLen-n >= minJournal {
		s.last -= n
	}
	if s.first == 0 || s.first >= s.last {
		return nil, damaged("s_first", s.first, "is not within the journal")
	}
	if s.start != 0 && (s.start < s.first || s.start >= s.last) {
		return nil, damaged("s_start", s.start, "is not within the log")
	}
	return s, nil
}

func (s *super) fastBlocks() uint32 {
	if s.incompat&incompatFastCommit == 0 {
		return 0
	}
	if n := be.Uint32(s.raw[0x54:]); n != 0 {
		return n
	}
	return defaultFastCommit
}

func (s *super) verify(b []byte) error {
	if s.incompat&incompatCsumV2 != 0 && s.incompat&incompatCsumV3 != 0 {
		return damaged("s_feature_incompat", s.incompat, "has checksums of version 2 and 3 at once")
	}
	if b[0x50] != checksumCRC32C {
		return damaged("s_checksum_type", b[0x50], "is not crc32c")
	}
	c := s.raw
	clear(c[0xFC:0x100])
	if got, want := crc32c(^uint32(0), c[:]), be.Uint32(b[0xFC:]); got != want {
		return damaged("s_checksum", want, "the journal superblock's checksum is wrong")
	}
	s.seed = crc32c(^uint32(0), b[0x30:0x40])
	return nil
}

// emptied is the superblock of the same journal with nothing in its log.
func (s *super) emptied(sequence uint32) [superSize]byte {
	c := s.raw
	be.PutUint32(c[0x18:], sequence)
	be.PutUint32(c[0x1C:], 0)
	if s.csum23() {
		clear(c[0xFC:0x100])
		be.PutUint32(c[0xFC:], crc32c(^uint32(0), c[:]))
	}
	return c
}
