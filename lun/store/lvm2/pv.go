package lvm2

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/lun"
)

// PV is one physical volume as its own header describes it.
type PV struct {
	Dev      lun.Device
	Off, Len int64  // where the PV lies on Dev: 0 and its size, or a partition
	UUID     string // with dashes, as in the text
	DevSize  int64  // as the header has it
	InUse    bool   // the header's "used by a volume group" flag
	MDAs     []MDA
	// Damage lists metadata areas that could not be read. Another area, here
	// or on another PV of the group, may stand in.
	Damage []error

	sector  []byte // with the label
	labelAt int64  // where that is on Dev
}

// MDA is one metadata area of a PV.
type MDA struct {
	Off, Size int64  // on PV.Dev; Size includes the 512 bytes of the header
	Ignored   bool   // LVM keeps the area and doesn't use it
	Text      []byte // the committed text without its trailing NUL; nil if none
	slot      rawLocation
	whole     bool // the header's own checksum holds
}

const (
	labelScan = 4 // sectors in which a label may stand
	maxList   = 64
	uuidLen   = 32
)

// checksum is LVM's CRC: the reflected IEEE polynomial from another start, and
// not inverted at the end.
func checksum(b []byte) uint32 {
	return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b)
}

// ReadPV looks for a physical volume in the n bytes at off of dev.
// lun.ErrNotFormat means that no label is there. Offsets in errors count from
// the start of dev.
func ReadPV(dev lun.Device, off, n int64) (*PV, error) {
	if n < labelScan*sectorSize {
		return nil, lun.ErrNotFormat
	}
	b := make([]byte, labelScan*sectorSize)
	if _, err := dev.ReadAt(b, off); err != nil {
		return nil, fmt.Errorf("look for an LVM2 label: %w", err)
	}
	for s := range labelScan {
		l := b[s*sectorSize:][:sectorSize]
		if string(l[:8]) != "LABELONE" {
			continue
		}
		p := &PV{Dev: dev, Off: off, Len: n}
		if err := p.label(l, s); err != nil {
			return nil, err
		}
		left := MaxText // for all areas of the PV together: a stranger may list many
		for i := range p.MDAs {
			if err := p.MDAs[i].read(p, &left); err != nil {
				p.Damage = append(p.Damage, err)
			}
		}
		return p, nil
	}
	return nil, lun.ErrNotFormat
}

func (p *PV) label(l []byte, sector int) error {
	le := binary.LittleEndian
	at := p.Off + int64(sector)*sectorSize
	fail := func(off int, field string, v any, why string) error {
		return &lun.FormatError{Format: format, Offset: at + int64(off), Field: field, Value: v, Reason: why}
	}
	if v := le.Uint64(l[8:]); v != uint64(sector) {
		return fail(8, "label sector", v, fmt.Sprintf("the label stands in sector %d", sector))
	}
	if want, got := le.Uint32(l[16:]), checksum(l[20:]); want != got {
		return fail(16, "label CRC", fmt.Sprintf("%#08x", want), fmt.Sprintf("the label sums to %#08x: it is damaged", got))
	}
	if string(l[24:32]) != "LVM2 001" {
		return fail(24, "label type", string(l[24:32]), `only "LVM2 001" is read`)
	}
	h := int(le.Uint32(l[20:]))
	if h < 32 || h > sectorSize-uuidLen-8 {
		return fail(20, "PV header offset", h, "lies outside the label's sector")
	}
	raw := string(l[h : h+uuidLen])
	if strings.IndexFunc(raw, notID) >= 0 {
		return fail(h, "PV UUID", raw, "must be 32 letters and digits")
	}
	p.UUID = dashed(raw)
	p.sector, p.labelAt = slices.Clone(l), at
	p.DevSize = int64(le.Uint64(l[h+32:]))
	if p.DevSize < 0 || p.DevSize > p.Len {
		return fail(h+32, "device size", uint64(p.DevSize), fmt.Sprintf("the physical volume has only %d bytes here: the disk was cut short", p.Len))
	}
	pos := h + 40
	_, pos, err := areaList(l, pos, at, "data area")
	if err != nil {
		return err
	}
	mdas, pos, err := areaList(l, pos, at, "metadata area")
	if err != nil {
		return err
	}
	for _, m := range mdas {
		if m[0] < sectorSize || m[1] < 2*sectorSize || lun.CheckRange(m[0], m[1], p.Len) != nil {
			return fail(h, "metadata area", fmt.Sprintf("%d bytes at %d", m[1], m[0]), fmt.Sprintf("lies outside the physical volume of %d bytes", p.Len))
		}
		p.MDAs = append(p.MDAs, MDA{Off: p.Off + m[0], Size: m[1]})
	}
	if pos+8 <= len(l) && le.Uint32(l[pos:]) >= 2 {
		p.InUse = le.Uint32(l[pos+4:])&1 != 0
	}
	return nil
}

// areaList reads {offset, size} pairs up to the one with offset 0.
func areaList(l []byte, pos int, at int64, field string) (list [][2]int64, next int, err error) {
	for {
		if pos+16 > len(l) || len(list) > maxList {
			return nil, 0, &lun.FormatError{Format: format, Offset: at + int64(pos), Field: field, Reason: "the list has no end within the label's sector"}
		}
		off, size := int64(binary.LittleEndian.Uint64(l[pos:])), int64(binary.LittleEndian.Uint64(l[pos+8:]))
		pos += 16
		if off == 0 {
			return list, pos, nil
		}
		if off < 0 || size < 0 {
			return nil, 0, &lun.FormatError{Format: format, Offset: at + int64(pos) - 16, Field: field, Value: uint64(off), Reason: "is larger than any disk"}
		}
		list = append(list, [2]int64{off, size})
	}
}

// notID reports what can't be in an LVM UUID. LVM makes them of letters and
// digits and accepts two characters more.
func notID(r rune) bool {
	return r != '!' && r != '#' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

// dashed puts a UUID of 32 characters into LVM's printed form, 6-4-4-4-4-4-6.
func dashed(s string) string {
	return s[:6] + "-" + s[6:10] + "-" + s[10:14] + "-" + s[14:18] + "-" + s[18:22] + "-" + s[22:26] + "-" + s[26:]
}
