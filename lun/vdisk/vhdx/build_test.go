package vhdx_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/vdisktest"
	"github.com/cleave-san/cleave/lun/vdisk/vhdx"
)

// Files of our own writing, for what no foreign program makes: damage, and logs
// of several entries. Whole ones are in lun/testdata.

const mib = 1 << 20

var le = binary.LittleEndian

func guid(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		panic(s)
	}
	for _, g := range [][2]int{{0, 4}, {4, 6}, {6, 8}} {
		for i, j := g[0], g[1]-1; i < j; i, j = i+1, j-1 {
			b[i], b[j] = b[j], b[i]
		}
	}
	return b
}

const logID = "11111111-2222-3333-4444-555555555555"

func seal(b []byte) {
	clear(b[4:8])
	le.PutUint32(b[4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// build is a dynamic disk of 3 MiB in blocks of 1 MiB: block 0 is at 4 MiB and
// full of 'a', block 1 is absent, block 2 at 5 MiB and full of 'b'. The log is
// at 1 MiB, metadata at 2 MiB, the BAT at 3 MiB.
func build() []byte {
	b := make([]byte, 6*mib)
	copy(b, "vhdxfile")
	for i, at := range []int{64 << 10, 128 << 10} {
		h := b[at:][:4096]
		copy(h, "head")
		le.PutUint64(h[8:], uint64(i+1))
		le.PutUint16(h[66:], 1)
		le.PutUint32(h[68:], mib)
		le.PutUint64(h[72:], mib)
		seal(h)
	}
	for _, at := range []int{192 << 10, 256 << 10} {
		r := b[at:][:64<<10]
		copy(r, "regi")
		le.PutUint32(r[8:], 2)
		for i, e := range []struct {
			id string
			at uint64
		}{{"2dc27766-f623-4200-9d64-115e9bfd4a08", 3 * mib}, {"8b7ca206-4790-4b9a-b8fe-575f050f886e", 2 * mib}} {
			copy(r[16+32*i:], guid(e.id))
			le.PutUint64(r[32+32*i:], e.at)
			le.PutUint32(r[40+32*i:], mib)
			le.PutUint32(r[44+32*i:], 1)
		}
		seal(r)
	}
	m := b[2*mib:]
	copy(m, "metadata")
	le.PutUint16(m[10:], 3)
	for i, e := range []struct {
		id     string
		length uint32
		value  uint64
	}{{"caa16737-fa36-4d43-b3b6-33f0aa44e76b", 8, mib}, {"2fa54224-cd1b-4876-b211-5dbed83bf4b8", 8, 3 * mib},
		{"8141bf1d-a96f-4709-ba47-f233a8faab5f", 4, 512}} {
		copy(m[32+32*i:], guid(e.id))
		le.PutUint32(m[48+32*i:], uint32(65536+16*i))
		le.PutUint32(m[52+32*i:], e.length)
		le.PutUint32(m[56+32*i:], 4)
		le.PutUint64(m[65536+16*i:], e.value)
	}
	le.PutUint64(b[3*mib:], 4*mib|6)
	le.PutUint64(b[3*mib+16:], 5*mib|6)
	copy(b[4*mib:], bytes.Repeat([]byte("a"), mib))
	copy(b[5*mib:], bytes.Repeat([]byte("b"), mib))
	return b
}

// logged gives the file a log that is not empty.
func logged(b []byte) []byte {
	h := b[128<<10:][:4096]
	copy(h[48:], guid(logID))
	seal(h)
	return b
}

// write is a change in the log: a sector of one byte, or zeroes.
type write struct {
	off, zero uint64
	fill      byte
}

// entry puts a log entry at pos of the log, which goes round, and returns where
// the next one goes.
func entry(b []byte, pos, tail int, seq uint64, writes ...write) int {
	e := make([]byte, 4096)
	copy(e, "loge")
	le.PutUint32(e[12:], uint32(tail))
	le.PutUint64(e[16:], seq)
	le.PutUint32(e[24:], uint32(len(writes)))
	copy(e[32:], guid(logID))
	le.PutUint64(e[48:], 6*mib)
	le.PutUint64(e[56:], 6*mib)
	for i, w := range writes {
		d := e[64+32*i:][:32]
		le.PutUint64(d[16:], w.off)
		le.PutUint64(d[24:], seq)
		if w.zero > 0 {
			copy(d, "zero")
			le.PutUint64(d[8:], w.zero)
			continue
		}
		copy(d, "desc")
		copy(d[4:], bytes.Repeat([]byte{w.fill}, 12))
		s := bytes.Repeat([]byte{w.fill}, 4096)
		copy(s, "data")
		le.PutUint32(s[4:], uint32(seq>>32))
		le.PutUint32(s[4092:], uint32(seq))
		e = append(e, s...)
	}
	le.PutUint32(e[8:], uint32(len(e)))
	seal(e)
	for i, v := range e {
		b[mib+(pos+i)%mib] = v
	}
	return (pos + len(e)) % mib
}

func content(t *testing.T, b []byte) []byte {
	t.Helper()
	d, err := vhdx.Open(vdisktest.Memory(b), vdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestLog: a log of several entries that goes round, with older sequences and a
// torn entry beside it; first in memory, then applied.
func TestLog(t *testing.T) {
	b := logged(build())
	want := content(t, build())
	// An older sequence, left over.
	entry(b, 512<<10, 512<<10, 3, write{off: 4 * mib, fill: 'x'})
	// The active one: from 8 KiB before the log's end over its beginning. Its
	// first entry is no longer part of it.
	const start = mib - 16<<10
	tail := entry(b, start, start, 1<<33, write{off: 4*mib + 8192, fill: 'y'})
	next := entry(b, tail, start, 1<<33+1, write{off: 4 * mib, fill: 'c'}, write{off: 5 * mib, zero: 12288})
	next = entry(b, next, tail, 1<<33+2, write{off: 5*mib + 4096, fill: 'd'}, write{off: 4*mib + 4096, fill: 'e'}, write{off: 4*mib + 4096, zero: 4096})
	// The one that was being written.
	entry(b, next, tail, 1<<33+3, write{off: 4 * mib, fill: 'z'})
	b[mib+next+4096+100]++
	copy(want, bytes.Repeat([]byte{'c'}, 4096))
	clear(want[4096:8192])
	clear(want[2*mib : 2*mib+12288])
	copy(want[2*mib+4096:], bytes.Repeat([]byte{'d'}, 4096))

	before := bytes.Clone(b)
	if !bytes.Equal(content(t, b), want) {
		t.Error("read through the log: other content")
	}
	if !bytes.Equal(b, before) {
		t.Error("reading changed the file")
	}
	if err := vhdx.Replay(vdisktest.Memory(b)); err != nil {
		t.Fatal(err)
	}
	clear(b[mib : 2*mib]) // the log is of no use any more
	if !bytes.Equal(content(t, b), want) {
		t.Error("after the log was applied: other content")
	}
}

// failing is a device that takes n writes.
type failing struct {
	vdisktest.Memory
	n int
}

func (f *failing) WriteAt(p []byte, off int64) (int, error) {
	if f.n--; f.n < 0 {
		return 0, lun.ErrNoSpace
	}
	return f.Memory.WriteAt(p, off)
}

// TestReplayInterrupted: wherever it stops, the disk reads the same.
func TestReplayInterrupted(t *testing.T) {
	b := logged(build())
	entry(b, 0, 0, 7, write{off: 3 * mib, fill: 0}, write{off: 4 * mib, fill: 'c'}, write{off: 5 * mib, zero: 128 << 10})
	want := content(t, b)
	for n := 0; ; n++ {
		c := bytes.Clone(b)
		err := vhdx.Replay(&failing{vdisktest.Memory(c), n})
		if !bytes.Equal(content(t, c), want) {
			t.Fatalf("stopped after %d writes: other content", n)
		}
		if err == nil {
			if n < 4 {
				t.Errorf("only %d writes", n)
			}
			return
		}
	}
}

func TestDamage(t *testing.T) {
	head := func(b []byte, at int, edit func(h []byte)) {
		edit(b[at:])
		seal(b[at:][:4096])
	}
	tables := func(b []byte, edit func(r []byte)) {
		for _, at := range []int{192 << 10, 256 << 10} {
			edit(b[at:])
			seal(b[at:][:65536])
		}
	}
	for _, c := range []struct {
		name, field string
		damage      func(b []byte) []byte
	}{
		{"cut off in the headers", "headers", func(b []byte) []byte { return b[:100<<10] }},
		{"both headers", "Checksum", func(b []byte) []byte { b[64<<10+100]++; b[128<<10+100]++; return b }},
		{"version", "Version", func(b []byte) []byte { head(b, 128<<10, func(h []byte) { h[66] = 2 }); return b }},
		{"both region tables", "Checksum", func(b []byte) []byte { b[192<<10+100]++; b[256<<10+100]++; return b }},
		{"unknown region", "Guid", func(b []byte) []byte {
			tables(b, func(r []byte) { le.PutUint32(r[8:], 3); r[80] = 1; le.PutUint32(r[80+28:], 1) })
			return b
		}},
		{"region twice", "Guid", func(b []byte) []byte { tables(b, func(r []byte) { copy(r[48:64], r[16:32]) }); return b }},
		{"regions overlap", "FileOffset", func(b []byte) []byte { tables(b, func(r []byte) { le.PutUint64(r[64:], 3*mib) }); return b }},
		{"many regions", "EntryCount", func(b []byte) []byte { tables(b, func(r []byte) { le.PutUint32(r[8:], 1<<31) }); return b }},
		{"region beyond the end", "FileOffset", func(b []byte) []byte { tables(b, func(r []byte) { le.PutUint64(r[32:], 1<<40) }); return b }},
		{"no BAT", "Guid", func(b []byte) []byte {
			tables(b, func(r []byte) { le.PutUint32(r[8:], 1); copy(r[16:], r[48:80]) })
			return b
		}},
		{"unknown metadata", "ItemID", func(b []byte) []byte { b[2*mib+32+3]++; return b }},
		{"metadata outside", "Offset", func(b []byte) []byte { le.PutUint32(b[2*mib+48:], mib-4); return b }},
		{"metadata of another length", "Length", func(b []byte) []byte { le.PutUint32(b[2*mib+52:], 1<<30); return b }},
		{"no size", "ItemID", func(b []byte) []byte { le.PutUint32(b[2*mib+32+32+24:], 0); b[2*mib+64]++; return b }},
		{"block size", "BlockSize", func(b []byte) []byte { le.PutUint32(b[2*mib+65536:], mib+512); return b }},
		{"huge", "VirtualDiskSize", func(b []byte) []byte { le.PutUint64(b[2*mib+65552:], 1<<50); return b }},
		{"BAT too short", "BAT", func(b []byte) []byte { le.PutUint64(b[2*mib+65552:], 1<<45); return b }},
		{"sector size", "LogicalSectorSize", func(b []byte) []byte { le.PutUint32(b[2*mib+65568:], 513); return b }},
		{"no parent locator", "ItemID", func(b []byte) []byte { b[2*mib+65540] = 2; return b }},
		{"block beyond the end", "BAT entry 0", func(b []byte) []byte { le.PutUint64(b[3*mib:], 1<<50|6); return b }},
		{"block over the headers", "BAT entry 0", func(b []byte) []byte { le.PutUint64(b[3*mib:], 6); return b }},
		{"block over the log", "BAT entry 0", func(b []byte) []byte { le.PutUint64(b[3*mib:], mib|6); return b }},
		{"block over the BAT", "BAT entry 0", func(b []byte) []byte { le.PutUint64(b[3*mib:], 3*mib|6); return b }},
		{"reserved state", "BAT entry 0", func(b []byte) []byte { b[3*mib] = 4; return b }},
		{"partial without a parent", "BAT entry 0", func(b []byte) []byte { b[3*mib] = 7; return b }},
		{"empty log", "log", logged},
		{"log version", "LogVersion", func(b []byte) []byte {
			logged(b)
			head(b, 128<<10, func(h []byte) { h[64] = 1 })
			return b
		}},
		{"log beyond the end", "LogOffset", func(b []byte) []byte {
			logged(b)
			head(b, 128<<10, func(h []byte) { le.PutUint64(h[72:], 6*mib) })
			return b
		}},
		{"huge log", "LogLength", func(b []byte) []byte {
			logged(b)
			head(b, 128<<10, func(h []byte) { le.PutUint32(h[68:], 1<<31) })
			return b
		}},
		{"tail outside of the sequence", "log", func(b []byte) []byte { entry(logged(b), 0, 8192, 1, write{off: 4 * mib, fill: 'c'}); return b }},
		{"log changes a header", "FileOffset", func(b []byte) []byte { entry(logged(b), 0, 0, 1, write{off: 64 << 10, fill: 'c'}); return b }},
		{"log changes itself", "FileOffset", func(b []byte) []byte { entry(logged(b), 0, 0, 1, write{off: 4096, zero: 2 * mib}); return b }},
		{"cut off with a log", "FlushedFileOffset", func(b []byte) []byte {
			entry(logged(b), 0, 0, 1, write{off: 4 * mib, fill: 'c'})
			return b[:5*mib]
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.damage(build())
			before := bytes.Clone(b)
			d, err := vhdx.Open(vdisktest.Memory(b), vdisk.Options{})
			if err == nil {
				_, err = d.ReadAt(make([]byte, d.Size()), 0)
			}
			if !isField(err, c.field) {
				t.Errorf("want an error about %q, got %v", c.field, err)
			}
			if !bytes.Equal(b, before) {
				t.Error("the file was changed")
			}
		})
	}
}

// TestTwins: of two headers or region tables one may be damaged.
func TestTwins(t *testing.T) {
	want := content(t, build())
	for _, at := range []int{64<<10 + 9, 128<<10 + 9, 192<<10 + 9} {
		b := build()
		b[at]++
		d, err := vhdx.Open(vdisktest.Memory(b), vdisk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if w := d.Info().Warnings; len(w) != 1 || !isField(w[0], "Checksum") {
			t.Errorf("byte %d: warnings %v", at, w)
		}
		if !bytes.Equal(content(t, b), want) {
			t.Errorf("byte %d: other content", at)
		}
	}
}

// TestStates: what states that hold no data read as.
func TestStates(t *testing.T) {
	for state := range uint64(4) {
		b := build()
		le.PutUint64(b[3*mib:], 4*mib|state)
		if p := content(t, b)[:mib]; !bytes.Equal(p, make([]byte, mib)) {
			t.Errorf("state %d has data", state)
		}
	}
}

func TestOverlap(t *testing.T) {
	b := build()
	le.PutUint64(b[3*mib+16:], 4*mib|6)
	before := bytes.Clone(b)
	content(t, b)
	d, err := vhdx.Open(vdisktest.Memory(b), vdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(make([]byte, 512), 0); !isField(err, "BAT entry 2") {
		t.Errorf("write: %v", err)
	}
	if !bytes.Equal(b, before) {
		t.Error("the refused write changed the file")
	}
}

// FuzzOpen damages the structures and seals them, so that what is behind the
// checksums is reached.
func FuzzOpen(f *testing.F) {
	b := logged(build())
	next := entry(b, 0, 0, 7, write{off: 4 * mib, fill: 'c'})
	entry(b, next, 0, 8, write{off: 5 * mib, zero: 8192})
	f.Add(b[128<<10:][:128], b[192<<10:][:128], b[2*mib:][:160], b[2*mib+65536:][:64], b[3*mib:][:64], b[mib:][:16384])
	b = build()
	f.Add(b[128<<10:][:128], b[192<<10:][:128], b[2*mib:][:160], b[2*mib+65536:][:64], b[3*mib:][:64], []byte{})
	f.Fuzz(func(t *testing.T, head, table, meta, items, bat, log []byte) {
		b := build()
		put := func(at, limit int, p []byte) { copy(b[at:at+limit], p) }
		put(128<<10, 4096, head)
		seal(b[128<<10:][:4096])
		put(192<<10, 65536, table)
		seal(b[192<<10:][:65536])
		put(2*mib, 65536, meta)
		put(2*mib+65536, 65536, items)
		put(3*mib, mib, bat)
		put(mib, mib, log)
		for pos := mib; pos < 2*mib && pos-mib < len(log); pos += 4096 {
			if e := b[pos:]; string(e[:4]) == "loge" {
				if n := int(le.Uint32(e[8:])); n >= 4096 && pos+n <= 2*mib {
					seal(e[:n])
				}
			}
		}
		self := vdisk.ResolverFunc(func(string, bool) (lun.Device, error) { return vdisktest.Memory(b), nil })
		vdisktest.Hostile(t, vhdx.Open, b, vdisk.Options{Resolver: self, Depth: 2})
	})
}
