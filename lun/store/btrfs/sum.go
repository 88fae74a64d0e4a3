package btrfs

import (
	"bytes"
	"crypto/sha256"
	"hash/crc32"
	"math/bits"
)

// sumType is a kind of checksum; it takes the first 32 bytes of a block, and is
// of what follows them.
type sumType uint16

const (
	sumCRC32C sumType = iota
	sumXXHash
	sumSHA256
)

func (t sumType) known() bool { return t <= sumSHA256 }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// of is the checksum of bytes, as it lies on the disk.
func (t sumType) of(p []byte) []byte {
	switch t {
	case sumCRC32C:
		return le.AppendUint32(nil, crc32.Checksum(p, castagnoli))
	case sumXXHash:
		return le.AppendUint64(nil, xxh64(p))
	}
	h := sha256.Sum256(p)
	return h[:]
}

// fits reports whether a block has the checksum that it should have.
func (t sumType) fits(b []byte) bool {
	want := t.of(b[32:])
	return bytes.Equal(b[:len(want)], want)
}

// set gives a block its checksum.
func (t sumType) set(b []byte) {
	clear(b[:32])
	copy(b, t.of(b[32:]))
}

// nameHash is what the keys of directory items are made of: CRC-32C without the
// final inversion, begun with all but the lowest bit.
func nameHash(name string) uint64 {
	return uint64(^crc32.Update(^uint32(0xFFFFFFFE), castagnoli, []byte(name)))
}

const (
	prime1 = 0x9E3779B185EBCA87
	prime2 = 0xC2B2AE3D27D4EB4F
	prime3 = 0x165667B19E3779F9
	prime4 = 0x85EBCA77C2B2AE63
	prime5 = 0x27D4EB2F165667C5
)

// xxh64 is XXH64 with seed 0, after the xxHash specification.
func xxh64(p []byte) uint64 {
	round := func(acc, lane uint64) uint64 { return bits.RotateLeft64(acc+lane*prime2, 31) * prime1 }
	n := uint64(len(p))
	var h uint64
	if len(p) >= 32 {
		var one, two uint64 = prime1, prime2
		acc := [4]uint64{one + two, two, 0, -one}
		for ; len(p) >= 32; p = p[32:] {
			for i := range acc {
				acc[i] = round(acc[i], le.Uint64(p[8*i:]))
			}
		}
		h = bits.RotateLeft64(acc[0], 1) + bits.RotateLeft64(acc[1], 7) + bits.RotateLeft64(acc[2], 12) + bits.RotateLeft64(acc[3], 18)
		for _, a := range acc {
			h = (h^round(0, a))*prime1 + prime4
		}
	} else {
		h = prime5
	}
	h += n
	for ; len(p) >= 8; p = p[8:] {
		h = bits.RotateLeft64(h^round(0, le.Uint64(p)), 27)*prime1 + prime4
	}
	if len(p) >= 4 {
		h = bits.RotateLeft64(h^uint64(le.Uint32(p))*prime1, 23)*prime2 + prime3
		p = p[4:]
	}
	for _, b := range p {
		h = bits.RotateLeft64(h^uint64(b)*prime5, 11) * prime1
	}
	h = (h ^ h>>33) * prime2
	h = (h ^ h>>29) * prime3
	return h ^ h>>32
}
