package fat

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

var le = binary.LittleEndian

// The number of clusters tells FAT12 from FAT16. FAT32 has its own field for the
// size of a FAT and is one with any number, as Linux and Windows have it.
const (
	max12 = 4085
	max16 = 65525
	max32 = 0x0FFFFFF5
)

// super is the boot sector, in bytes where nothing else is said.
type super struct {
	bits     int // of an entry of the FAT
	cluster  int64
	clusters uint32 // the first is number 2
	fat      int64  // where the active one begins
	root     int64  // where the root begins, but for FAT32
	rootSize int64
	rootAt   uint32 // its cluster, with FAT32
	data     int64
	size     int64
	serial   uint32
	label    string
	dirty    bool // not unmounted
	failed   bool // errors of the disk were met
}

func damaged(off int64, field string, value any, reason string) error {
	return &lun.FormatError{Format: "fat", Offset: off, Field: field, Value: value, Reason: reason}
}

// parseSuper reads the boot sector of a device of size bytes. What doesn't look like
// one altogether is not a FAT: its magic is in every boot sector.
func parseSuper(b []byte, size int64) (*super, error) {
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, fats, entries := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	jump := b[0] == 0xEB && b[2] == 0x90 || b[0] == 0xE9
	power := func(n int64) bool { return n > 0 && n&(n-1) == 0 }
	if b[510] != 0x55 || b[511] != 0xAA || !jump || !power(sector) || sector < 512 || sector > 4096 || !power(perCluster) || reserved == 0 ||
		fats == 0 || fats > 4 || b[21] < 0xF0 || b[21] > 0xF0 && b[21] < 0xF8 {
		return nil, lun.ErrNotFormat
	}
	total, perFAT := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	large := perFAT == 0 // of FAT32
	if large {
		perFAT = int64(le.Uint32(b[36:]))
	}
	if perFAT == 0 || total == 0 {
		return nil, lun.ErrNotFormat
	}
	s := &super{cluster: sector * perCluster, fat: reserved * sector, rootSize: entries * 32, size: total * sector}
	s.root = (reserved + fats*perFAT) * sector
	s.data = s.root + (s.rootSize+sector-1)/sector*sector
	if s.size > size || s.data >= s.size {
		return nil, damaged(19, "BPB_TotSec", total, fmt.Sprintf("does not fit the device, which has %d sectors", size/sector))
	}
	clusters := (s.size - s.data) / s.cluster
	ext := b[36:] // the fields that follow
	switch {
	case large:
		s.bits, s.rootAt, ext = 32, le.Uint32(b[44:])&0x0FFFFFFF, b[64:]
		if version := le.Uint16(b[42:]); version != 0 || entries != 0 || clusters > max32 {
			return nil, damaged(42, "BPB_FSVer", version, "is no FAT32 that is read here")
		}
		if flags := le.Uint16(b[40:]); flags&0x80 != 0 { // only one is kept up
			if int64(flags&0xF) >= fats {
				return nil, damaged(40, "BPB_ExtFlags", flags, "there is no such FAT")
			}
			s.fat += int64(flags&0xF) * perFAT * sector
		}
	case clusters < max12:
		s.bits = 12
	case clusters < max16:
		s.bits = 16
	default:
		return nil, damaged(22, "BPB_FATSz16", perFAT, fmt.Sprintf("is none for %d clusters", clusters))
	}
	s.clusters = uint32(clusters)
	if need := ((clusters+2)*int64(s.bits) + 7) / 8; need > perFAT*sector {
		return nil, damaged(22, "BPB_FATSz", perFAT, fmt.Sprintf("is too little for %d clusters", clusters))
	}
	s.dirty, s.failed = ext[1]&1 != 0, ext[1]&2 != 0
	if ext[2] == 0x29 {
		s.serial = le.Uint32(ext[3:])
		if s.label = string(bytes.TrimRight(ext[7:18], " \x00")); s.label == "NO NAME" {
			s.label = ""
		}
	}
	return s, nil
}

// at is where a cluster begins on the device.
func (s *super) at(c uint32) int64 { return s.data + int64(c-2)*s.cluster }

// has tells whether there is such a cluster.
func (s *super) has(c uint32) bool { return c >= 2 && c-2 < s.clusters }
