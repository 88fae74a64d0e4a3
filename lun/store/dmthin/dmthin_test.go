package dmthin_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/store/dmthin"
)

func thin(t testing.TB, m memory, data uint64, id uint64, size int64, external lun.Device) *dmthin.Thin {
	t.Helper()
	p, err := dmthin.Open(m, numbered(data*dataBlock), nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Thin(id, size, external)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestReadsWhatIsMapped: any mappings in trees of any shape, a volume that ends
// anywhere, with an external origin or none, of any size.
func TestReadsWhatIsMapped(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fan := rapid.IntRange(2, 120).Draw(t, "fan")
		const data = 300
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		perm := rnd.Perm(data)
		m := map[uint64]uint64{}
		last := uint64(0)
		for range rapid.IntRange(0, 60).Draw(t, "runs") {
			at := uint64(rnd.IntN(150))
			from := rnd.IntN(data)
			for range 1 + rnd.IntN(4) {
				m[at] = uint64(perm[from%data])
				if rnd.IntN(2) == 0 {
					m[at] = uint64(from % data) // in a row
				}
				last = max(last, at)
				at, from = at+1, from+1
			}
		}
		size := rapid.Int64Range(1, 160*dataBlock).Draw(t, "size")
		var external lun.Device
		if n := rapid.Int64Range(-dataBlock, 160*dataBlock).Draw(t, "external"); n >= 0 {
			external = numbered(n)
		}
		p, err := dmthin.Open(build(fan, data, map[uint64]map[uint64]uint64{3: m, 1: {}, 9: {4: 4}}), numbered(data*dataBlock), nil)
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Thin(3, size, external)
		if err != nil {
			t.Fatal(err)
		}
		if d.Mapped != uint64(len(m)) {
			t.Fatalf("%d mapped, want %d", d.Mapped, len(m))
		}
		// Some pieces, of some length, at places that mean something.
		for range 20 {
			off := min(size-1, max(0, int64(rnd.IntN(155))*dataBlock+int64(rnd.IntN(3)-1)*8))
			n := min(int64(rnd.IntN(3*dataBlock)), size-off)
			got, want := make([]byte, n), make([]byte, n)
			rnd.Uint32()
			if _, err := d.ReadAt(got, off); err != nil {
				t.Fatal(err)
			}
			for i := int64(0); i < n; {
				b := uint64((off + i) / dataBlock)
				run := min(n-i, dataBlock-(off+i)%dataBlock)
				if to, ok := m[b]; ok {
					_, err = numbered(data*dataBlock).ReadAt(want[i:i+run], int64(to)*dataBlock+(off+i)%dataBlock)
				} else if external != nil && off+i < external.Size() {
					_, err = external.ReadAt(want[i:min(i+run, external.Size()-off)], off+i)
				}
				if err != nil {
					t.Fatal(err)
				}
				i += run
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%d bytes at %d differ", n, off)
			}
		}
		checkRanges(t, d, m, 0, size)
		off := rapid.Int64Range(0, size).Draw(t, "off")
		checkRanges(t, d, m, off, rapid.Int64Range(0, size-off).Draw(t, "n"))
	})
}

// checkRanges compares Ranges and Extents, byte by byte of every block's first
// and last, with the mappings.
func checkRanges(t interface{ Fatalf(string, ...any) }, d *dmthin.Thin, m map[uint64]uint64, off, n int64) {
	var covered, want int64
	pos := off
	err := d.Ranges(off, n, func(r dmthin.Range) error {
		if r.Off < pos || r.Len <= 0 {
			return fmt.Errorf("range %+v after byte %d", r, pos)
		}
		for at := r.Off; at < r.Off+r.Len; at += dataBlock - at%dataBlock {
			if to, ok := m[uint64(at/dataBlock)]; !ok || int64(to)*dataBlock+at%dataBlock != r.At+at-r.Off {
				return fmt.Errorf("range %+v is wrong at byte %d", r, at)
			}
		}
		covered, pos = covered+r.Len, r.Off+r.Len
		return nil
	})
	if err != nil || pos > off+n {
		t.Fatalf("ranges of %d at %d: %v, end at %d", n, off, err, pos)
	}
	for b := range m {
		want += max(0, min(off+n, int64(b+1)*dataBlock)-max(off, int64(b)*dataBlock))
	}
	if covered != want {
		t.Fatalf("ranges of %d at %d cover %d bytes, want %d", n, off, covered, want)
	}
	pos = off
	data := int64(0)
	err = d.Extents(off, n, func(e lun.Extent) error {
		if e.Off != pos || e.Len <= 0 {
			return fmt.Errorf("extent %+v at byte %d", e, pos)
		}
		pos += e.Len
		if !e.Hole {
			data += e.Len
		}
		return nil
	})
	if err != nil || pos != off+n && n > 0 {
		t.Fatalf("extents of %d at %d: %v, end at %d", n, off, err, pos)
	}
	if data != want && data != n {
		t.Fatalf("extents of %d at %d: %d bytes of data, want %d", n, off, data, want)
	}
}

func TestPoolTellsItsDevices(t *testing.T) {
	m := build(2, 10, map[uint64]map[uint64]uint64{1: {0: 1}, 2: {}, 700: {1: 2, 3: 4}})
	p, err := dmthin.Open(m, numbered(10*dataBlock), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []dmthin.Details
	if err := p.Devices(func(d dmthin.Details) error { got = append(got, d); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0].ID != 1 || got[2].ID != 700 || got[2].Mapped != 2 || p.Transaction != 7 || p.Time != 5 || p.BlockSize != dataBlock {
		t.Errorf("devices %+v of %+v", got, p)
	}
	stop := errors.New("stop")
	if err := p.Devices(func(dmthin.Details) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a callback's error came back as %v", err)
	}
	if _, err := p.Thin(3, 1, nil); !strings.Contains(fmt.Sprint(err), "no device of this id") {
		t.Errorf("a device that is not there: %v", err)
	}
	empty, err := dmthin.Open(build(2, 10, nil), numbered(10*dataBlock), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := empty.Devices(func(d dmthin.Details) error { return stop }); err != nil {
		t.Errorf("a pool without devices: %v", err)
	}
}

// where finds the block of a node: the root of the tree that is named.
func where(m memory, tree string) int {
	roots := map[string]int{"mappings": 320, "details": 328}
	if off, ok := roots[tree]; ok {
		return int(le.Uint64(m[off:])) * block
	}
	l1 := where(m, "mappings") // one leaf: the first device's root
	room := int(le.Uint32(m[l1+20:]))
	return int(le.Uint64(m[l1+32+8*room:])) * block
}

func TestBadMetadata(t *testing.T) {
	child := func(m memory, i int) int { // of the device's root, an internal node
		at := where(m, "device")
		return int(le.Uint64(m[at+32+8*int(le.Uint32(m[at+20:]))+8*i:])) * block
	}
	setChild := func(m memory, at, i int, to uint64) {
		le.PutUint64(m[at+32+8*int(le.Uint32(m[at+20:]))+8*i:], to)
		sum(m, at, nodeXOR)
	}
	super := func(off int, v uint64, n int) func(m memory) memory {
		return func(m memory) memory {
			var b [8]byte
			le.PutUint64(b[:], v)
			copy(m[off:off+n], b[:])
			sum(m, 0, superXOR)
			return m
		}
	}
	device := func(off int, v uint32) func(m memory) memory {
		return func(m memory) memory {
			at := where(m, "device")
			le.PutUint32(m[at+off:], v)
			sum(m, at, nodeXOR)
			return m
		}
	}
	for _, tc := range []struct {
		name   string
		change func(m memory) memory
		field  string
	}{
		{"no magic", super(32, 1, 8), "magic"},
		{"superblock checksum", func(m memory) memory { m[50]++; return m }, "csum"},
		{"superblock elsewhere", super(8, 1, 8), "blocknr"},
		{"version 3", super(40, 3, 4), "version"},
		{"incompatible feature", super(360, 1, 4), "incompat_flags"},
		{"needs check", super(4, 1, 4), "flags"},
		{"metadata blocks of 8 KiB", super(340, 16, 4), "metadata_block_size"},
		{"odd data blocks", super(336, 129, 4), "data_block_size"},
		{"no data blocks", super(336, 0, 4), "data_block_size"},
		{"huge data blocks", super(336, 1<<31, 4), "data_block_size"},
		{"metadata cut short", func(m memory) memory { return m[:len(m)-block] }, "metadata_space_map_root.nr_blocks"},
		{"data cut short", super(64, 1<<40, 8), "data_space_map_root.nr_blocks"},
		{"root outside", super(320, 1<<60, 8), "data_mapping_root"},
		{"root is the superblock", super(328, 0, 8), "device_details_root"},
		{"roots exchanged", func(m memory) memory {
			a, b := le.Uint64(m[320:]), le.Uint64(m[328:])
			le.PutUint64(m[320:], b)
			le.PutUint64(m[328:], a)
			sum(m, 0, superXOR)
			return m
		}, "value_size"},
		{"nothing", func(m memory) memory { return m[:100] }, "metadata device"},
		{"node checksum", func(m memory) memory { m[where(m, "device")+40]++; return m }, "csum"},
		{"node of another block", device(8, 1), "blocknr"},
		{"node flags", device(4, 3), "flags"},
		{"too many entries", device(16, 1000), "nr_entries"},
		{"too much room", device(20, 1<<30), "max_entries"},
		{"value size", device(24, 1<<31), "value_size"},
		{"internal node without entries", device(16, 0), "nr_entries"},
		{"keys descend", func(m memory) memory {
			at := where(m, "device")
			le.PutUint64(m[at+32+8:], 0)
			sum(m, at, nodeXOR)
			return m
		}, "key"},
		{"child outside", func(m memory) memory { setChild(m, where(m, "device"), 1, 1<<40); return m }, "child"},
		{"child is the superblock", func(m memory) memory { setChild(m, where(m, "device"), 1, 0); return m }, "child"},
		{"child is its parent", func(m memory) memory {
			at := where(m, "device")
			setChild(m, at, 1, uint64(at/block))
			return m
		}, "key"},
		{"circle of first children", func(m memory) memory {
			at := where(m, "device")
			setChild(m, at, 0, uint64(at/block))
			return m
		}, "key"},
		{"circle of only children", func(m memory) memory {
			at := where(m, "device")
			le.PutUint32(m[at+16:], 1)
			setChild(m, at, 0, uint64(at/block))
			return m
		}, "flags"},
		{"one child twice", func(m memory) memory {
			setChild(m, where(m, "device"), 1, uint64(child(m, 0)/block))
			return m
		}, "key"},
		{"empty leaf", func(m memory) memory {
			at := child(m, 1)
			le.PutUint32(m[at+16:], 0)
			sum(m, at, nodeXOR)
			return m
		}, "nr_entries"},
		{"data block outside", func(m memory) memory {
			for at := child(m, 0); ; {
				if le.Uint32(m[at+4:]) == 2 {
					le.PutUint64(m[at+32+8*int(le.Uint32(m[at+20:])):], 10<<24)
					sum(m, at, nodeXOR)
					return m
				}
				at = int(le.Uint64(m[at+32+8*int(le.Uint32(m[at+20:])):])) * block
			}
		}, "mapping"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := tc.change(build(2, 10, map[uint64]map[uint64]uint64{1: {0: 1, 2: 3, 4: 5, 6: 7, 8: 9}}))
			_, err := readAll(m, 10)
			var fe *lun.FormatError
			if !errors.As(err, &fe) || fe.Field != tc.field || fe.Offset < 0 || fe.Reason == "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want field %q", err, tc.field)
			}
			if got := errors.Is(err, dmthin.ErrNeedsCheck); got != (tc.name == "needs check") {
				t.Errorf("is ErrNeedsCheck: %v", got)
			}
		})
	}
}

// readAll reads all devices of a pool to their end, both ways, and counts what
// is mapped.
func readAll(m memory, data int64) (mapped int64, err error) {
	p, err := dmthin.Open(m, numbered(data*dataBlock), nil)
	if err != nil {
		return 0, err
	}
	err = p.Devices(func(d dmthin.Details) error {
		const size = 20 * dataBlock
		t, err := p.Thin(d.ID, size, nil)
		if err != nil {
			return err
		}
		walked := int64(0)
		err = t.Ranges(0, size, func(r dmthin.Range) error {
			walked += r.Len
			return lun.CheckRange(r.At, r.Len, t.DataDevice().Size())
		})
		if err != nil {
			return err
		}
		for off := int64(0); off < size; {
			at, run, is, err := t.Lookup(off)
			if err != nil {
				return err
			}
			if run <= 0 || is && lun.CheckRange(at, run, t.DataDevice().Size()) != nil {
				return fmt.Errorf("lookup at %d: %d bytes at %d", off, run, at)
			}
			if is {
				mapped += run
				walked -= run
			}
			off += run
		}
		if walked != 0 {
			return fmt.Errorf("device %d: lookups and ranges differ by %d bytes", d.ID, walked)
		}
		return nil
	})
	return mapped, err
}

// endless is the metadata of a device of 1<<22 blocks that exists only as far
// as it is read: a tree of 16,000 leaves, four times what the cache holds.
type endless struct {
	head  memory
	first int // block of the first leaf
}

const (
	perLeaf = 252
	leaves  = 1 << 22 / perLeaf
)

func (e *endless) Size() int64                        { return int64(e.first+leaves) * block }
func (e *endless) Sync() error                        { return nil }
func (e *endless) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (e *endless) ReadAt(p []byte, off int64) (int, error) {
	if off < int64(len(e.head)) {
		return copy(p, e.head[off:]), nil
	}
	leaf := int(off/block) - e.first
	le.PutUint32(p[4:], 2)
	le.PutUint64(p[8:], uint64(off/block))
	le.PutUint32(p[16:], perLeaf)
	le.PutUint32(p[20:], perLeaf)
	le.PutUint32(p[24:], 8)
	for i := range perLeaf {
		k := uint64(leaf*perLeaf + i)
		le.PutUint64(p[32+8*i:], k)
		le.PutUint64(p[32+8*(perLeaf+i):], (k^1)<<24)
	}
	sum(memory(p), 0, nodeXOR)
	return block, nil
}

func newEndless() *endless {
	p := &pool{m: make(memory, block), fan: perLeaf, data: 1 << 24}
	e := &endless{first: 2000}
	keys, values := make([]uint64, leaves), make([][]byte, leaves)
	for i := range leaves {
		keys[i], values[i] = uint64(i*perLeaf), le.AppendUint64(nil, uint64(e.first+i))
	}
	leaf := false
	for len(keys) > 1 {
		var k []uint64
		var v [][]byte
		for i := 0; i < len(keys); i += perLeaf {
			j := min(i+perLeaf, len(keys))
			k, v = append(k, keys[i]), append(v, le.AppendUint64(nil, p.node(leaf, keys[i:j], values[i:j])))
		}
		keys, values = k, v
	}
	details := le.AppendUint64(nil, 1<<24)
	details = append(details, make([]byte, 16)...)
	p.super(p.tree([]uint64{1}, values), p.tree([]uint64{1}, [][]byte{details}))
	le.PutUint64(p.m[192:], uint64(e.first+leaves))
	sum(p.m, 0, superXOR)
	e.head = append(p.m, make([]byte, e.first*block-len(p.m))...)
	return e
}

// TestMillionsOfMappingsFitInMemory bounds what stays in memory, not the
// time: a walk of all, and lookups everywhere.
func TestMillionsOfMappingsFitInMemory(t *testing.T) {
	e := newEndless()
	p, err := dmthin.Open(e, numbered(1<<24*dataBlock), nil)
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const size = leaves * perLeaf * dataBlock
	d, err := p.Thin(1, size, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := int64(0)
	if err := d.Ranges(0, size, func(r dmthin.Range) error { n += r.Len; return nil }); err != nil || n != size {
		t.Fatalf("%d bytes in ranges, want %d (%v)", n, int64(size), err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		off := rnd.Int64N(size)
		at, _, mapped, err := d.Lookup(off)
		if b := off / dataBlock; err != nil || !mapped || at != (b^1)*dataBlock+off%dataBlock {
			t.Fatalf("lookup of %d: %d, %v, %v", off, at, mapped, err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > dmthin.CacheSize*5/4 {
		t.Errorf("a pool of four million mappings holds %d MiB", got>>20)
	}
	runtime.KeepAlive(p)
}

// TestManyReaders: one pool, several devices and goroutines.
func TestManyReaders(t *testing.T) {
	m := map[uint64]uint64{}
	for i := range uint64(200) {
		m[i*2] = 199 - i
	}
	p, err := dmthin.Open(build(3, 200, map[uint64]map[uint64]uint64{1: m, 2: m}), numbered(200*dataBlock), nil)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			d, err := p.Thin(uint64(1+w%2), 400*dataBlock, nil)
			if err != nil {
				t.Error(err)
				return
			}
			b := make([]byte, 16)
			for i := range int64(400) {
				if _, err := d.ReadAt(b, i*dataBlock); err != nil {
					t.Error(err)
				}
				want := uint64(0)
				if i%2 == 0 {
					want = uint64(199-i/2) * dataBlock
				}
				if got := binary.BigEndian.Uint64(b); got != want {
					t.Errorf("block %d begins with %d, want %d", i, got, want)
				}
			}
		})
	}
	wg.Wait()
}

func TestOutsideOfTheDevice(t *testing.T) {
	d := thin(t, build(9, 1, map[uint64]map[uint64]uint64{1: {0: 0}}), 1, 1, 100, nil)
	for _, off := range []int64{-1, 100, math.MaxInt64} {
		if _, err := d.ReadAt(make([]byte, 1), off); !errors.Is(err, lun.ErrOutOfRange) {
			t.Errorf("read at %d: %v", off, err)
		}
		if err := d.Ranges(off, 1, nil); !errors.Is(err, lun.ErrOutOfRange) {
			t.Errorf("ranges at %d: %v", off, err)
		}
	}
	if _, err := d.WriteAt([]byte{1}, 0); !errors.Is(err, lun.ErrReadOnly) {
		t.Errorf("write: %v", err)
	}
}

// FuzzPool: whatever the metadata, lookups and walks agree, end, and stay
// within the data device. The checksums and addresses are made to hold, so that
// the fuzzer gets behind them.
func FuzzPool(f *testing.F) {
	small := map[uint64]map[uint64]uint64{1: {0: 1, 2: 3, 4: 5, 6: 7, 8: 9}, 2: {0: 1, 1: 2, 2: 3}}
	for _, fan := range []int{2, 3, 100} {
		f.Add([]byte(build(fan, 10, small)), true)
	}
	f.Add([]byte(build(2, 10, nil)), false)
	f.Fuzz(func(t *testing.T, b []byte, sums bool) {
		m := memory(bytes.Clone(b))
		if sums {
			for at := 0; at+block <= len(m); at += block {
				xor := uint32(nodeXOR)
				if at == 0 {
					xor = superXOR
				}
				le.PutUint64(m[at+8:], uint64(at/block))
				sum(m, at, xor)
			}
		}
		if _, err := readAll(m, 10); err != nil {
			var fe *lun.FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("error %v is no FormatError", err)
			}
		}
	})
}

// BenchmarkLookup is random lookups in four million mappings, most of them in
// leaves that are not in the cache.
func BenchmarkLookup(b *testing.B) {
	p, err := dmthin.Open(newEndless(), numbered(1<<24*dataBlock), nil)
	if err != nil {
		b.Fatal(err)
	}
	const size = leaves * perLeaf * dataBlock
	d, err := p.Thin(1, size, nil)
	if err != nil {
		b.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		if _, _, _, err := d.Lookup(rnd.Int64N(size)); err != nil {
			b.Fatal(err)
		}
	}
}
