package partition

import (
	"encoding/binary"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// Offsets of the master boot record.
const (
	mbrSignature = 440 // u32 disk signature
	mbrEntries   = 446 // four entries of 16 bytes
	mbrMagic     = 510 // 0x55 0xAA

	typeProtective = 0xEE
	// maxLogical bounds the chain of an extended partition. Kernels stop at
	// 256 minors a disk.
	maxLogical = 256
)

type mbrEntry struct {
	status, typ  byte
	start, count uint32
}

func (e mbrEntry) extended() bool { return e.typ == 0x05 || e.typ == 0x0F || e.typ == 0x85 }

func entryAt(sector []byte, i int) mbrEntry {
	b := sector[mbrEntries+16*i:]
	return mbrEntry{b[0], b[4], binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])}
}

func hasMagic(sector []byte) bool { return sector[mbrMagic] == 0x55 && sector[mbrMagic+1] == 0xAA }

func hasProtective(boot []byte) bool {
	if !hasMagic(boot) {
		return false
	}
	for i := range 4 {
		if entryAt(boot, i).typ == typeProtective {
			return true
		}
	}
	return false
}

// isVolumeBoot tells the boot sector of a FAT or NTFS volume, which ends in the
// same magic, from a master boot record: it has a BIOS parameter block.
func isVolumeBoot(b []byte) bool {
	if b[0] != 0xEB && b[0] != 0xE9 {
		return false
	}
	switch binary.LittleEndian.Uint16(b[11:]) {
	case 512, 1024, 2048, 4096:
		return b[13] != 0
	}
	return false
}

func readMBR(dev lun.Device, boot []byte, sector int) (*Table, error) {
	if !hasMagic(boot) || isVolumeBoot(boot) {
		return nil, lun.ErrNotFormat
	}
	t := &Table{Scheme: MBR, Sector: sector, UUID: fmt.Sprintf("%08x", binary.LittleEndian.Uint32(boot[mbrSignature:]))}
	var primary []Partition
	var ext *mbrEntry
	for i := range 4 {
		e := entryAt(boot, i)
		at := int64(mbrEntries + 16*i)
		if e.status != 0 && e.status != 0x80 {
			return nil, bad(at, "status", e.status, "must be 0x00 or 0x80: the partition table is damaged")
		}
		if e.typ == 0 || e.count == 0 {
			continue
		}
		p, err := e.partition(i+1, 0, at, sector, dev.Size())
		if err != nil {
			return nil, err
		}
		primary = append(primary, p)
		if e.extended() {
			if ext != nil {
				return nil, bad(at+4, "type", e.typ, "is a second extended partition; there can be only one")
			}
			ext = &e
		} else {
			t.Partitions = append(t.Partitions, p)
		}
	}
	if err := checkOverlap("mbr", primary); err != nil {
		return nil, err
	}
	if ext == nil {
		return t, nil
	}
	logical, err := readExtended(dev, *ext, sector)
	if err != nil {
		return nil, err
	}
	if err := checkOverlap("mbr", logical); err != nil {
		return nil, err
	}
	t.Partitions = append(t.Partitions, logical...)
	return t, nil
}

// readExtended follows the chain of extended boot records. In each, entry 0 is
// the logical partition, counted from that record; entry 1 is the next record,
// counted from the start of the extended partition.
func readExtended(dev lun.Device, ext mbrEntry, sector int) ([]Partition, error) {
	var ps []Partition
	seen := make(map[uint64]bool)
	buf := make([]byte, 512)
	for at := uint64(ext.start); ; {
		off := int64(at) * int64(sector)
		if seen[at] {
			return nil, bad(off, "next EBR", at, "the chain of extended boot records runs in a circle")
		}
		if len(seen) >= maxLogical {
			return nil, bad(off, "next EBR", at, fmt.Sprintf("more than %d logical partitions", maxLogical))
		}
		seen[at] = true
		if _, err := dev.ReadAt(buf, off); err != nil {
			return nil, fmt.Errorf("read the extended boot record at byte %d: %w", off, err)
		}
		if !hasMagic(buf) {
			return nil, bad(off+mbrMagic, "signature", fmt.Sprintf("%#x", buf[mbrMagic:]), "want 0x55aa: the extended boot record is damaged")
		}
		if e := entryAt(buf, 0); e.typ != 0 && e.count != 0 {
			p, err := e.partition(5+len(ps), at, off+mbrEntries, sector, dev.Size())
			if err != nil {
				return nil, err
			}
			if end := (int64(ext.start) + int64(ext.count)) * int64(sector); p.Off+p.Len > end {
				return nil, bad(off+mbrEntries+12, "sectors", e.count, "the logical partition ends behind its extended partition")
			}
			ps = append(ps, p)
		}
		next := entryAt(buf, 1)
		if next.typ == 0 || next.count == 0 {
			return ps, nil
		}
		if !next.extended() || next.start >= ext.count {
			return nil, bad(off+mbrEntries+16, "next EBR", next.start, "does not lead to another record of the extended partition")
		}
		at = uint64(ext.start) + uint64(next.start)
	}
}

func (e mbrEntry) partition(number int, base uint64, at int64, sector int, size int64) (Partition, error) {
	first := base + uint64(e.start)
	p := Partition{Number: number, Off: int64(first) * int64(sector), Len: int64(e.count) * int64(sector), Type: fmt.Sprintf("%02x", e.typ)}
	if e.start == 0 {
		return p, bad(at+8, "first LBA", e.start, fmt.Sprintf("partition %d begins at the table itself", number))
	}
	if err := lun.CheckRange(p.Off, p.Len, size); err != nil {
		return p, bad(at+12, "sectors", e.count, fmt.Sprintf("partition %d ends at byte %d, beyond the end of the disk (%d bytes)", number, p.Off+p.Len, size))
	}
	return p, nil
}

func bad(off int64, field string, value any, reason string) error {
	return &lun.FormatError{Format: "mbr", Offset: off, Field: field, Value: value, Reason: reason}
}
