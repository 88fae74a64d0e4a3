package btrfs

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

const (
	format    = "btrfs"
	superSize = 4096
	sector    = 512
	magic     = "_BHRfS_M"
	// Guard is the sector without which a device is no Btrfs: the first of the
	// superblock that counts.
	Guard = 64 << 10
)

// superAt are the places of the superblock; the kernel mounts by the first.
var superAt = []int64{Guard, 64 << 20, 256 << 30}

var le = binary.LittleEndian

func damaged(off int64, field string, v any, why string) error {
	return &lun.FormatError{Format: format, Offset: off, Field: field, Value: v, Reason: why}
}

// super is a superblock, struct btrfs_super_block. Little-endian.
//
//	off size field                      off size field
//	  0  32  csum                       148   4  nodesize
//	 32  16  fsid                       160   4  sys_chunk_array_size
//	 48   8  bytenr                     164   8  chunk_root_generation
//	 64   8  magic                      188   8  incompat_flags
//	 72   8  generation                 196   2  csum_type
//	 80   8  root                       198   1  root_level
//	 88   8  chunk_root                 199   1  chunk_root_level
//	 96   8  log_root                   200   1  log_root_level
//	112   8  total_bytes                201  98  dev_item: devid first
//	136   8  num_devices                299 256  label
//	144   4  sectorsize                 571  16  metadata_uuid
//	                                    811 2048 sys_chunk_array
type super []byte

func (s super) fsid() []byte         { return s[32:48] }
func (s super) bytenr() uint64       { return le.Uint64(s[48:]) }
func (s super) generation() uint64   { return le.Uint64(s[72:]) }
func (s super) root() uint64         { return le.Uint64(s[80:]) }
func (s super) chunkRoot() uint64    { return le.Uint64(s[88:]) }
func (s super) logRoot() uint64      { return le.Uint64(s[96:]) }
func (s super) total() uint64        { return le.Uint64(s[112:]) }
func (s super) devices() uint64      { return le.Uint64(s[136:]) }
func (s super) sectorSize() uint32   { return le.Uint32(s[144:]) }
func (s super) nodeSize() uint32     { return le.Uint32(s[148:]) }
func (s super) chunkArray() uint32   { return le.Uint32(s[160:]) }
func (s super) chunkGen() uint64     { return le.Uint64(s[164:]) }
func (s super) incompat() incompat   { return incompat(le.Uint64(s[188:])) }
func (s super) sum() sumType         { return sumType(le.Uint16(s[196:])) }
func (s super) level() uint8         { return s[198] }
func (s super) chunkLevel() uint8    { return s[199] }
func (s super) logLevel() uint8      { return s[200] }
func (s super) devid() uint64        { return le.Uint64(s[201:]) }
func (s super) label() string        { b, _, _ := bytes.Cut(s[299:555], []byte{0}); return string(b) }
func (s super) metadataUUID() []byte { return s[571:587] }
func (s super) chunks() []byte       { return s[811 : 811+2048] }

// blocksID is the UUID in all tree blocks.
func (s super) blocksID() []byte {
	if s.incompat()&incompatMetadataUUID != 0 {
		return s.metadataUUID()
	}
	return s.fsid()
}

// incompat are features without which nothing may be read.
type incompat uint64

const (
	incompatDefaultSubvol incompat = 1 << 1
	incompatNoHoles       incompat = 1 << 9
	incompatMetadataUUID  incompat = 1 << 10
	// incompatKnown do not change what is read here, or are known: mixed
	// backrefs, mixed groups, LZO, zstd, big metadata, extended irefs, RAID5/6,
	// skinny metadata, RAID1C3/4, simple quotas. Profiles are looked at in chunks.
	incompatKnown incompat = 1<<12 - 1 | 1<<16
)

var incompatNames = map[incompat]string{1 << 12: "zoned", 1 << 13: "extent-tree-v2", 1 << 14: "raid-stripe-tree"}

// readSuper finds the superblock that counts: the first, as the kernel has it, or
// where that is damaged the newest of the others. old says why not the first.
func readSuper(dev lun.Device) (s super, old error, err error) {
	first := make(super, superSize)
	if dev.Size() < superAt[0]+superSize {
		return nil, nil, lun.ErrNotFormat
	}
	if _, err := dev.ReadAt(first, superAt[0]); err != nil {
		return nil, nil, fmt.Errorf("read the superblock: %w", err)
	}
	if string(first[64:72]) != magic {
		return nil, nil, lun.ErrNotFormat
	}
	bad := first.check(superAt[0])
	if bad == nil {
		return first, nil, nil
	}
	for _, at := range superAt[1:] {
		if at > dev.Size()-superSize {
			break
		}
		other := make(super, superSize)
		if _, err := dev.ReadAt(other, at); err != nil {
			return nil, nil, fmt.Errorf("read the superblock at byte %d: %w", at, err)
		}
		if string(other[64:72]) == magic && other.check(at) == nil && (s == nil || other.generation() > s.generation()) {
			s = other
		}
	}
	if s == nil {
		return nil, nil, bad
	}
	return s, bad, nil
}

// check looks at the superblock at a place by itself.
func (s super) check(at int64) error {
	if !s.sum().known() {
		return damaged(at+196, "csum_type", uint16(s.sum()), "checksums of this type are not read: only CRC-32C, xxhash and SHA-256")
	}
	if !s.sum().fits(s) {
		return damaged(at, "csum", nil, "the superblock's checksum is wrong")
	}
	if s.bytenr() != uint64(at) {
		return damaged(at+48, "bytenr", s.bytenr(), "the superblock says that it lies elsewhere")
	}
	return nil
}

// supported refuses what is not read.
func (s super) supported(dev lun.Device) error {
	power := func(n uint32) bool { return n >= 4096 && n <= 65536 && n&(n-1) == 0 }
	if unknown := s.incompat() &^ incompatKnown; unknown != 0 {
		bit := unknown & -unknown
		name := incompatNames[bit]
		if name == "" {
			name = fmt.Sprintf("%#x", uint64(unknown))
		}
		return damaged(-1, "incompat_flags", name, "the file system uses a feature that is not read")
	}
	switch {
	case s.devices() != 1:
		return damaged(-1, "num_devices", s.devices(), "only file systems on one device are read")
	case !power(s.nodeSize()):
		return damaged(-1, "nodesize", s.nodeSize(), "is no power of two from 4096 to 65536")
	case !power(s.sectorSize()) || s.sectorSize() > s.nodeSize():
		return damaged(-1, "sectorsize", s.sectorSize(), "is no power of two from 4096 to the size of a node")
	case s.total() > uint64(dev.Size()):
		return damaged(-1, "total_bytes", s.total(), fmt.Sprintf("the device has only %d bytes", dev.Size()))
	case s.chunkArray() > 2048:
		return damaged(-1, "sys_chunk_array_size", s.chunkArray(), "is longer than its place")
	}
	return nil
}
