package xfs

import (
	"fmt"
)

// Of struct xfs_buf_log_format.
const (
	bufferInodes = 0x1 // an inode cluster: only the lists of inodes without a name
	bufferCancel = 0x2 // given up: what was logged of it before is void
	bufferQuotas = 0x4 | 0x8 | 0x10

	bufferChunk = 128
	maxBuffer   = 128 // basic blocks: 64 KiB
)

// buffer is a log item of blocks of metadata.
type buffer struct {
	flags uint16
	block int64 // in basic blocks
	n     int64
	bits  []uint32 // chunks that follow, a bit each
}

func (b *buffer) place() [2]int64 { return [2]int64{b.block, b.n} }

func parseBuffer(i *item) (*buffer, error) {
	h := i.regions[0]
	if len(h) < 20 {
		return nil, fmt.Errorf("a buffer's item has %d bytes", len(h))
	}
	b := &buffer{flags: le.Uint16(h[4:]), n: int64(le.Uint16(h[6:])), block: int64(le.Uint64(h[8:]))}
	words := int64(le.Uint32(h[16:]))
	if b.n == 0 || b.n > maxBuffer && b.flags&bufferInodes == 0 {
		return nil, fmt.Errorf("blf_len is %d", b.n)
	}
	if b.flags&bufferCancel != 0 {
		return b, nil
	}
	if words*4 > int64(len(h)-20) {
		return nil, fmt.Errorf("blf_map_size is %d in %d bytes", words, len(h))
	}
	for k := range words {
		b.bits = append(b.bits, le.Uint32(h[20+4*k:]))
	}
	return b, nil
}

// buffer replays a buffer's item, or with cancel counts one that is given up.
func (r *replay) buffer(t *transaction, i *item, cancel bool) error {
	b, err := parseBuffer(i)
	if err != nil {
		return err
	}
	if b.flags&bufferCancel != 0 {
		if cancel {
			if r.cancelled[b.place()]--; r.cancelled[b.place()] <= 0 {
				delete(r.cancelled, b.place())
			}
		}
		return nil
	}
	if cancel || r.cancelled[b.place()] > 0 || b.flags&(bufferInodes|bufferQuotas) != 0 {
		return nil
	}
	at, err := r.at(b.block, b.n)
	if err != nil {
		return err
	}
	if newer, err := r.newer(at, b.n*logBlock, t.lsn); newer || err != nil {
		return err
	}
	chunk := int64(0)
	end := int64(len(b.bits)) * 32
	for _, region := range i.regions[1:] {
		for chunk < end && b.bits[chunk/32]>>(chunk%32)&1 == 0 {
			chunk++
		}
		if len(region)%bufferChunk != 0 || chunk*bufferChunk+int64(len(region)) > b.n*logBlock {
			return fmt.Errorf("a region of a buffer has %d bytes from %d of %d on", len(region), chunk*bufferChunk, b.n*logBlock)
		}
		if err := r.v.patch(region, at+chunk*bufferChunk); err != nil {
			return err
		}
		chunk += int64(len(region)) / bufferChunk
	}
	return nil
}

// stamps are where blocks say which record they were last written
// after, by their magic: xlog_recover_get_buf_lsn(). Others are replayed whatever
// is there.
var stamps = []struct {
	magicAt   int
	magic     []uint32
	lsn, uuid int
}{
	{0, []uint32{0x41423342, 0x41423343, 0x49414233, 0x46494233, 0x524d4233, 0x52334643}, 24, 32}, // short trees
	{0, []uint32{0x424d4133}, 32, 40},                         // maps of extents
	{0, []uint32{linkMagic}, 48, 16},                          // targets of symbolic links
	{0, []uint32{0x58444233, 0x58444433, 0x58444633}, 16, 24}, // directories
	{0, []uint32{superMagic}, 240, 32},
	{8, []uint32{0x3df1, 0x3dff, 0x3bee, 0x3ebe}, 24, 32}, // nodes and leaves
}

// newer reports whether what lies at byte at was written after a record.
func (r *replay) newer(at, n int64, than lsn) (bool, error) {
	var b [256]byte
	if _, err := r.v.ReadAt(b[:min(n, int64(len(b)))], at); err != nil {
		return false, fmt.Errorf("xfs log: %w", err)
	}
	for _, s := range stamps {
		magic := be.Uint32(b[s.magicAt:])
		if s.magicAt != 0 {
			magic >>= 16
		}
		for _, m := range s.magic {
			if magic != m {
				continue
			}
			stamp := lsn(be.Uint64(b[s.lsn:]))
			uuid := r.f.s.metaUUID
			if m == superMagic {
				uuid = [16]byte(b[s.uuid:]) // it is its own
			}
			return [16]byte(b[s.uuid:]) == uuid && stamp != 0 && stamp != ^lsn(0) && stamp >= than, nil
		}
	}
	return false, nil
}

// inodesCreated makes inodes that are not in use: struct xfs_icreate_log.
func (r *replay) inodesCreated(i *item) error {
	h := i.regions[0]
	if len(h) < 28 {
		return fmt.Errorf("an item of new inodes has %d bytes", len(h))
	}
	s := r.f.s
	group, block, count, size, length := uint64(be.Uint32(h[4:])), uint64(be.Uint32(h[8:])), int64(be.Uint32(h[12:])), int64(be.Uint32(h[16:])), uint64(be.Uint32(h[20:]))
	at, ok := s.byteOf(group<<s.agBlockLog|block, length)
	switch {
	case group >= s.agCount || block >= s.agBlocks || !ok:
		return fmt.Errorf("new inodes at block %d of group %d are not within the file system", block, group)
	case size != s.inodeSize || length == 0 || int64(length)*s.blockSize != count*size || length > 64:
		return fmt.Errorf("%d new inodes of %d bytes in %d blocks", count, size, length)
	}
	from, to := at/logBlock, (at+count*size)/logBlock
	for place := range r.cancelled {
		if place[0] < to && place[0]+place[1] > from {
			return nil // they were given up since
		}
	}
	b := make([]byte, size)
	be.PutUint16(b, inodeMagic)
	b[4] = 3
	copy(b[92:], h[24:28]) // di_gen
	be.PutUint32(b[96:], ^uint32(0))
	copy(b[160:], s.metaUUID[:])
	first := (group<<s.agBlockLog | block) << s.inodeLog
	for k := range count {
		be.PutUint64(b[152:], first+uint64(k))
		if err := r.v.patch(b, at+k*size); err != nil {
			return err
		}
	}
	return nil
}
