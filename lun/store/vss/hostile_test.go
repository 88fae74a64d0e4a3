package vss_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/store/vss"
)

func victim() *built { return build(rand.New(rand.NewPCG(3, 9)), 2, 200, 3) }

// readAll opens and reads all that can be.
func readAll(dev lun.Device) error {
	v, err := vss.Read(dev)
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range v.Copies {
		s, err := v.Open(c)
		if err == nil {
			_, err = io.Copy(io.Discard, io.NewSectionReader(s, 0, s.Size()))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// TestHostile damages one thing at a time; each is named.
func TestHostile(t *testing.T) {
	if err := readAll(luntest.ReadOnly(victim().b)); err != nil {
		t.Fatal(err)
	}
	u64 := func(b []byte, at int, v uint64) { le.PutUint64(b[at:], v) }
	for name, c := range map[string]struct {
		damage func(v *built)
		want   string
	}{
		"version":           {func(v *built) { v.b[0x1E10] = 3 }, "version = 3"},
		"record type":       {func(v *built) { v.b[0x1E14] = 2 }, "record type = catalog"},
		"own offset":        {func(v *built) { v.b[0x1E18] = 1 }, "lies elsewhere"},
		"other volume":      {func(v *built) { v.b[0x1E50] ^= 1 }, "stored on another volume"},
		"catalog far away":  {func(v *built) { u64(v.b, 0x1E30, 1<<60) }, "no place for a block"},
		"catalog unaligned": {func(v *built) { u64(v.b, 0x1E30, 16384+1) }, "no place for a block"},
		"catalog elsewhere": {func(v *built) { u64(v.b, 0x1E30, uint64(v.stores[0].list)*16384) }, "a catalog (2) should be here"},
		"catalog loop":      {func(v *built) { u64(v.b, v.catalog[1]*16384+40, uint64(v.catalog[0])*16384) }, "in a circle"},
		"entry type":        {func(v *built) { u64(v.b, v.catalog[0]*16384+128, 77) }, "entry type = 77"},
		"volume size":       {func(v *built) { entry(v, 2, 8, 1<<61) }, "larger than VSS allows"},
		"larger volume":     {func(v *built) { entry(v, 2, 8, 1<<30) }, "the volume was larger"},
		"twice":             {func(v *built) { twice(v, 2) }, "is in the catalog twice"},
		"two places":        {func(v *built) { twice(v, 3) }, "has two places"},
		"no place":          {func(v *built) { entry(v, 3, 0, 1) }, "does not say where in the volume the store is"},
		"store header":      {func(v *built) { v.b[v.stores[1].header*16384] ^= 1 }, "does not begin with the signature"},
		"store of another":  {func(v *built) { u64(v.b, v.stores[1].header*16384+32, 0) }, "lies elsewhere"},
		"list loop":         {func(v *built) { u64(v.b, v.stores[0].list*16384+40, uint64(v.stores[0].list)*16384) }, "in a circle"},
		"list version":      {func(v *built) { v.b[v.stores[0].list*16384+16] = 9 }, "version = 9"},
		"original far away": {func(v *built) { put(v, 0, 1<<50, 0, 16384, 0) }, "original offset"},
		"original uneven":   {func(v *built) { put(v, 0, 513, 0, 16384, 0) }, "original offset"},
		"data far away":     {func(v *built) { put(v, 0, 16384, 0, 1<<62, 0) }, "store data offset"},
		"data at the end":   {func(v *built) { put(v, 0, 16384, 0, uint64(len(v.b)&^511-512), 0) }, "store data offset"},
		"forwarder":         {func(v *built) { put(v, 0, 16384, 1<<62, 0, 1) }, "relative offset"},
		"bitmap":            {func(v *built) { v.b[v.stores[2].bitmap*16384+20] = 5 }, "a bitmap (6) should be here"},
		"bitmap loop":       {func(v *built) { u64(v.b, v.stores[2].bitmap*16384+40, uint64(v.stores[2].bitmap)*16384) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			v := victim()
			c.damage(v)
			err := readAll(luntest.ReadOnly(v.b))
			if c.want == "" {
				if err != nil {
					t.Fatalf("%v; what is not needed must not matter", err)
				}
				return
			}
			var fe *lun.FormatError
			if !errors.As(err, &fe) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want a FormatError with %q", err, c.want)
			}
		})
	}
}

// entry changes a field of the first catalog entry of a kind.
func entry(v *built, kind byte, at int, to uint64) {
	for i := v.catalog[0]*16384 + 128; ; i += 128 {
		if v.b[i] == kind {
			le.PutUint64(v.b[i+at:], to)
			return
		}
	}
}

// twice has the first entry of a kind once more.
func twice(v *built, kind byte) {
	free := v.catalog[0]*16384 + 16384 - 128
	for i := v.catalog[0]*16384 + 128; ; i += 128 {
		if v.b[i] == kind {
			copy(v.b[free:], v.b[i:i+128])
			return
		}
	}
}

// put makes the first descriptor of a store.
func put(v *built, store int, original, relative, data uint64, flags uint32) {
	d := v.b[v.stores[store].list*16384+128:]
	le.PutUint64(d, original)
	le.PutUint64(d[8:], relative)
	le.PutUint64(d[16:], data)
	le.PutUint32(d[24:], flags)
}

// TestOneDamaged: a copy does not fall with an older one, and does with a younger.
func TestOneDamaged(t *testing.T) {
	b := victim()
	b.b[b.stores[1].header*16384] ^= 1
	v, err := vss.Read(luntest.ReadOnly(b.b))
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Copies) != 3 {
		t.Fatalf("%d copies", len(v.Copies))
	}
	if _, err := v.Open(v.Copies[2]); err != nil {
		t.Errorf("the youngest: %v", err)
	}
	if _, err := v.Open(v.Copies[1]); err == nil || errors.Is(err, vss.ErrChain) {
		t.Errorf("the damaged one: %v", err)
	}
	if _, err := v.Open(v.Copies[0]); !errors.Is(err, vss.ErrChain) {
		t.Errorf("the oldest: %v", err)
	}
}

// TestCatalogOrder: entries lie as they like, also over several blocks.
func TestCatalogOrder(t *testing.T) {
	a := victim()
	sums := func(b []byte) (out []string) {
		v, err := vss.Read(luntest.ReadOnly(b))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range v.Copies {
			s, err := v.Open(c)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, c.ID+sum(t, s))
		}
		return out
	}
	want := sums(a.b)
	first, second := a.b[a.catalog[0]*16384+128:][:127*128], a.b[a.catalog[1]*16384+128:][:127*128]
	for i := 0; i < 127; i += 2 { // every other one to the second block, the last first
		copy(second[(126-i)*128:], first[i*128:(i+1)*128])
		clear(first[i*128 : (i+1)*128])
	}
	got := sums(a.b)
	if strings.Join(got, " ") == "" || len(got) != len(want) {
		t.Fatalf("%d copies, want %d", len(got), len(want))
	}
	// The catalog's blocks themselves are not what any copy preserves here.
	for i := range want {
		if got[i][:36] != want[i][:36] {
			t.Errorf("copy %d is %s, was %s", i+1, got[i][:36], want[i][:36])
		}
	}
}

// TestNone: a volume that never had a copy, and one that has none now.
func TestNone(t *testing.T) {
	if _, err := vss.Read(luntest.ReadOnly(make([]byte, 1<<20))); !errors.Is(err, lun.ErrNotFormat) {
		t.Error(err)
	}
	if _, err := vss.Read(luntest.ReadOnly(make([]byte, 100))); !errors.Is(err, lun.ErrNotFormat) {
		t.Error(err)
	}
	b := victim()
	clear(b.b[0x1E30:0x1E38])
	if v, err := vss.Read(luntest.ReadOnly(b.b)); err != nil || len(v.Copies) != 0 {
		t.Error(v, err)
	}
}

// endless is a volume of which every block is one of a block list that is full and
// goes on in the next.
type endless struct{ *built }

func (e endless) Size() int64                        { return 1 << 44 }
func (e endless) Sync() error                        { return nil }
func (e endless) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (e endless) ReadAt(p []byte, off int64) (int, error) {
	if off < int64(len(e.b)) {
		return copy(p, e.b[off:]), nil
	}
	clear(p)
	copy(p, signature)
	le.PutUint32(p[16:], 1)
	le.PutUint32(p[20:], 3)
	le.PutUint64(p[32:], uint64(off))
	le.PutUint64(p[40:], uint64(off)+16384)
	for i := 128; i+32 <= len(p); i += 32 {
		le.PutUint64(p[i:], uint64(off)+uint64(i)*16384) // scattered: no runs
		le.PutUint64(p[i+16:], 1<<30)
	}
	return len(p), nil
}

// TestMemoryIsBounded: a block list without an end is refused, and not by way of
// taking all memory.
func TestMemoryIsBounded(t *testing.T) {
	b := victim()
	le.PutUint64(b.b[b.stores[2].list*16384+40:], 1<<32)
	dev := endless{b}
	v, err := vss.Read(dev)
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = v.Open(v.Copies[2])
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "more than 64 MiB") {
		t.Errorf("%v, want it refused", err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 2*vss.MaxIndex {
		t.Errorf("%d MiB were allocated", got>>20)
	}
}

// FuzzRead: whatever the volume, reading ends, stays within it, and the map agrees.
func FuzzRead(f *testing.F) {
	base := build(rand.New(rand.NewPCG(3, 9)), 2, 48, 3)
	places := append([]int{0}, base.catalog...)
	for _, s := range base.stores {
		places = append(places, s.header, s.list, s.bitmap)
	}
	b := bytes.Clone(base.b)
	f.Add(uint16(7), uint64(1), []byte("some"), uint16(40))
	f.Add(uint16(128), uint64(1), []byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, at uint16, value uint64, more []byte, where uint16) {
		copy(b, base.b)
		for i, place := range []uint16{at, where} {
			off := places[int(place)%len(places)]*16384 + int(place)/len(places)%2048*8
			if i == 0 {
				le.PutUint64(b[off:], value)
			} else {
				copy(b[off:], more[:min(len(more), 4096)])
			}
		}
		dev := luntest.ReadOnly(b)
		v, err := vss.Read(dev)
		if err != nil {
			return
		}
		for _, c := range v.Copies {
			s, err := v.Open(c)
			if err != nil {
				continue
			}
			for off := int64(0); off < s.Size(); {
				p, err := s.Locate(off)
				if err != nil {
					break
				}
				if p.Run <= 0 || p.Run > s.Size()-off || !p.Zero && p.At < 0 {
					t.Fatalf("byte %d: %+v", off, p)
				}
				off += p.Run
			}
			_, _ = io.Copy(io.Discard, io.NewSectionReader(s, 0, s.Size()))
		}
	})
}
