package vss_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
)

var le = binary.LittleEndian

const signature = "\x6b\x87\x08\x38\x76\xc1\x48\x4e\xb7\xae\x04\x04\x6e\x6c\xc7\x52"

// built is a volume with shadow copies that never was Windows': random content,
// block lists with all that can be in them, structures spread over the volume.
type built struct {
	b       []byte
	rnd     *rand.Rand
	version uint32
	free    []int // blocks that nothing lies in yet
	catalog []int // blocks
	stores  []builtStore
}

type builtStore struct {
	header, list, bitmap int // first blocks
}

// build makes one of n blocks, and some bytes, with copies shadow copies.
func build(rnd *rand.Rand, version uint32, n, copies int) *built {
	v := &built{b: make([]byte, n*16384+512*rnd.IntN(32)), rnd: rnd, version: version}
	for i := 0; i+8 <= len(v.b); i += 8 {
		le.PutUint64(v.b[i:], rnd.Uint64())
	}
	v.free = rnd.Perm(n)
	v.free = slices.DeleteFunc(v.free, func(b int) bool { return b == 0 })
	h := v.b[0x1E00:0x2000]
	clear(h)
	copy(h, signature)
	le.PutUint32(h[16:], version)
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], 0x1E00)
	catalog := make([]byte, 0, 32512)
	for i := range copies {
		catalog = append(catalog, v.store(i, n)...)
	}
	// Entries are in no order, with others between them.
	var entries [][]byte
	for len(catalog) > 0 {
		entries, catalog = append(entries, catalog[:128]), catalog[128:]
	}
	for range rnd.IntN(4) {
		e := make([]byte, 128)
		e[0] = 1
		entries = append(entries, e)
	}
	rnd.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	// libvshadow wants a copy's two in a row; TestCatalogOrder has them apart.
	slices.SortStableFunc(entries, func(a, b []byte) int { return bytes.Compare(a[16:32], b[16:32]) })
	slices.SortStableFunc(entries, func(a, b []byte) int {
		if bytes.Equal(a[16:32], b[16:32]) {
			return int(a[0]) - int(b[0])
		}
		return 0
	})
	half := len(entries)
	v.catalog = v.chain(2, 0, [][]byte{slices.Concat(entries[:half]...), slices.Concat(entries[half:]...)})
	le.PutUint64(h[48:], uint64(v.catalog[0])*16384)
	return v
}

func (v *built) take() int {
	b := v.free[0]
	v.free = v.free[1:]
	return b
}

// chain writes blocks of a type, and returns where.
func (v *built) chain(kind uint32, size uint64, contents [][]byte) []int {
	var at []int
	for range contents {
		at = append(at, v.take())
	}
	for i, c := range contents {
		b := v.b[at[i]*16384:][:16384]
		clear(b)
		copy(b, signature)
		le.PutUint32(b[16:], 1) // which libvshadow asks for, whatever the volume header has
		le.PutUint32(b[20:], kind)
		le.PutUint64(b[24:], uint64(i)*16384)
		le.PutUint64(b[32:], uint64(at[i])*16384)
		if i+1 < len(at) {
			le.PutUint64(b[40:], uint64(at[i+1])*16384)
		}
		le.PutUint64(b[48:], size)
		copy(b[128:], c)
	}
	return at
}

// store makes a store, and its two entries of the catalog.
func (v *built) store(i, n int) []byte {
	rnd := v.rnd
	var s builtStore
	id := make([]byte, 128)
	for k := range 64 {
		id[k] = byte(rnd.Uint32())
	}
	le.PutUint32(id[56:], 0x420009)
	le.PutUint16(id[64:], 12)
	for k, c := range "server" {
		id[66+2*k] = byte(c)
	}
	s.header = v.chain(4, uint64(n)*16384, [][]byte{id})[0]

	var lists [][]byte
	few := 4 + rnd.IntN(40) // of the originals, so that they are there more than once
	for range 1 + rnd.IntN(3) {
		var list []byte
		for range rnd.IntN(30) {
			list = append(list, v.descriptor(n, few)...)
		}
		lists = append(lists, list)
	}
	s.list = v.chain(3, 0, lists)[0]

	bits := func() int {
		b := make([]byte, (n+8)/8)
		for k := range b {
			b[k] = byte(rnd.Uint32())
		}
		return v.chain(6, 0, [][]byte{b})[0]
	}
	s.bitmap = bits()
	v.stores = append(v.stores, s)

	e := make([]byte, 256)
	store := make([]byte, 16)
	for k := range store {
		store[k] = byte(rnd.Uint32())
	}
	le.PutUint64(e, 2)
	le.PutUint64(e[8:], uint64(n)*16384)
	copy(e[16:], store)
	le.PutUint64(e[32:], uint64(i+1))
	le.PutUint64(e[40:], 0x440)
	le.PutUint64(e[48:], 130305261097363787+uint64(i)*600000000)
	p := e[128:]
	le.PutUint64(p, 3)
	le.PutUint64(p[8:], uint64(s.list)*16384)
	copy(p[16:], store)
	le.PutUint64(p[32:], uint64(s.header)*16384)
	le.PutUint64(p[40:], uint64(v.chain(5, 0, [][]byte{nil})[0])*16384)
	le.PutUint64(p[48:], uint64(s.bitmap)*16384)
	if rnd.IntN(2) == 0 {
		le.PutUint64(p[72:], uint64(bits())*16384)
	}
	return e
}

func (v *built) descriptor(n, few int) []byte {
	rnd := v.rnd
	d := make([]byte, 32)
	if rnd.IntN(10) == 0 {
		return d
	}
	block := func() uint64 { // most of them where others are, too
		if rnd.IntN(3) > 0 {
			return uint64(1+rnd.IntN(few)) * 16384
		}
		return uint64(1+rnd.IntN(n-1)) * 16384
	}
	original, relative := block(), uint64(rnd.IntN(n))*16384
	var flags uint32
	switch k := rnd.IntN(20); {
	case k < 5:
		flags |= 2
		le.PutUint32(d[28:], rnd.Uint32()&rnd.Uint32())
	case k < 10:
		flags |= 1
		relative = block()
	case k < 12:
		flags |= 4
	}
	if rnd.IntN(2) == 0 {
		flags |= 0x88
	}
	le.PutUint64(d, original)
	le.PutUint64(d[8:], relative)
	if flags&1 == 0 { // a forwarder has none
		le.PutUint64(d[16:], uint64(1+rnd.IntN(n-1))*16384)
	}
	le.PutUint32(d[24:], flags)
	return d
}
