package dmthin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/cleave-san/cleave/lun"
)

// The superblock, block 0 of the metadata. Little-endian.
//
//	off size field
//	  0   4  csum
//	  4   4  flags, bit 0 needs_check
//	  8   8  blocknr, 0
//	 16  16  uuid, unused by the kernel
//	 32   8  magic
//	 40   4  version, 1 or 2
//	 44   4  time, the number of snapshots taken
//	 48   8  trans_id, user space's: LVM's transaction_id
//	 56   8  held_root, of a metadata snapshot, 0 if there is none
//	 64 128  data_space_map_root {nr_blocks, nr_allocated, ...}
//	192 128  metadata_space_map_root
//	320   8  data_mapping_root
//	328   8  device_details_root
//	336   4  data_block_size in sectors
//	340   4  metadata_block_size in sectors, 8
//	344   8  metadata_nr_blocks
//	352   4  compat_flags
//	356   4  compat_ro_flags
//	360   4  incompat_flags
const (
	superMagic = 27022010
	superXOR   = 160774
	nodeXOR    = 121107

	flagNeedsCheck = 1

	minDataBlock = 64 << 10 // bytes, and every size is a multiple of it
	maxDataBlock = 1 << 30
	// maxMetadata is how many metadata blocks the kernel uses at most: not
	// quite 16 GiB.
	maxMetadata = 255 * (1 << 14)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the kernel's dm_bm_checksum: CRC-32C, not inverted at the end,
// and marked with the kind of the block.
func checksum(b []byte, xor uint32) uint32 { return ^crc32.Checksum(b, castagnoli) ^ xor }

// ErrNeedsCheck says that the kernel found damage in the pool and will not write
// to it before it is repaired.
var ErrNeedsCheck = errors.New("the kernel marked the pool's metadata as needing a check: repair it in the guest (lvconvert --repair) before the split")

// needsCheckError is ErrNeedsCheck with the place where the superblock says so.
type needsCheckError struct{ lun.FormatError }

func (e *needsCheckError) Is(target error) bool { return target == ErrNeedsCheck }
func (e *needsCheckError) Unwrap() error        { return &e.FormatError }

// Usage counts the blocks of a device.
type Usage struct{ Total, Used uint64 }

// Pool is an opened thin pool. Its fields never change; its methods may be
// called by several goroutines.
type Pool struct {
	BlockSize   int64  // bytes of a data block
	Version     uint32 // of the metadata, 1 or 2
	Time        uint32 // how many snapshots were ever taken
	Transaction uint64 // as user space last set it; LVM's transaction_id
	// Data and Metadata count data blocks of BlockSize and metadata blocks of
	// 4096 bytes, as dmsetup status does.
	Data, Metadata Usage

	meta, data       lun.Device
	mappings, detail uint64 // roots
	cache            *Cache
}

// Open reads the superblock of the pool whose metadata and data devices these
// are; they must stay open, and must not change, as long as the pool is used.
// The pool's nodes share the cache with those of others; nil makes a new one.
// A pool that needs a check is ErrNeedsCheck. Metadata that is none, by magic,
// is a *lun.FormatError here, since the caller knows that it must be.
func Open(meta, data lun.Device, nodes *Cache) (*Pool, error) {
	if nodes == nil {
		nodes = &Cache{}
	}
	b := make([]byte, blockSize)
	if meta.Size() < blockSize {
		return nil, &lun.FormatError{Format: format, Offset: 0, Field: "metadata device", Value: meta.Size(), Reason: "is too small for a superblock"}
	}
	if _, err := meta.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read the thin pool's superblock: %w", err)
	}
	p := &Pool{meta: meta, data: data, cache: nodes}
	if err := p.super(b); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Pool) super(b []byte) error {
	le := binary.LittleEndian
	fail := func(off int64, field string, v any, why string) error {
		return &lun.FormatError{Format: format, Offset: off, Field: field, Value: v, Reason: why}
	}
	if v := le.Uint64(b[32:]); v != superMagic {
		return fail(32, "magic", v, "no thin pool's metadata is here, though the volume group says so")
	}
	if want, got := le.Uint32(b), checksum(b[4:], superXOR); want != got {
		return fail(0, "csum", fmt.Sprintf("%#08x", want), fmt.Sprintf("the superblock sums to %#08x: it is damaged", got))
	}
	if v := le.Uint64(b[8:]); v != 0 {
		return fail(8, "blocknr", v, "the superblock is block 0")
	}
	p.Version = le.Uint32(b[40:])
	if p.Version < 1 || p.Version > 2 {
		return fail(40, "version", p.Version, "only versions 1 and 2 are read")
	}
	if v := le.Uint32(b[360:]); v != 0 {
		return fail(360, "incompat_flags", fmt.Sprintf("%#x", v), "the pool uses a feature that is not known to this version")
	}
	if v := le.Uint32(b[4:]); v&flagNeedsCheck != 0 {
		return &needsCheckError{lun.FormatError{Format: format, Offset: 4, Field: "flags", Value: v, Reason: ErrNeedsCheck.Error()}}
	}
	if v := le.Uint32(b[340:]); v != blockSize/sectorSize {
		return fail(340, "metadata_block_size", v, "metadata blocks have 8 sectors")
	}
	sectors := le.Uint32(b[336:])
	p.BlockSize = int64(sectors) * sectorSize
	if p.BlockSize < minDataBlock || p.BlockSize > maxDataBlock || p.BlockSize%minDataBlock != 0 {
		return fail(336, "data_block_size", sectors, "must be a multiple of 128 sectors, up to 2097152")
	}
	p.Time, p.Transaction = le.Uint32(b[44:]), le.Uint64(b[48:])
	p.Data = Usage{le.Uint64(b[64:]), le.Uint64(b[72:])}
	p.Metadata = Usage{le.Uint64(b[192:]), le.Uint64(b[200:])}
	// Not metadata_nr_blocks: the kernel leaves it as it was when the metadata
	// device grows.
	if have := uint64(p.meta.Size() / blockSize); p.Metadata.Total > min(have, maxMetadata) {
		return fail(192, "metadata_space_map_root.nr_blocks", p.Metadata.Total, fmt.Sprintf("the metadata device has only %d blocks: it was cut short", have))
	}
	if have := uint64(p.data.Size() / p.BlockSize); p.Data.Total > have {
		return fail(64, "data_space_map_root.nr_blocks", p.Data.Total, fmt.Sprintf("the data device has only %d blocks: it was cut short", have))
	}
	p.mappings, p.detail = le.Uint64(b[320:]), le.Uint64(b[328:])
	for _, r := range []struct {
		off   int64
		field string
		block uint64
	}{{320, "data_mapping_root", p.mappings}, {328, "device_details_root", p.detail}} {
		if r.block == 0 || r.block >= p.Metadata.Total {
			return fail(r.off, r.field, r.block, fmt.Sprintf("the metadata has %d blocks", p.Metadata.Total))
		}
	}
	return nil
}
