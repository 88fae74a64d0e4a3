package dmsnap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/store/dmsnap"
	"pgregory.net/rapid"
)

// The store itself is tested against the hashes of the guest's kernel in
// lun/recovery; here are sizes and damage that no image at hand has.

type memory = luntest.ReadOnly

// build makes a store as the kernel fills it: chunks are taken one after the
// other, passing over the table's own.
func build(chunk int, old []uint64, fill func(i int, b []byte)) memory {
	per := chunk / 16
	areas := len(old)/per + 1
	m := make(memory, chunk*(1+areas+len(old)))
	le := binary.LittleEndian
	le.PutUint32(m, 0x70416E53)
	le.PutUint32(m[4:], 1)
	le.PutUint32(m[8:], 1)
	le.PutUint32(m[12:], uint32(chunk/512))
	next := uint64(2)
	for i, o := range old {
		at := chunk*(1+i/per*(per+1)) + i%per*16
		le.PutUint64(m[at:], o)
		le.PutUint64(m[at+8:], next)
		fill(i, m[int(next)*chunk:][:chunk])
		if next++; (next-1)%uint64(per+1) == 0 {
			next++
		}
	}
	return m
}

// TestSnapshotIsTheOldContent: any set of chunks, any chunk size, an origin
// that ends within a chunk, full areas and not.
func TestSnapshotIsTheOldContent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chunk := 512 << rapid.IntRange(0, 4).Draw(t, "chunk")
		size := rapid.IntRange(1, 300*chunk).Draw(t, "size")
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		before, after := make([]byte, size), make(memory, size)
		for i := range before {
			before[i] = byte(rnd.Uint32())
		}
		copy(after, before)
		var old []uint64
		chunks := (size + chunk - 1) / chunk
		for _, c := range rnd.Perm(chunks)[:rapid.IntRange(0, chunks).Draw(t, "changed")] {
			old = append(old, uint64(c))
			for i := c * chunk; i < min((c+1)*chunk, size); i++ {
				after[i] ^= 0xff
			}
		}
		cow := build(chunk, old, func(i int, b []byte) { copy(b, before[int(old[i])*chunk:]) })
		s, err := dmsnap.Open(cow, int64(size))
		if err != nil {
			t.Fatal(err)
		}
		if s.Exceptions() != len(old) {
			t.Fatalf("%d exceptions, want %d", s.Exceptions(), len(old))
		}
		d, err := s.Device(after)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, size)
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, before) {
			t.Fatalf("the snapshot is not the old content (%v)", err)
		}
		off := rapid.IntRange(0, size-1).Draw(t, "off")
		part := make([]byte, rapid.IntRange(0, size-off).Draw(t, "n"))
		if _, err := d.ReadAt(part, int64(off)); err != nil || !bytes.Equal(part, before[off:off+len(part)]) {
			t.Fatalf("read of %d at %d differs (%v)", len(part), off, err)
		}
	})
}

func TestFreshStoreIsTheOrigin(t *testing.T) {
	origin := memory(bytes.Repeat([]byte("origin!!"), 1000))
	s, err := dmsnap.Open(make(memory, 65536), origin.Size())
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Device(origin)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(origin))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, origin) {
		t.Errorf("a fresh snapshot differs from its origin (%v)", err)
	}
	if !s.Fresh || s.Used() != 0 {
		t.Errorf("fresh %v, used %d", s.Fresh, s.Used())
	}
}

func TestBadStores(t *testing.T) {
	le := binary.LittleEndian
	for _, tc := range []struct {
		name   string
		change func(m memory) memory
		field  string
		offset int64
	}{
		{"overflowed", func(m memory) memory { le.PutUint32(m[4:], 0); return m }, "valid", 4},
		{"magic", func(m memory) memory { m[0]++; return m }, "magic", 0},
		{"version", func(m memory) memory { le.PutUint32(m[8:], 2); return m }, "version", 8},
		{"no chunk size", func(m memory) memory { le.PutUint32(m[12:], 0); return m }, "chunk_size", 12},
		{"odd chunk size", func(m memory) memory { le.PutUint32(m[12:], 9); return m }, "chunk_size", 12},
		{"huge chunk size", func(m memory) memory { le.PutUint32(m[12:], 1<<31); return m }, "chunk_size", 12},
		{"chunk larger than store", func(m memory) memory { le.PutUint32(m[12:], 2048); return m }, "chunk_size", 12},
		{"old chunk beyond the origin", func(m memory) memory { le.PutUint64(m[4096:], 1<<63); return m }, "old_chunk", 4096},
		{"new chunk beyond the store", func(m memory) memory { le.PutUint64(m[4096+8:], 1<<40); return m }, "new_chunk", 4096 + 8},
		{"new chunk in the table", func(m memory) memory { le.PutUint64(m[4096+8:], 1); return m }, "new_chunk", 4096 + 8},
		{"old chunk twice", func(m memory) memory { copy(m[4096+16:4096+24], m[4096:4096+8]); return m }, "old_chunk", -1},
		{"new chunk twice", func(m memory) memory { copy(m[4096+24:4096+32], m[4096+8:4096+16]); return m }, "new_chunk", -1},
		{"empty", func(m memory) memory { return m[:8] }, "magic", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := tc.change(build(4096, []uint64{3, 1, 7}, func(int, []byte) {}))
			_, err := dmsnap.Open(m, 1<<20)
			var fe *lun.FormatError
			if !errors.As(err, &fe) || fe.Field != tc.field || fe.Offset != tc.offset || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want field %q at %d", err, tc.field, tc.offset)
			}
			if got := errors.Is(err, dmsnap.ErrInvalid); got != (tc.name == "overflowed") {
				t.Errorf("is ErrInvalid: %v", got)
			}
		})
	}
}

// TestFullStoreEndsWithItsLastArea: no room for another area is the end of the
// table, as the kernel reads it.
func TestFullStoreEndsWithItsLastArea(t *testing.T) {
	old := make([]uint64, 256)
	for i := range old {
		old[i] = uint64(i)
	}
	m := build(4096, old, func(int, []byte) {})
	s, err := dmsnap.Open(m[:4096*(2+256)], 1<<30)
	if err != nil || s.Exceptions() != 256 {
		t.Fatalf("%v, %d exceptions", err, s.Exceptions())
	}
}

// sparse is a large store without its data: only header and table exist.
type sparse struct {
	table map[int64][]byte
	size  int64
}

func (m *sparse) Size() int64                        { return m.size }
func (m *sparse) Sync() error                        { return nil }
func (m *sparse) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (m *sparse) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.size); err != nil {
		return 0, err
	}
	clear(p)
	copy(p, m.table[off])
	return len(p), nil
}

// million is a store of n exceptions in random order, 4 KiB chunks.
func million(n int) (*sparse, int64) {
	const chunk, per = 4096, 256
	le := binary.LittleEndian
	h := make([]byte, 16)
	le.PutUint32(h, 0x70416E53)
	le.PutUint32(h[4:], 1)
	le.PutUint32(h[8:], 1)
	le.PutUint32(h[12:], chunk/512)
	m := &sparse{map[int64][]byte{0: h}, int64(n+n/per+3) * chunk}
	perm := rand.New(rand.NewPCG(1, 2)).Perm(2 * n)
	next := uint64(2)
	for i := range n {
		at := int64(1+i/per*(per+1)) * chunk
		if m.table[at] == nil {
			m.table[at] = make([]byte, chunk)
		}
		le.PutUint64(m.table[at][i%per*16:], uint64(perm[i]))
		le.PutUint64(m.table[at][i%per*16+8:], next)
		if next++; (next-1)%(per+1) == 0 {
			next++
		}
	}
	return m, int64(2*n) * chunk
}

// TestMillionExceptionsFitInMemory bounds what stays in memory, not the time.
func TestMillionExceptionsFitInMemory(t *testing.T) {
	cow, origin := million(1_000_000)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s, err := dmsnap.Open(cow, origin)
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > 32<<20 {
		t.Errorf("a table of %d exceptions holds %d MiB", s.Exceptions(), got>>20)
	}
	runtime.KeepAlive(s)
}

// BenchmarkOpenMillion is opening a table of 1,000,000 exceptions.
func BenchmarkOpenMillion(b *testing.B) {
	cow, origin := million(1_000_000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := dmsnap.Open(cow, origin); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzOpen: what opens reads to its end without leaving store or origin.
func FuzzOpen(f *testing.F) {
	f.Add([]byte(build(512, []uint64{3, 1, 7}, func(int, []byte) {})), uint16(9000))
	f.Add([]byte(build(4096, []uint64{0}, func(int, []byte) {})), uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		origin := make(memory, size)
		s, err := dmsnap.Open(memory(b), origin.Size())
		if err != nil {
			var fe *lun.FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("error %v is no FormatError", err)
			}
			return
		}
		d, err := s.Device(origin)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.ReadAt(make([]byte, size), 0); err != nil {
			t.Fatal(err)
		}
	})
}
