package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"strings"

	"github.com/cleave-san/cleave/lun"
)

var (
	be         = binary.BigEndian
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

const (
	superMagic = 0x58465342 // "XFSB"
	superSize  = 512        // of which 280 are used
)

// Bits of sb_versionnum, and of sb_features2.
const (
	versionShared   = 0x0200
	versionDirV2    = 0x2000
	versionMoreBits = 0x8000

	features2Ftype = 0x200
)

// Incompatible features of version 5.
const (
	incompatFtype    = 0x1
	incompatMetaUUID = 0x4
	incompatRepair   = 0x10

	// incompatKnown: ftype, sparse inodes, meta_uuid, bigtime, nrext64, exchange
	// of ranges, parent pointers.
	incompatKnown = incompatFtype | 0x2 | incompatMetaUUID | 0x8 | 0x20 | 0x40 | 0x80
)

// incompatNames are those that may be refused; by bit.
var incompatNames = map[int]string{4: "needsrepair", 8: "metadir", 9: "zoned", 10: "zone_gaps"}

// super is the superblock.
type super struct {
	v5         bool
	ftype      bool
	blockSize  int64
	blocks     uint64
	agBlocks   uint64
	agCount    uint64
	agBlockLog uint
	inodeSize  int64
	inodeLog   uint // inodes per block, as a power of two
	dirBlock   int64
	root       uint64
	logStart   uint64 // 0: on another device
	logBlocks  uint64
	sector     int64
	label      string
	uuid       string
	metaUUID   [16]byte
}

func damaged(off int64, field string, value any, reason string) error {
	return &lun.FormatError{Format: "xfs", Offset: off, Field: field, Value: value, Reason: reason}
}

// checksum is that of a structure which has it at byte at, where it counts as zero.
func checksum(b []byte, at int) uint32 {
	sum := crc32.Update(0, castagnoli, b[:at])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	return crc32.Update(sum, castagnoli, b[at+4:])
}

// parseSuper reads a superblock, of a device of size bytes.
func parseSuper(b []byte, size int64) (*super, error) {
	if be.Uint32(b) != superMagic {
		return nil, lun.ErrNotFormat
	}
	version := be.Uint16(b[100:])
	s := &super{
		v5:         version&0xF == 5,
		blockSize:  int64(be.Uint32(b[4:])),
		blocks:     be.Uint64(b[8:]),
		logStart:   be.Uint64(b[48:]),
		root:       be.Uint64(b[56:]),
		agBlocks:   uint64(be.Uint32(b[84:])),
		agCount:    uint64(be.Uint32(b[88:])),
		logBlocks:  uint64(be.Uint32(b[96:])),
		sector:     int64(be.Uint16(b[102:])),
		inodeSize:  int64(be.Uint16(b[104:])),
		label:      string(bytes.TrimRight(b[108:120], "\x00")),
		agBlockLog: uint(b[124]),
		metaUUID:   [16]byte(b[32:48]),
		uuid:       fmt.Sprintf("%x-%x-%x-%x-%x", b[32:36], b[36:38], b[38:40], b[40:42], b[42:48]),
	}
	if err := s.features(b, version); err != nil {
		return nil, err
	}
	power := func(n, low, high int64) bool { return n >= low && n <= high && n&(n-1) == 0 }
	switch {
	case b[126] != 0:
		return nil, damaged(126, "sb_inprogress", b[126], "mkfs.xfs did not finish")
	case !power(s.blockSize, 512, 64<<10):
		return nil, damaged(4, "sb_blocksize", s.blockSize, "is no size of a block")
	case !power(s.sector, 512, 32<<10) || s.sector > size:
		return nil, damaged(102, "sb_sectsize", s.sector, "is no size of a sector")
	case !power(s.inodeSize, 256, min(2048, s.blockSize)):
		return nil, damaged(104, "sb_inodesize", s.inodeSize, "is no size of an inode")
	case b[192] > 7 || s.blockSize<<b[192] > 64<<10:
		return nil, damaged(192, "sb_dirblklog", b[192], "directory blocks are at most 64 KiB")
	case s.blocks > uint64(size/s.blockSize):
		return nil, damaged(8, "sb_dblocks", s.blocks, fmt.Sprintf("does not fit on the device, which has %d blocks", size/s.blockSize))
	case s.agBlocks < 2 || s.agBlockLog != uint(bits.Len64(s.agBlocks-1)):
		return nil, damaged(84, "sb_agblocks", s.agBlocks, "is not what sb_agblklog says")
	case s.agCount == 0 || s.blocks <= (s.agCount-1)*s.agBlocks || s.blocks > s.agCount*s.agBlocks:
		return nil, damaged(88, "sb_agcount", s.agCount, fmt.Sprintf("is not that of %d blocks", s.blocks))
	}
	s.dirBlock = s.blockSize << b[192]
	s.inodeLog = uint(bits.TrailingZeros64(uint64(s.blockSize / s.inodeSize)))
	return s, nil
}

// features refuses what isn't known, by its name.
func (s *super) features(b []byte, version uint16) error {
	switch v := version & 0xF; {
	case v == 5:
		s.ftype = be.Uint32(b[216:])&incompatFtype != 0
	case v != 4:
		return damaged(100, "sb_versionnum", v, "only versions 4 and 5 are read")
	case version&versionDirV2 == 0:
		return damaged(100, "sb_versionnum", "dirv1", "directories of version 1 are not read")
	case version&versionShared != 0:
		return damaged(100, "sb_versionnum", "shared", "uses features that are not read here")
	default:
		s.ftype = version&versionMoreBits != 0 && be.Uint32(b[200:])&features2Ftype != 0
	}
	if !s.v5 {
		return nil
	}
	incompat := be.Uint32(b[216:])
	if incompat&incompatMetaUUID != 0 {
		s.metaUUID = [16]byte(b[248:264])
	}
	unknown := incompat &^ incompatKnown
	if unknown == 0 {
		return nil
	}
	var names []string
	for bit := range 32 {
		if unknown&(1<<bit) == 0 {
			continue
		}
		name := incompatNames[bit]
		if name == "" {
			name = fmt.Sprintf("bit %d", bit)
		}
		names = append(names, name)
	}
	reason := "uses features that are not read here"
	if unknown == incompatRepair {
		reason = "it needs xfs_repair before anybody reads it"
	}
	return damaged(216, "sb_features_incompat", strings.Join(names, ","), reason)
}

// byteOf is where n blocks begin on the device; ok tells whether they are there.
func (s *super) byteOf(fsb, n uint64) (at int64, ok bool) {
	group, block := fsb>>s.agBlockLog, fsb&(1<<s.agBlockLog-1)
	if group >= s.agCount || block >= s.agBlocks || n > s.agBlocks-block {
		return 0, false
	}
	linear := group*s.agBlocks + block
	if linear >= s.blocks || n > s.blocks-linear {
		return 0, false
	}
	return int64(linear) * s.blockSize, true
}
