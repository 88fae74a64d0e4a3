// Package partition reads the partition table of a disk: GPT (UEFI 2.10,
// chapter 5) and MBR with extended partitions.
//
// A table that carries a signature and contradicts itself is a
// *lun.FormatError, never a smaller table: a disk with a protective MBR whose
// GPT headers are both damaged is a damaged GPT disk, not an MBR disk. Where
// the specification itself names a second copy (the backup GPT header) that
// copy is used and the damage to the first is kept in Table.Damage, so that
// whoever shows the table shows the damage with it.
//
// Table.Renew tells what to write over a table so that the disk can be attached
// beside the one of which it is a copy.
//
// Everything read here may have been written by a stranger: counts, sizes and
// chains are bounded before memory or time is spent on them.
package partition

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/lun"
)

// Scheme is the kind of a partition table, as lun inspect prints it.
type Scheme string

const (
	MBR Scheme = "mbr"
	GPT Scheme = "gpt"
)

// Table is what a disk says about its partitions.
type Table struct {
	Scheme     Scheme
	Sector     int    // bytes per logical sector that the table counts in
	UUID       string // GPT disk GUID, or the MBR's 32-bit signature in hexadecimal
	Partitions []Partition
	// Damage lists what is wrong with parts of the table that were not needed
	// to read it (one of the two GPT copies).
	Damage []error

	copies []*gptHeader // of a GPT, that are whole
}

// Partition is one entry. Off and Len are bytes from the start of the disk and
// lie within it.
type Partition struct {
	Number   int    // as kernels number it: sda1 is 1, the first logical MBR partition 5
	Off, Len int64  //
	Type     string // type GUID (GPT) or two hexadecimal digits (MBR)
	Name     string // GPT only
	UUID     string // GPT only
}

// Read reads the table of dev. The error is lun.ErrNotFormat when there is no
// table at all, a *lun.FormatError when there is one and it is damaged, and the
// device's own error when it could not be read.
func Read(dev lun.Device) (*Table, error) {
	logical := 512
	if b, ok := dev.(lun.Blocker); ok {
		if l, _ := b.Blocks(); l == 4096 {
			logical = l
		}
	}
	if dev.Size() < int64(logical) {
		return nil, lun.ErrNotFormat
	}
	boot := make([]byte, 512)
	if _, err := dev.ReadAt(boot, 0); err != nil {
		return nil, fmt.Errorf("read the boot sector: %w", err)
	}
	protective := hasProtective(boot)
	g, err := readGPT(dev, logical, protective)
	if g != nil {
		return g, nil
	}
	t, mbrErr := readMBR(dev, boot, logical)
	if err == nil {
		return t, mbrErr
	}
	if !protective && mbrErr == nil && len(t.Partitions) > 0 {
		// A disk that was partitioned anew with an old tool. Kernels take the
		// MBR as well when it announces no GPT.
		t.Damage = append(t.Damage, err)
		return t, nil
	}
	return nil, err
}

// checkOverlap refuses partitions that share bytes. Nothing that is nested
// (an extended partition and its logical ones) may be passed in.
func checkOverlap(format string, ps []Partition) error {
	s := slices.Clone(ps)
	slices.SortFunc(s, func(a, b Partition) int { return cmp.Compare(a.Off, b.Off) })
	for i := 1; i < len(s); i++ {
		if s[i].Off < s[i-1].Off+s[i-1].Len {
			return &lun.FormatError{Format: format, Offset: s[i].Off, Field: fmt.Sprintf("partition %d", s[i].Number),
				Value: s[i].Off, Reason: fmt.Sprintf("overlaps partition %d, which ends at byte %d", s[i-1].Number, s[i-1].Off+s[i-1].Len)}
		}
	}
	return nil
}
