// Package dmsnap reads the persistent exception store of the kernel's
// dm-snapshot target (drivers/md/dm-snap-persistent.c): what a thick LVM
// snapshot keeps in its copy-on-write volume.
//
// Open reads the header and the whole exception table; Store.Lookup then says
// where the store keeps a chunk of the origin, and Store.Device puts store and
// origin together into the snapshot's content. Nothing is ever written.
//
// The table is kept as one sorted array, 16 bytes an exception, with an index of
// half a byte for each, so a million exceptions take 17 MB and a lookup three or
// four steps.
//
// The kernel writes preserved data first, then the exception (with a flush),
// and only then lets the origin's write go: at any instant a split may have
// been taken, the table is complete for what the origin holds. That is true
// only if store and origin were split at the same instant.
package dmsnap

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// The header, in the first 16 bytes of chunk 0. Little-endian.
//
//	off size field
//	  0   4  magic "SnAp"
//	  4   4  valid: 0 once the store overflowed or failed
//	  8   4  version 1
//	 12   4  chunk_size in sectors of 512 bytes
const (
	format  = "dm-snapshot"
	magic   = 0x70416E53
	version = 1

	headerSize = 16
	entrySize  = 16
	maxChunk   = 1 << 20 // bytes; LVM allows 4 KiB to 512 KiB
	// MaxExceptions bounds the table: one GiB of memory, a terabyte of
	// preserved data at the usual chunk size.
	MaxExceptions = 1 << 26
)

// ErrInvalid says that the snapshot was lost inside the guest: its store
// overflowed or failed, and the kernel dropped it.
var ErrInvalid = errors.New("the snapshot overflowed or failed inside the guest, and its content is lost: take a new one with a larger copy-on-write store")

// invalidError is ErrInvalid with the place where the store says so.
type invalidError struct{ lun.FormatError }

func (e *invalidError) Is(target error) bool { return target == ErrInvalid }
func (e *invalidError) Unwrap() error        { return &e.FormatError }

// Header is what a store says about itself.
type Header struct {
	Fresh bool // never activated: the snapshot equals the origin
	Valid bool
	Chunk int64 // bytes; 0 when Fresh
}

// ReadHeader reads the header of a store. It is no error that the store is
// invalid. lun.ErrNotFormat: this is no exception store.
func ReadHeader(cow lun.Device) (Header, error) {
	b := make([]byte, headerSize)
	if cow.Size() < headerSize {
		return Header{}, lun.ErrNotFormat
	}
	if _, err := cow.ReadAt(b, 0); err != nil {
		return Header{}, fmt.Errorf("read the snapshot's header: %w", err)
	}
	le := binary.LittleEndian
	fail := func(off int64, field string, v any, why string) (Header, error) {
		return Header{}, &lun.FormatError{Format: format, Offset: off, Field: field, Value: v, Reason: why}
	}
	switch le.Uint32(b) {
	case 0:
		return Header{Fresh: true, Valid: true}, nil
	case magic:
	default:
		return Header{}, lun.ErrNotFormat
	}
	if v := le.Uint32(b[8:]); v != version {
		return fail(8, "version", v, "only version 1 is read")
	}
	sectors := le.Uint32(b[12:])
	h := Header{Valid: le.Uint32(b[4:]) != 0, Chunk: int64(sectors) * 512}
	if sectors == 0 || sectors&(sectors-1) != 0 || h.Chunk > maxChunk {
		return fail(12, "chunk_size", sectors, fmt.Sprintf("must be a power of two, up to %d sectors", maxChunk/512))
	}
	if h.Chunk > cow.Size() {
		return fail(12, "chunk_size", sectors, fmt.Sprintf("is larger than the store of %d bytes", cow.Size()))
	}
	return h, nil
}

// Store is an opened exception store. It never changes and may be used by
// several goroutines.
type Store struct {
	Header
	Areas  int64 // metadata areas in use
	cow    lun.Device
	origin int64       // bytes
	table  []exception // by old chunk
	index  index
}

// Open reads the store in cow of a snapshot of an origin of originSize bytes.
// An invalid store is ErrInvalid. A store that is not one, by magic, is a
// *lun.FormatError here, since the caller knows that it must be.
func Open(cow lun.Device, originSize int64) (*Store, error) {
	h, err := ReadHeader(cow)
	if errors.Is(err, lun.ErrNotFormat) {
		return nil, &lun.FormatError{Format: format, Offset: 0, Field: "magic", Reason: "no exception store is here, though the volume group says so"}
	}
	if err != nil {
		return nil, err
	}
	if !h.Valid {
		return nil, &invalidError{lun.FormatError{Format: format, Offset: 4, Field: "valid", Value: 0, Reason: ErrInvalid.Error()}}
	}
	s := &Store{Header: h, cow: cow, origin: originSize}
	if h.Fresh {
		return s, nil
	}
	return s, s.readTable()
}

// Exceptions is how many chunks the store keeps.
func (s *Store) Exceptions() int { return len(s.table) }

// Preserved is how many bytes the store keeps.
func (s *Store) Preserved() int64 { return int64(len(s.table)) * s.Chunk }

// Used is how many bytes of the store are taken, as the kernel's status line
// counts them: header, metadata areas and chunks.
func (s *Store) Used() int64 {
	if s.Fresh {
		return 0
	}
	return (1 + s.Areas + int64(len(s.table))) * s.Chunk
}

// COW is the device that the store was opened on.
func (s *Store) COW() lun.Device { return s.cow }
