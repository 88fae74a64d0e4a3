package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/cleave-san/cleave/lun"
)

var le = binary.LittleEndian

const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53
)

// Compatible features that matter to a reader.
const (
	compatHasJournal   = 0x4
	compatSparseSuper2 = 0x200
)

// Incompatible features.
const (
	incompatRecover    = 0x4
	incompatJournalDev = 0x8
	incompatMetaBG     = 0x10
	incompat64Bit      = 0x80
	incompatEAInode    = 0x400
	incompatCsumSeed   = 0x2000
	incompatLargeDir   = 0x4000
	incompatInlineData = 0x8000

	// incompatKnown: filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg,
	// ea_inode, metadata_csum_seed, large_dir, inline_data, encrypt, casefold.
	incompatKnown = 0x2 | incompatRecover | incompatMetaBG | 0x40 | incompat64Bit | 0x100 | 0x200 | incompatEAInode |
		incompatCsumSeed | incompatLargeDir | incompatInlineData | 0x10000 | 0x20000
	incompatFiletype = 0x2
	incompatExtents  = 0x40
)

// incompatNames are those that may be refused; by bit.
var incompatNames = map[int]string{0: "compression", 3: "journal_dev", 12: "dirdata"}

// Read-only compatible features: a reader need not know one, but these change
// how something is read.
const (
	roSparseSuper  = 0x1
	roHugeFile     = 0x8
	roGDTCsum      = 0x10
	roBigalloc     = 0x200
	roMetadataCsum = 0x400
)

// super is the superblock.
type super struct {
	raw            [superSize]byte
	blockSize      int64
	blocks         uint64
	inodes         uint32
	firstData      uint64 // s_first_data_block
	blocksPerGroup uint64
	inodesPerGroup uint32
	groups         uint32
	inodeSize      int64
	descSize       int64
	clusterSize    int64
	firstMetaBG    uint32
	compat         uint32
	incompat       uint32
	ro             uint32
	journal        uint32 // inode
	seed           uint32 // of metadata checksums
	backups        [2]uint32
	label          string
	uuid           string
	revision0      bool
	journalDevice  bool
}

func (s *super) csum() bool { return s.ro&roMetadataCsum != 0 }

func damaged(off int64, field string, value any, reason string) error {
	return &lun.FormatError{Format: "ext4", Offset: off, Field: field, Value: value, Reason: reason}
}

// parseSuper reads a superblock, of a device of size bytes.
func parseSuper(b []byte, size int64) (*super, error) {
	if le.Uint16(b[0x38:]) != superMagic {
		return nil, lun.ErrNotFormat
	}
	s := &super{
		raw:            [superSize]byte(b),
		inodes:         le.Uint32(b),
		blocks:         uint64(le.Uint32(b[4:])),
		firstData:      uint64(le.Uint32(b[0x14:])),
		blocksPerGroup: uint64(le.Uint32(b[0x20:])),
		inodesPerGroup: le.Uint32(b[0x28:]),
		inodeSize:      128,
		descSize:       32,
		revision0:      le.Uint32(b[0x4C:]) == 0,
	}
	bad := func(off int64, field string, value any, reason string) error {
		return damaged(superOffset+off, field, value, reason)
	}
	if !s.revision0 {
		s.inodeSize = int64(le.Uint16(b[0x58:]))
		s.compat, s.incompat, s.ro = le.Uint32(b[0x5C:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
		s.label = string(bytes.TrimRight(b[0x78:0x88], "\x00"))
		s.uuid = fmt.Sprintf("%x-%x-%x-%x-%x", b[0x68:0x6C], b[0x6C:0x6E], b[0x6E:0x70], b[0x70:0x72], b[0x72:0x78])
	}
	if err := s.features(); err != nil {
		return nil, err
	}
	if s.csum() {
		if got, want := crc32c(^uint32(0), b[:0x3FC]), le.Uint32(b[0x3FC:]); got != want {
			return nil, bad(0x3FC, "s_checksum", want, "the superblock's checksum is wrong: e2fsck on a copy may find a backup of it")
		}
		if b[0x175] != 1 {
			return nil, bad(0x175, "s_checksum_type", b[0x175], "is not crc32c")
		}
	}
	s.seed = crc32c(^uint32(0), b[0x68:0x78])
	if s.incompat&incompatCsumSeed != 0 {
		s.seed = le.Uint32(b[0x270:])
	}
	shift := le.Uint32(b[0x18:])
	if shift > 6 {
		return nil, bad(0x18, "s_log_block_size", shift, "blocks are at most 64 KiB")
	}
	s.blockSize = 1024 << shift
	s.clusterSize = s.blockSize
	if cluster := le.Uint32(b[0x1C:]); s.ro&roBigalloc != 0 {
		if cluster < shift || cluster > 30 {
			return nil, bad(0x1C, "s_log_cluster_size", cluster, "clusters are not smaller than blocks")
		}
		s.clusterSize = 1024 << cluster
	}
	if s.incompat&incompat64Bit != 0 {
		s.blocks |= uint64(le.Uint32(b[0x150:])) << 32
		s.descSize = int64(le.Uint16(b[0xFE:]))
		if s.descSize < 64 || s.descSize > 1024 || s.descSize&(s.descSize-1) != 0 {
			return nil, bad(0xFE, "s_desc_size", s.descSize, "is no size of a 64-bit group descriptor")
		}
	}
	if s.inodeSize < 128 || s.inodeSize > s.blockSize || s.inodeSize&(s.inodeSize-1) != 0 {
		return nil, bad(0x58, "s_inode_size", s.inodeSize, "is no size of an inode")
	}
	if s.blocks > uint64(size/s.blockSize) {
		return nil, bad(4, "s_blocks_count", s.blocks, fmt.Sprintf("does not fit on the device, which has %d blocks", size/s.blockSize))
	}
	if s.blocks <= s.firstData || s.firstData > 1 {
		return nil, bad(0x14, "s_first_data_block", s.firstData, "is not one of the first blocks")
	}
	// With clusters a bitmap block covers more blocks.
	if limit := uint64(8*s.blockSize) * uint64(s.clusterSize/s.blockSize); s.blocksPerGroup == 0 || s.blocksPerGroup > limit {
		return nil, bad(0x20, "s_blocks_per_group", s.blocksPerGroup, "does not fit a block of bitmap")
	}
	if s.inodesPerGroup == 0 || int64(s.inodesPerGroup) > 8*s.blockSize {
		return nil, bad(0x28, "s_inodes_per_group", s.inodesPerGroup, "does not fit a block of bitmap")
	}
	groups := (s.blocks - s.firstData + s.blocksPerGroup - 1) / s.blocksPerGroup
	if groups*uint64(s.inodesPerGroup) != uint64(s.inodes) {
		return nil, bad(0, "s_inodes_count", s.inodes, fmt.Sprintf("is not that of %d groups with %d inodes", groups, s.inodesPerGroup))
	}
	s.groups = uint32(groups)
	s.firstMetaBG = le.Uint32(b[0x104:])
	s.backups = [2]uint32{le.Uint32(b[0x24C:]), le.Uint32(b[0x250:])}
	s.journal = le.Uint32(b[0xE0:])
	s.journalDevice = le.Uint32(b[0xE4:]) != 0 || s.journal == 0
	return s, nil
}

// features refuses what isn't known, by its name.
func (s *super) features() error {
	unknown := s.incompat &^ incompatKnown
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
			name = fmt.Sprintf("FEATURE_I%d", bit)
		}
		names = append(names, name)
	}
	reason := "uses features that are not read here"
	if unknown&incompatJournalDev != 0 {
		reason = "is the external journal of a file system, not one"
	}
	return damaged(superOffset+0x60, "s_feature_incompat", strings.Join(names, ","), reason)
}

// variant is what mke2fs calls it.
func (s *super) variant() string {
	const ext3 = incompatFiletype | incompatRecover | incompatMetaBG
	switch {
	case s.incompat&^ext3 != 0 || s.ro&^7 != 0:
		return "ext4"
	case s.compat&compatHasJournal != 0:
		return "ext3"
	}
	return "ext2"
}

// hasSuper tells whether a group begins with a copy of the superblock:
// ext4_bg_has_super().
func (s *super) hasSuper(group uint32) bool {
	switch {
	case group == 0:
		return true
	case s.compat&compatSparseSuper2 != 0:
		return group == s.backups[0] || group == s.backups[1]
	case group == 1 || s.ro&roSparseSuper == 0:
		return true
	case group%2 == 0:
		return false
	}
	for _, base := range []uint64{3, 5, 7} {
		p := base
		for p < uint64(group) {
			p *= base
		}
		if p == uint64(group) {
			return true
		}
	}
	return false
}

// descriptor is the byte where a group's descriptor is: descriptor_loc().
func (s *super) descriptor(group uint32) int64 {
	per := uint32(s.blockSize / s.descSize)
	table := group / per
	within := int64(group%per) * s.descSize
	if s.incompat&incompatMetaBG == 0 || table < s.firstMetaBG {
		return (superOffset/s.blockSize+1+int64(table))*s.blockSize + within
	}
	first := table * per
	block := s.firstData + uint64(first)*s.blocksPerGroup
	if s.hasSuper(first) {
		block++
		if s.blockSize == 1024 && table == 0 && s.firstData == 0 {
			block++
		}
	}
	return int64(block)*s.blockSize + within
}

// recovered is the superblock as it is once the journal was replayed.
func (s *super) recovered() []byte {
	b := bytes.Clone(s.raw[:])
	le.PutUint32(b[0x60:], s.incompat&^incompatRecover)
	if s.csum() {
		le.PutUint32(b[0x3FC:], crc32c(^uint32(0), b[:0x3FC]))
	}
	return b
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is the kernel's: neither the start nor the result is inverted.
func crc32c(crc uint32, p []byte) uint32 { return ^crc32.Update(^crc, castagnoli, p) }

// crc16 is the kernel's crc16(), of group descriptors without metadata_csum.
func crc16(crc uint16, p []byte) uint16 {
	for _, b := range p {
		crc ^= uint16(b)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xA001
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}
