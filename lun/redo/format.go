package redo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cleave-san/cleave/lun"
)

const (
	// Sector is the size of a guard in bytes, and of what is written at one
	// moment.
	Sector = 512
	// MaxPiece bounds the data of one record, in bytes.
	MaxPiece = 1 << 20
	// MaxNote bounds what a journal says besides, in bytes.
	MaxNote = 4 << 20

	maxDevices = 1 << 10
	maxGuards  = 1 << 12

	format     = "redo journal"
	magic      = "CleaveRJ"
	version    = 1
	markMagic  = "Cleave redo mark"
	recordHead = 24
)

// ID is of one journal, by chance.
type ID [16]byte

func (id ID) String() string { return fmt.Sprintf("%x", id[:]) }

// File is where a journal lies: it grows as it is written to. An *os.File is one.
type File interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// ErrNone says that a file is empty, or holds a journal that was never sealed, so
// that nothing of it was written anywhere. Compared with errors.Is.
var ErrNone = errors.New("there is no redo journal")

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func damaged(off int64, field string, v any, why string) error {
	return &lun.FormatError{Format: format, Offset: off, Field: field, Value: v, Reason: why}
}

// state is how far a journal has come.
type state uint32

const (
	open   state = iota // being written
	sealed              // all is there; devices have at most marks
	begun               // all marks are there, and more may be
)

// header is the first sector. Little-endian.
//
//	 0   8  magic
//	 8   4  version
//	12   4  number of devices
//	16  16  ID
//	32   8  where the records end
//	40   8  number of records
//	48   4  length of the note
//	52   4  state
//	56   4  CRC-32C of the sizes of the devices, 8 bytes each, and the note, which
//	        follow the header; records begin at the next sector
//	508  4  CRC-32C of what is before
type header struct {
	devices   int
	id        ID
	end       int64
	records   int64
	note      int
	state     state
	prefixSum uint32
}

func (h *header) put() []byte {
	b := make([]byte, Sector)
	copy(b, magic)
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], uint32(h.devices))
	copy(b[16:], h.id[:])
	le.PutUint64(b[32:], uint64(h.end))
	le.PutUint64(b[40:], uint64(h.records))
	le.PutUint32(b[48:], uint32(h.note))
	le.PutUint32(b[52:], uint32(h.state))
	le.PutUint32(b[56:], h.prefixSum)
	le.PutUint32(b[508:], crc32.Checksum(b[:508], castagnoli))
	return b
}

func (h *header) prefix() int64 { return int64(h.devices)*8 + int64(h.note) }

// start is where records begin.
func (h *header) start() int64 { return Sector + (h.prefix()+Sector-1)&^(Sector-1) }

func readHeader(f File) (*header, error) {
	b := make([]byte, Sector)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the redo journal: %w", err)
	}
	if n < Sector || bytes.Equal(b, make([]byte, Sector)) {
		if _, err := f.ReadAt(make([]byte, 1), Sector); errors.Is(err, io.EOF) && len(bytes.Trim(b, "\x00")) == 0 {
			return nil, ErrNone
		}
		return nil, damaged(0, "magic", nil, "the file holds something else, which is left alone")
	}
	switch {
	case string(b[:8]) != magic:
		return nil, damaged(0, "magic", nil, "the file holds something else, which is left alone")
	case le.Uint32(b[508:]) != crc32.Checksum(b[:508], castagnoli):
		return nil, damaged(508, "checksum", nil, "the header's is wrong")
	case le.Uint32(b[8:]) != version:
		return nil, damaged(8, "version", le.Uint32(b[8:]), "is not known")
	}
	h := &header{devices: int(le.Uint32(b[12:])), id: ID(b[16:32]), end: int64(le.Uint64(b[32:])), records: int64(le.Uint64(b[40:])),
		note: int(le.Uint32(b[48:])), state: state(le.Uint32(b[52:])), prefixSum: le.Uint32(b[56:])}
	switch {
	case h.state == open:
		return nil, ErrNone
	case h.state > begun:
		return nil, damaged(52, "state", uint32(h.state), "is not known")
	case h.devices == 0 || h.devices > maxDevices:
		return nil, damaged(12, "devices", h.devices, fmt.Sprintf("not 1 to %d", maxDevices))
	case h.note > MaxNote:
		return nil, damaged(48, "note", h.note, fmt.Sprintf("is longer than %d bytes", MaxNote))
	case h.end < h.start():
		return nil, damaged(32, "end", h.end, "lies before the first record")
	}
	return h, nil
}

// record is a piece of a device. Its header, before the data:
//
//	 0  4  device
//	 4  4  length
//	 8  8  offset
//	16  4  1: a guard, else 0
//	20  4  CRC-32C of the ID, the bytes before, and the data
type record struct {
	device int
	off    int64
	data   []byte
	guard  bool
}

func (r *record) sum(id ID, head []byte) uint32 {
	s := crc32.Update(0, castagnoli, id[:])
	s = crc32.Update(s, castagnoli, head[:20])
	return crc32.Update(s, castagnoli, r.data)
}

func (r *record) head(id ID) []byte {
	b := make([]byte, recordHead)
	le.PutUint32(b, uint32(r.device))
	le.PutUint32(b[4:], uint32(len(r.data)))
	le.PutUint64(b[8:], uint64(r.off))
	if r.guard {
		b[16] = 1
	}
	le.PutUint32(b[20:], r.sum(id, b))
	return b
}

// mark is what a guard holds while its volume is half written.
func mark(id ID) []byte {
	b := make([]byte, Sector)
	copy(b, markMagic)
	copy(b[16:], id[:])
	copy(b[32:], "A recovery in place was interrupted. Only the same recovery, with its redo journal, makes this volume whole.")
	le.PutUint32(b[508:], crc32.Checksum(b[:508], castagnoli))
	return b
}

// Marked reads whether a sector of a device is a guard with a mark, and of which
// journal. What lies behind the end is not marked.
func Marked(d lun.Device, off int64) (ID, bool, error) {
	if lun.CheckRange(off, Sector, d.Size()) != nil {
		return ID{}, false, nil
	}
	b := make([]byte, Sector)
	if _, err := d.ReadAt(b, off); err != nil {
		return ID{}, false, fmt.Errorf("read the sector at byte %d: %w", off, err)
	}
	if string(b[:16]) != markMagic || le.Uint32(b[508:]) != crc32.Checksum(b[:508], castagnoli) {
		return ID{}, false, nil
	}
	return ID(b[16:32]), true, nil
}

// Check refuses a volume that is half written, as a *lun.FormatError; guard is where
// its mark would be.
func Check(d lun.Device, guard int64) error {
	id, ok, err := Marked(d, guard)
	if ok {
		err = &lun.FormatError{Format: format, Offset: guard, Field: "mark", Value: id.String(),
			Reason: "a recovery in place was interrupted here: give the same command with its redo journal, without which the volume is lost"}
	}
	return err
}
