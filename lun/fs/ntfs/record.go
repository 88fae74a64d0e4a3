package ntfs

import (
	"fmt"

	"github.com/cleave-san/cleave/lun/fs"
)

// Types of attributes.
const (
	typeStandard = 0x10
	typeList     = 0x20
	typeName     = 0x30
	typeLabel    = 0x60
	typeVolume   = 0x70
	typeData     = 0x80
	typeRoot     = 0x90
	typeIndex    = 0xA0
	typeBitmap   = 0xB0
	typeReparse  = 0xC0
	typeEA       = 0xE0
	typeEnd      = 0xFFFFFFFF
)

// Flags of a record.
const (
	recordInUse = 0x1
	recordDir   = 0x2
)

// Flags of an attribute.
const (
	attrCompressed = 0x00FF
	attrEncrypted  = 0x4000
)

// numberMask is the number in a reference to a record; the rest is a sequence number.
const numberMask = 1<<48 - 1

// record is one of the MFT, with its fixups applied.
type record struct {
	number uint64
	at     int64 // byte on the device, -1 if it is not known
	b      []byte
}

// fixup puts the last two bytes of each 512 back and wants them to be of one write.
func fixup(b []byte, at int64, magic string) error {
	if string(b[:4]) != magic {
		return damaged(at, "Signature", fmt.Sprintf("%q", b[:4]), fmt.Sprintf("want %q", magic))
	}
	ofs, count := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if count != len(b)/fixupSize+1 || ofs < 8 || ofs+2*count > fixupSize-2 {
		return damaged(at+4, "UpdateSequenceArray", count, "is not where it should be")
	}
	for i := 1; i < count; i++ {
		end := b[i*fixupSize-2 : i*fixupSize]
		if le.Uint16(end) != le.Uint16(b[ofs:]) {
			return damaged(at+int64(i*fixupSize-2), "UpdateSequenceNumber", le.Uint16(end), "a sector is of another write")
		}
		copy(end, b[ofs+2*i:])
	}
	return nil
}

// record reads one of the MFT, whatever it is of, if it is in use.
func (f *FS) record(n uint64) (*record, error) {
	at := int64(n) * f.b.record
	if n > numberMask>>8 || at > f.mft.a.init-f.b.record {
		return nil, fmt.Errorf("ntfs record %d: %w", n, fs.ErrNotExist)
	}
	r := &record{n, -1, make([]byte, f.b.record)}
	if where, same, kind, err := f.mft.find(at, f.b.record); err != nil {
		return nil, err
	} else if kind == fs.Data && same == f.b.record {
		r.at = where
	}
	if _, err := f.mft.readAt(f.meta, r.b, at); err != nil {
		return nil, fmt.Errorf("ntfs record %d: %w", n, err)
	}
	if string(r.b[:4]) == "\x00\x00\x00\x00" {
		return nil, fmt.Errorf("ntfs record %d: %w", n, fs.ErrNotExist) // never used
	}
	return r, r.check()
}

func (r *record) check() error {
	if err := fixup(r.b, r.at, "FILE"); err != nil {
		return err
	}
	if le.Uint16(r.b[22:])&recordInUse == 0 {
		return fmt.Errorf("ntfs record %d: %w", r.number, fs.ErrNotExist)
	}
	return nil
}

// base is the number of the file that a record belongs to. A reference to the MFT's
// own has a sequence number.
func (r *record) base() uint64 {
	if of := le.Uint64(r.b[32:]); of != 0 {
		return of & numberMask
	}
	return r.number
}

// damaged is one of a record.
func (r *record) damaged(off int, field string, value any, reason string) error {
	at := int64(-1)
	if r.at >= 0 {
		at = r.at + int64(off)
	}
	return damaged(at, field, value, fmt.Sprintf("record %d: %s", r.number, reason))
}

// attributes calls fn for each attribute of a record: its bytes and where they are in it.
func (r *record) attributes(fn func(b []byte, off int) error) error {
	off := int(le.Uint16(r.b[20:]))
	for {
		if off < 42 || off%4 != 0 || off > len(r.b)-4 {
			return r.damaged(20, "AttributeOffset", off, "an attribute is outside of the record")
		}
		if le.Uint32(r.b[off:]) == typeEnd {
			return nil
		}
		if off > len(r.b)-24 {
			return r.damaged(off, "RecordLength", off, "an attribute is outside of the record")
		}
		n := le.Uint32(r.b[off+4:])
		if n < 24 || n%4 != 0 || n > uint32(len(r.b)-off) {
			return r.damaged(off+4, "RecordLength", n, "an attribute is outside of the record")
		}
		if err := fn(r.b[off:off+int(n)], off); err != nil {
			return err
		}
		off += int(n)
	}
}

// part is an attribute, or an extent of one, as a record holds it.
type part struct {
	record   uint64
	instance uint16
	lowest   uint64 // VCN
	highest  uint64
	pairs    []byte // how its clusters lie; nil if the record was not read yet
}

// attr is an attribute of a file with all its extents.
type attr struct {
	kind  uint32
	name  string
	flags uint16
	value []byte // if it is resident; else nil
	where *record
	off   int // in where

	unit                  uint8 // clusters that are compressed together, as a power of two
	size, init, allocated int64
	parts                 []part
}

func (a *attr) resident() bool { return a.parts == nil }

// parseAttr reads an attribute or an extent of one.
func (r *record) parseAttr(b []byte, off int) (*attr, *part, error) {
	a := &attr{kind: le.Uint32(b), flags: le.Uint16(b[12:]), where: r, off: off}
	nameAt, nameLen := int(le.Uint16(b[10:])), int(b[9])
	if nameLen > 0 {
		if nameAt+2*nameLen > len(b) {
			return nil, nil, r.damaged(off+10, "NameOffset", nameAt, "an attribute's name is outside of it")
		}
		a.name = name16(b[nameAt : nameAt+2*nameLen])
	}
	if b[8] == 0 {
		n, at := le.Uint32(b[16:]), uint32(le.Uint16(b[20:]))
		if at > uint32(len(b)) || n > uint32(len(b))-at {
			return nil, nil, r.damaged(off+16, "ValueLength", n, "an attribute's value is outside of it")
		}
		a.value = b[at : at+n : at+n]
		a.size, a.init, a.allocated = int64(n), int64(n), 0
		return a, nil, nil
	}
	if len(b) < 64 {
		return nil, nil, r.damaged(off+4, "RecordLength", len(b), "is too little for an attribute with clusters")
	}
	p := &part{record: r.number, instance: le.Uint16(b[14:]), lowest: le.Uint64(b[16:]), highest: le.Uint64(b[24:])}
	pairs := int(le.Uint16(b[32:]))
	if pairs < 64 || pairs > len(b) {
		return nil, nil, r.damaged(off+32, "MappingPairsOffset", pairs, "is outside of the attribute")
	}
	if p.pairs = b[pairs:]; p.lowest == 0 {
		if err := a.sizes(b, off); err != nil {
			return nil, nil, err
		}
	}
	return a, p, nil
}

// sizes reads the sizes of an attribute with clusters, which its first extent has.
func (a *attr) sizes(b []byte, off int) error {
	a.unit = b[34]
	a.allocated, a.size, a.init = int64(le.Uint64(b[40:])), int64(le.Uint64(b[48:])), int64(le.Uint64(b[56:]))
	if a.size < 0 || a.init < 0 || a.init > a.size || a.allocated < 0 || a.size > maxFile {
		return a.where.damaged(off+48, "FileSize", a.size, "is no size of a file")
	}
	if a.unit != 0 {
		if a.unit > 4 || len(b) < 72 {
			return a.where.damaged(off+34, "CompressionUnit", a.unit, "is none that is read here")
		}
		if a.allocated = int64(le.Uint64(b[64:])); a.allocated < 0 {
			return a.where.damaged(off+64, "TotalAllocated", a.allocated, "is no size of a file")
		}
	}
	return nil
}

// maxFile bounds a file's size, in bytes: what Windows can have, and more.
const maxFile = 1 << 60

// name16 is a name of UTF-16 units as they are on the disk.
func name16(b []byte) string { return fs.FromUTF16(units(b)) }

func units(b []byte) []uint16 {
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = le.Uint16(b[2*i:])
	}
	return u
}
