package partition

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"unicode/utf16"

	"github.com/cleave-san/cleave/lun"
)

// The GPT header, UEFI 2.10 section 5.3.2. Little-endian.
//
//	off size field
//	  0   8  Signature "EFI PART"
//	  8   4  Revision 0x00010000
//	 12   4  HeaderSize, 92 to one sector
//	 16   4  HeaderCRC32, with this field as zero
//	 24   8  MyLBA
//	 32   8  AlternateLBA
//	 40   8  FirstUsableLBA
//	 48   8  LastUsableLBA
//	 56  16  DiskGUID
//	 72   8  PartitionEntryLBA
//	 80   4  NumberOfPartitionEntries
//	 84   4  SizeOfPartitionEntry, 128 * 2^n
//	 88   4  PartitionEntryArrayCRC32
const (
	gptSignature  = "EFI PART"
	gptRevision   = 0x00010000
	gptHeaderMin  = 92
	maxEntryArray = 1 << 20 // bytes; the usual array has 16 KiB
	maxEntrySize  = 4096
)

type gptHeader struct {
	at            int64  // byte where it was read
	raw           []byte // HeaderSize bytes of it, with the checksum as zero
	my, alt       uint64
	first, last   uint64
	guid          [16]byte
	entryLBA      uint64
	count, size   uint32
	entriesCRC    uint32
	sector        int
	sectorsOnDisk uint64
}

// readGPT returns nil, nil when the disk isn't a GPT disk.
func readGPT(dev lun.Device, logical int, protective bool) (*Table, error) {
	sectors := []int{logical, 4096 + 512 - logical}
	var damage []error
	for _, sector := range sectors {
		t, err := readCopies(dev, sector, protective)
		switch {
		case t != nil:
			return t, nil
		case errors.Is(err, lun.ErrNotFormat):
		case err != nil:
			damage = append(damage, err)
		}
	}
	switch {
	case len(damage) > 0:
		return nil, damage[0]
	case protective:
		return nil, &lun.FormatError{Format: "gpt", Offset: int64(logical), Field: "Signature",
			Reason: "a protective MBR announces a GPT, and neither its header nor the backup at the end of the disk is there"}
	}
	return nil, nil
}

// readCopies reads the primary and the backup table for one sector size.
// ErrNotFormat: neither carries the signature.
func readCopies(dev lun.Device, sector int, protective bool) (*Table, error) {
	disk := uint64(dev.Size()) / uint64(sector)
	if disk < 3 {
		return nil, lun.ErrNotFormat
	}
	primary, h, perr := readCopy(dev, sector, 1)
	if !protective {
		// Without a protective MBR only a whole primary header makes this a
		// GPT disk, and then the MBR is the damaged part.
		if perr == nil {
			return nil, &lun.FormatError{Format: "gpt", Offset: 0, Field: "protective MBR",
				Reason: "is missing although there is a valid GPT header: the first sector was overwritten, or the header is left over"}
		}
		return nil, lun.ErrNotFormat
	}
	backupLBA := disk - 1
	if perr == nil && h.alt > 1 && h.alt < disk {
		backupLBA = h.alt // a disk that grew has its backup where its end once was
	}
	backup, bh, berr := readCopy(dev, sector, backupLBA)
	switch {
	case perr == nil && berr == nil:
		if primary.UUID != backup.UUID || !samePartitions(primary, backup) {
			primary.Damage = append(primary.Damage, &lun.FormatError{Format: "gpt", Offset: int64(backupLBA) * int64(sector), Field: "backup GPT",
				Reason: "differs from the primary one, which is used as the specification says"})
		}
		primary.copies = []*gptHeader{h, bh}
		return primary, nil
	case perr == nil:
		if errors.Is(berr, lun.ErrNotFormat) {
			berr = &lun.FormatError{Format: "gpt", Offset: int64(backupLBA) * int64(sector), Field: "backup GPT", Reason: "is missing; the primary one is whole and is used"}
		}
		primary.Damage = append(primary.Damage, berr)
		primary.copies = []*gptHeader{h}
		return primary, nil
	case berr == nil:
		if errors.Is(perr, lun.ErrNotFormat) {
			perr = &lun.FormatError{Format: "gpt", Offset: int64(sector), Field: "Signature", Reason: "the primary header is missing; the backup at the end of the disk is whole and is used"}
		}
		backup.Damage = append(backup.Damage, perr)
		backup.copies = []*gptHeader{bh}
		return backup, nil
	case errors.Is(perr, lun.ErrNotFormat):
		return nil, berr // damaged, or ErrNotFormat as well
	}
	return nil, perr
}

func samePartitions(a, b *Table) bool {
	if len(a.Partitions) != len(b.Partitions) {
		return false
	}
	for i := range a.Partitions {
		if a.Partitions[i] != b.Partitions[i] {
			return false
		}
	}
	return true
}

func readCopy(dev lun.Device, sector int, lba uint64) (*Table, *gptHeader, error) {
	h, err := readHeader(dev, sector, lba)
	if err != nil {
		return nil, nil, err
	}
	t, err := h.table(dev)
	return t, h, err
}

func readHeader(dev lun.Device, sector int, lba uint64) (*gptHeader, error) {
	b := make([]byte, sector)
	at := int64(lba) * int64(sector)
	if _, err := dev.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("read the GPT header at byte %d: %w", at, err)
	}
	if string(b[:8]) != gptSignature {
		return nil, lun.ErrNotFormat
	}
	le := binary.LittleEndian
	fail := func(off int, field string, v any, why string) (*gptHeader, error) {
		return nil, &lun.FormatError{Format: "gpt", Offset: at + int64(off), Field: field, Value: v, Reason: why}
	}
	if v := le.Uint32(b[8:]); v != gptRevision {
		return fail(8, "Revision", fmt.Sprintf("%#08x", v), "only revision 1.0 is read")
	}
	n := le.Uint32(b[12:])
	if n < gptHeaderMin || n > uint32(sector) {
		return fail(12, "HeaderSize", n, fmt.Sprintf("must be between %d and %d", gptHeaderMin, sector))
	}
	want := le.Uint32(b[16:])
	clear(b[16:20])
	if got := crc32.ChecksumIEEE(b[:n]); got != want {
		return fail(16, "HeaderCRC32", fmt.Sprintf("%#08x", want), fmt.Sprintf("the header sums to %#08x: it is damaged", got))
	}
	h := &gptHeader{at: at, raw: b[:n:n], my: le.Uint64(b[24:]), alt: le.Uint64(b[32:]), first: le.Uint64(b[40:]), last: le.Uint64(b[48:]),
		entryLBA: le.Uint64(b[72:]), count: le.Uint32(b[80:]), size: le.Uint32(b[84:]), entriesCRC: le.Uint32(b[88:]),
		sector: sector, sectorsOnDisk: uint64(dev.Size()) / uint64(sector)}
	copy(h.guid[:], b[56:72])
	switch {
	case h.my != lba:
		return fail(24, "MyLBA", h.my, fmt.Sprintf("the header lies at LBA %d", lba))
	case h.size < 128 || h.size&(h.size-1) != 0 || h.size > maxEntrySize:
		return fail(84, "SizeOfPartitionEntry", h.size, "must be a power of two from 128 to 4096")
	case h.count == 0 || uint64(h.count)*uint64(h.size) > maxEntryArray:
		return fail(80, "NumberOfPartitionEntries", h.count, "no table of that many entries is read")
	case h.entryLBA < 2 || h.entryLBA >= h.sectorsOnDisk:
		return fail(72, "PartitionEntryLBA", h.entryLBA, fmt.Sprintf("lies outside the disk of %d sectors", h.sectorsOnDisk))
	case h.first > h.last || h.last >= h.sectorsOnDisk:
		return fail(48, "LastUsableLBA", h.last, fmt.Sprintf("lies outside the disk of %d sectors: the disk is smaller than when it was partitioned", h.sectorsOnDisk))
	}
	return h, nil
}

// entries reads the array of partition entries, whose checksum holds.
func (h *gptHeader) entries(dev lun.Device) ([]byte, error) {
	b := make([]byte, int(h.count)*int(h.size))
	at := int64(h.entryLBA) * int64(h.sector)
	if err := lun.CheckRange(at, int64(len(b)), dev.Size()); err != nil {
		return nil, &lun.FormatError{Format: "gpt", Offset: h.at + 72, Field: "PartitionEntryLBA", Value: h.entryLBA, Reason: "the entries run beyond the end of the disk"}
	}
	if _, err := dev.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("read the GPT entries at byte %d: %w", at, err)
	}
	if got := crc32.ChecksumIEEE(b); got != h.entriesCRC {
		return nil, &lun.FormatError{Format: "gpt", Offset: h.at + 88, Field: "PartitionEntryArrayCRC32", Value: fmt.Sprintf("%#08x", h.entriesCRC),
			Reason: fmt.Sprintf("the entries at byte %d sum to %#08x: they are damaged", at, got)}
	}
	return b, nil
}

func (h *gptHeader) table(dev lun.Device) (*Table, error) {
	b, err := h.entries(dev)
	if err != nil {
		return nil, err
	}
	at := int64(h.entryLBA) * int64(h.sector)
	t := &Table{Scheme: GPT, Sector: h.sector, UUID: guid(h.guid[:])}
	for i := range int(h.count) {
		e := b[i*int(h.size):][:h.size]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		first, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		off := at + int64(i)*int64(h.size)
		switch {
		case first > last:
			return nil, &lun.FormatError{Format: "gpt", Offset: off + 40, Field: "EndingLBA", Value: last, Reason: fmt.Sprintf("partition %d ends before it begins (LBA %d)", i+1, first)}
		case last >= h.sectorsOnDisk:
			return nil, &lun.FormatError{Format: "gpt", Offset: off + 40, Field: "EndingLBA", Value: last,
				Reason: fmt.Sprintf("partition %d ends beyond the end of the disk (%d sectors)", i+1, h.sectorsOnDisk)}
		}
		if first < h.first || last > h.last {
			// Firmware and kernels pass over such an entry.
			t.Damage = append(t.Damage, &lun.FormatError{Format: "gpt", Offset: off + 32, Field: "StartingLBA", Value: first,
				Reason: fmt.Sprintf("partition %d, LBA %d to %d, leaves the usable range of the disk, %d to %d: guests may not see it", i+1, first, last, h.first, h.last)})
		}
		t.Partitions = append(t.Partitions, Partition{Number: i + 1, Off: int64(first) * int64(h.sector), Len: int64(last-first+1) * int64(h.sector),
			Type: guid(e[:16]), UUID: guid(e[16:32]), Name: name(e[56:128])})
	}
	return t, checkOverlap("gpt", t.Partitions)
}

// guid formats a GUID as Microsoft stores it: the first three groups
// little-endian.
func guid(b []byte) string {
	g := []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
	h := hex.EncodeToString(g)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func name(b []byte) string {
	u := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, string(utf16.Decode(u)))
}
