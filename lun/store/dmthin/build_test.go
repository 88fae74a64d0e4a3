package dmthin_test

import (
	"encoding/binary"
	"hash/crc32"
	"maps"
	"slices"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
)

type memory = luntest.ReadOnly

// numbered is a data device on which every 8 bytes hold their own offset.
type numbered int64

func (d numbered) Size() int64                        { return int64(d) }
func (d numbered) Sync() error                        { return nil }
func (d numbered) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (d numbered) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), int64(d)); err != nil {
		return 0, err
	}
	var w [8]byte
	for i := range p {
		at := off + int64(i)
		binary.BigEndian.PutUint64(w[:], uint64(at&^7))
		p[i] = w[at&7]
	}
	return len(p), nil
}

const (
	block     = 4096
	dataBlock = 64 << 10
	superXOR  = 160774
	nodeXOR   = 121107
)

var le = binary.LittleEndian

// sum is the kernel's checksum, written once more for the tests.
func sum(m memory, at int, xor uint32) {
	c := crc32.Update(0, crc32.MakeTable(crc32.Castagnoli), m[at+4:at+block])
	le.PutUint32(m[at:], ^c^xor)
}

// pool is metadata in the making. It writes nodes of at most fan entries, so
// that a few mappings make a deep tree.
type pool struct {
	m    memory
	fan  int
	data uint64 // blocks
}

func (p *pool) node(leaf bool, keys []uint64, values [][]byte) uint64 {
	at := len(p.m)
	p.m = append(p.m, make([]byte, block)...)
	b := p.m[at:]
	le.PutUint32(b[4:], 1)
	if leaf {
		le.PutUint32(b[4:], 2)
	}
	size := 8
	if len(values) > 0 {
		size = len(values[0])
	}
	room := (block - 32) / (8 + size) / 3 * 3
	le.PutUint64(b[8:], uint64(at/block))
	le.PutUint32(b[16:], uint32(len(keys)))
	le.PutUint32(b[20:], uint32(room))
	le.PutUint32(b[24:], uint32(size))
	for i, k := range keys {
		le.PutUint64(b[32+8*i:], k)
		copy(b[32+8*room+size*i:], values[i])
	}
	sum(p.m, at, nodeXOR)
	return uint64(at / block)
}

func (p *pool) tree(keys []uint64, values [][]byte) uint64 {
	leaf := true
	for {
		if len(keys) <= p.fan {
			return p.node(leaf, keys, values)
		}
		var upKeys []uint64
		var upValues [][]byte
		for i := 0; i < len(keys); i += p.fan {
			j := min(i+p.fan, len(keys))
			upKeys = append(upKeys, keys[i])
			upValues = append(upValues, le.AppendUint64(nil, p.node(leaf, keys[i:j], values[i:j])))
		}
		keys, values, leaf = upKeys, upValues, false
	}
}

// build makes the metadata of a pool of data blocks with these devices: block
// of the device → block of the pool.
func build(fan int, data uint64, devices map[uint64]map[uint64]uint64) memory {
	p := &pool{m: make(memory, block), fan: fan, data: data}
	ids := slices.Sorted(maps.Keys(devices))
	var roots, details [][]byte
	for _, id := range ids {
		blocks := slices.Sorted(maps.Keys(devices[id]))
		var values [][]byte
		for i, b := range blocks {
			values = append(values, le.AppendUint64(nil, devices[id][b]<<24|uint64(i&3)))
		}
		roots = append(roots, le.AppendUint64(nil, p.tree(blocks, values)))
		d := le.AppendUint64(nil, uint64(len(blocks)))
		details = append(details, append(d, make([]byte, 16)...))
	}
	if len(ids) == 0 {
		details = [][]byte{make([]byte, 24)}
		d := p.node(true, nil, details)
		p.super(p.tree(ids, roots), d)
		return p.m
	}
	p.super(p.tree(ids, roots), p.tree(ids, details))
	return p.m
}

func (p *pool) super(mappings, details uint64) {
	b := p.m
	le.PutUint64(b[32:], 27022010)
	le.PutUint32(b[40:], 2)
	le.PutUint32(b[44:], 5)
	le.PutUint64(b[48:], 7)
	le.PutUint64(b[64:], p.data)
	le.PutUint64(b[192:], uint64(len(b)/block))
	le.PutUint64(b[320:], mappings)
	le.PutUint64(b[328:], details)
	le.PutUint32(b[336:], dataBlock/512)
	le.PutUint32(b[340:], 8)
	le.PutUint64(b[344:], uint64(len(b)/block))
	sum(b, 0, superXOR)
}
