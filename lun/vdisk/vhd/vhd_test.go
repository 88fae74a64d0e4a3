package vhd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/vdisktest"
	"github.com/cleave-san/cleave/lun/vdisk/vhd"
)

const testdata = "../../testdata"

const base = "d0070f7eb52be7e5b2c2987d4dd60799998ad796d497c65ac93515924bd76e08"

// The sums are in lun/testdata/README.md. diff-*.vhd were made by a script, as
// QEMU makes none; libvhdi reads the one with bitmaps in whole bytes alike.
func TestImages(t *testing.T) {
	dir := vdisktest.Unpack(t, testdata, "vpc-", "diff-")
	for name, want := range map[string][2]string{
		"vpc-fixed.vhd":       {"fixed", base},
		"vpc-dynamic.vhd":     {"dynamic", base},
		"vpc-dynamic-chs.vhd": {"dynamic", "66e1e2d47c04c53c16c967bb7b0876bc991029d4386d77c99c83552e0d80e29b"},
		"diff-child-g8.vhd":   {"differencing", "4d2bbd6e70f90b7b08611a95c374f54a55587ceeecb1396cbaeae1654bcea6ec"},
		"diff-child-g1.vhd":   {"differencing", "e89b03c97e596e3e7541976416baf0370047808456c6709d130cc765aaeb696c"},
	} {
		t.Run(name, func(t *testing.T) {
			d := vdisktest.Open(t, vhd.Open, filepath.Join(dir, name), true)
			if got := vdisktest.Sum(t, d); got != want[1] {
				t.Errorf("content sums to %s, want %s", got, want[1])
			}
			vdisktest.Extents(t, d)
			i := d.Info()
			if i.Variant != want[0] || len(i.Warnings) > 0 || i.Size != d.Size() {
				t.Errorf("%+v", i)
			}
			if parents := len(i.Parents); (parents == 1) != (want[0] == "differencing") {
				t.Errorf("parents: %+v", i.Parents)
			}
			if _, err := d.WriteAt(make([]byte, 512), 0); !errors.Is(err, lun.ErrReadOnly) {
				t.Errorf("write to a disk opened read-only: %v", err)
			}
		})
	}
}

// TestQEMU: disks that qemu-io wrote to at random are what qemu-img says, before
// and after we wrote to them in place.
func TestQEMU(t *testing.T) {
	vdisktest.Need(t, "qemu-img")
	for _, o := range []string{"subformat=fixed,force_size=on", "subformat=dynamic,force_size=on", "subformat=dynamic", "subformat=fixed"} {
		t.Run(o, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d.vhd")
			vdisktest.Run(t, "qemu-img", "create", "-q", "-f", "vpc", "-o", o, path, "21M")
			vdisktest.Run(t, "qemu-io", "-f", "vpc", "-c", "write -P 17 512 1024", "-c", "write -P 3 5M 3M", "-c", "write -P 99 20000K 7K", path)
			d := vdisktest.Open(t, vhd.Open, path, false)
			if got, want := vdisktest.Sum(t, d), vdisktest.Convert(t, "vpc", path); got != want {
				t.Fatalf("content sums to %s, qemu-img says %s", got, want)
			}
			vdisktest.Extents(t, d)
			if vdisktest.Write(t, d, 1, 60) == 0 {
				t.Fatal("nothing could be written")
			}
			if got, want := vdisktest.Sum(t, d), vdisktest.Convert(t, "vpc", path); got != want {
				t.Fatalf("after writing: content sums to %s, qemu-img says %s", got, want)
			}
		})
	}
}

// TestWriteChild: a child takes writes in its own sectors only, and its parent
// none.
func TestWriteChild(t *testing.T) {
	dir := vdisktest.Unpack(t, testdata, "diff-")
	parent := filepath.Join(dir, "diff-parent-g1.vhd")
	before, err := os.ReadFile(parent)
	if err != nil {
		t.Fatal(err)
	}
	d := vdisktest.Open(t, vhd.Open, filepath.Join(dir, "diff-child-g1.vhd"), false)
	vdisktest.Write(t, d, 2, 200)
	after, err := os.ReadFile(parent)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the parent was changed (%v)", err)
	}
}

// TestParent: which parents are refused, and what is said of a doubtful one.
func TestParent(t *testing.T) {
	dir := vdisktest.Unpack(t, testdata, "diff-")
	child, parent := filepath.Join(dir, "diff-child-g1.vhd"), filepath.Join(dir, "diff-parent-g1.vhd")
	whole, err := os.ReadFile(parent)
	if err != nil {
		t.Fatal(err)
	}
	foot := len(whole) - 512
	change := func(off int) {
		b := bytes.Clone(whole)
		b[foot+off]++
		seal(b[foot:], 64)
		if err := os.WriteFile(parent, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	change(24 + 3)
	d := vdisktest.Open(t, vhd.Open, child, true)
	if w := d.Info().Warnings; len(w) != 1 || !isField(w[0], "Parent Time Stamp") {
		t.Errorf("a newer parent: warnings %v", w)
	}
	change(68)
	if _, err := vdisktest.TryOpen(t, vhd.Open, child, true); !isField(err, "Parent Unique ID") {
		t.Errorf("another parent: %v", err)
	}
	if err := os.Remove(parent); err != nil {
		t.Fatal(err)
	}
	if _, err := vdisktest.TryOpen(t, vhd.Open, child, true); !errors.Is(err, vdisk.ErrOtherFile) {
		t.Errorf("no parent: %v", err)
	}
	b, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vhd.Open(vdisktest.Memory(b), vdisk.Options{}); !errors.Is(err, vdisk.ErrOtherFile) {
		t.Errorf("no resolver: %v", err)
	}
	self := vdisk.ResolverFunc(func(string, bool) (lun.Device, error) { return vdisktest.Memory(b), nil })
	if _, err := vhd.Open(vdisktest.Memory(b), vdisk.Options{Resolver: self}); !errors.Is(err, vdisk.ErrDepth) {
		t.Errorf("a disk that is its own parent: %v", err)
	}
}

func isField(err error, field string) bool {
	var fe *lun.FormatError
	return errors.As(err, &fe) && fe.Field == field && fe.Format == "vhd"
}

// seal sets the checksum of a structure.
func seal(b []byte, at int) {
	clear(b[at : at+4])
	var s uint32
	for _, v := range b {
		s += uint32(v)
	}
	binary.BigEndian.PutUint32(b[at:], ^s)
}

// small is a dynamic disk of 64 KiB in blocks of 16 KiB, the first two of which
// are allocated: our own writing, for damage and for the fuzzer.
func small() []byte {
	be := binary.BigEndian
	b := make([]byte, 2048+2*(512+16384)+512)
	f := b[:512]
	copy(f, "conectix")
	be.PutUint32(f[12:], 0x10000)
	be.PutUint64(f[16:], 512)
	copy(f[28:], "win ")
	be.PutUint64(f[40:], 65536)
	be.PutUint64(f[48:], 65536)
	be.PutUint32(f[60:], 3)
	seal(f, 64)
	h := b[512:1536]
	copy(h, "cxsparse")
	be.PutUint64(h[16:], 1536)
	be.PutUint32(h[24:], 0x10000)
	be.PutUint32(h[28:], 4)
	be.PutUint32(h[32:], 16384)
	seal(h, 36)
	for i, v := range []uint32{4, 4 + 33, 0xffffffff, 0xffffffff} {
		be.PutUint32(b[1536+4*i:], v)
	}
	for i := range 2 {
		block := b[2048+i*(512+16384):]
		block[0], block[1] = 0xff, 0xf0 // sectors 0 to 11 of 32
		for j := range 12 * 512 {
			block[512+j] = byte(i + 1)
		}
	}
	copy(b[len(b)-512:], f)
	return b
}

func TestDamage(t *testing.T) {
	be := binary.BigEndian
	header := func(b []byte) { seal(b[512:1536], 36) }
	footers := func(b []byte) { seal(b[:512], 64); copy(b[len(b)-512:], b[:512]) }
	for _, c := range []struct {
		name, field string
		damage      func(b []byte) []byte
	}{
		{"both footers", "Checksum", func(b []byte) []byte { b[70]++; b[len(b)-442]++; return b }},
		{"no header", "Data Offset", func(b []byte) []byte { be.PutUint64(b[16:], 1<<63); footers(b); return b }},
		{"header elsewhere", "Cookie", func(b []byte) []byte { be.PutUint64(b[16:], 1024); footers(b); return b }},
		{"type", "Disk Type", func(b []byte) []byte { be.PutUint32(b[60:], 5); footers(b); return b }},
		{"version", "File Format Version", func(b []byte) []byte { b[13] = 2; footers(b); return b }},
		{"huge", "Current Size", func(b []byte) []byte { be.PutUint64(b[48:], 1<<62); footers(b); return b }},
		{"no bytes", "Current Size", func(b []byte) []byte { be.PutUint64(b[48:], 0); footers(b); return b }},
		{"header sum", "Checksum", func(b []byte) []byte { b[512+50]++; return b }},
		{"block size", "Block Size", func(b []byte) []byte { be.PutUint32(b[512+32:], 16385); header(b); return b }},
		{"few entries", "Max Table Entries", func(b []byte) []byte { be.PutUint32(b[512+28:], 3); header(b); return b }},
		{"many entries", "Table Offset", func(b []byte) []byte { be.PutUint32(b[512+28:], 1<<31); header(b); return b }},
		{"table", "Table Offset", func(b []byte) []byte { be.PutUint64(b[512+16:], 1<<40); header(b); return b }},
		{"block beyond the end", "BAT entry 0", func(b []byte) []byte { be.PutUint32(b[1536:], 1<<30); return b }},
		{"block over the header", "BAT entry 0", func(b []byte) []byte { be.PutUint32(b[1536:], 2); return b }},
		{"block over the table", "BAT entry 0", func(b []byte) []byte { be.PutUint32(b[1536:], 3); return b }},
		{"block over the footer", "BAT entry 0", func(b []byte) []byte { be.PutUint32(b[1536:], 0); return b }},
		{"truncated", "BAT entry 1", func(b []byte) []byte { return b[:len(b)-1024] }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := vhd.Open(vdisktest.Memory(c.damage(small())), vdisk.Options{})
			if err == nil {
				_, err = d.ReadAt(make([]byte, d.Size()), 0)
			}
			if !isField(err, c.field) {
				t.Errorf("want an error about %q, got %v", c.field, err)
			}
		})
	}
}

// TestFooterCopy: without its footer a disk is what it was, with a warning.
func TestFooterCopy(t *testing.T) {
	want := make([]byte, 65536)
	for i := range 2 {
		copy(want[i*16384:], bytes.Repeat([]byte{byte(i + 1)}, 12*512))
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"whole":   func(b []byte) []byte { return b },
		"cut off": func(b []byte) []byte { return b[:len(b)-512] },
		"damaged": func(b []byte) []byte { b[len(b)-500]++; return b },
	} {
		d, err := vhd.Open(vdisktest.Memory(damage(small())), vdisk.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := make([]byte, d.Size())
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: other content (%v)", name, err)
		}
		if w := d.Info().Warnings; (len(w) == 0) != (name == "whole") {
			t.Errorf("%s: warnings %v", name, w)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 511), make([]byte, 4096)} {
		if _, err := vhd.Open(vdisktest.Memory(b), vdisk.Options{}); !errors.Is(err, lun.ErrNotFormat) {
			t.Errorf("%d zeroes: %v", len(b), err)
		}
	}
}

// TestOverlap: blocks that share bytes are read and not written.
func TestOverlap(t *testing.T) {
	for entry := uint32(4); entry < 20; entry += 15 {
		b := small()
		binary.BigEndian.PutUint32(b[1540:], entry)
		before := bytes.Clone(b)
		d, err := vhd.Open(vdisktest.Memory(b), vdisk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.ReadAt(make([]byte, d.Size()), 0); err != nil {
			t.Errorf("read: %v", err)
		}
		if _, err := d.WriteAt(make([]byte, 512), 0); !isField(err, "BAT entry 1") {
			t.Errorf("write: %v", err)
		}
		if !bytes.Equal(b, before) {
			t.Error("the refused write changed the file")
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(small())
	b := small()
	binary.BigEndian.PutUint32(b[60:], 4)
	seal(b[:512], 64)
	copy(b[len(b)-512:], b[:512])
	copy(b[512+64:], "\x00p")
	seal(b[512:1536], 36)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		self := vdisk.ResolverFunc(func(name string, _ bool) (lun.Device, error) {
			if len(name) > 4 {
				return nil, fmt.Errorf("no file of %d bytes", len(name))
			}
			return vdisktest.Memory(b), nil
		})
		vdisktest.Hostile(t, vhd.Open, b, vdisk.Options{Resolver: self, Depth: 3})
	})
}

func TestConcurrent(t *testing.T) {
	dir := vdisktest.Unpack(t, testdata, "vpc-")
	vdisktest.Concurrent(t, vdisktest.Open(t, vhd.Open, filepath.Join(dir, "vpc-dynamic.vhd"), false))
}
