package vmdk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/vdisktest"
	"github.com/cleave-san/cleave/lun/vdisk/vmdk"
)

const testdata = "../../testdata"

const base = "d0070f7eb52be7e5b2c2987d4dd60799998ad796d497c65ac93515924bd76e08"

// The sums are in lun/testdata/README.md.
func TestImages(t *testing.T) {
	dir := vdisktest.Unpack(t, testdata, "vmdk-")
	for name, want := range map[string][2]string{
		"monolithicSparse":     {"monolithicSparse", base},
		"monolithicFlat":       {"monolithicFlat", base},
		"twoGbMaxExtentSparse": {"twoGbMaxExtentSparse", base},
		"twoGbMaxExtentFlat":   {"twoGbMaxExtentFlat", base},
		"streamOptimized":      {"streamOptimized", base},
		"monolithicSparse-zg":  {"monolithicSparse", base},
		"delta":                {"monolithicSparse", "fa688c5221a964c576366aeb5725f10b8687e9b71912ee1fc2a7f27b4a8a5470"},
	} {
		t.Run(name, func(t *testing.T) {
			d := vdisktest.Open(t, vmdk.Open, filepath.Join(dir, "vmdk-"+name+".vmdk"), true)
			if got := vdisktest.Sum(t, d); got != want[1] {
				t.Errorf("content sums to %s, want %s", got, want[1])
			}
			vdisktest.Extents(t, d)
			i := d.Info()
			if i.Variant != want[0] || len(i.Warnings) > 0 || (len(i.Parents) == 1) != (name == "delta") {
				t.Errorf("%+v", i)
			}
		})
	}
	if _, err := vdisktest.TryOpen(t, vmdk.Open, filepath.Join(dir, "vmdk-twoGbMaxExtentSparse-s001.vmdk"), true); !isField(err, "descriptorOffset") {
		t.Errorf("an extent without its descriptor: %v", err)
	}
}

// TestQEMU: disks that qemu-io wrote to are what qemu-img says, before and
// after we wrote to them in place. The big one has two extents.
func TestQEMU(t *testing.T) {
	vdisktest.Need(t, "qemu-img")
	for _, c := range []struct{ o, size string }{{"subformat=monolithicSparse", "21M"}, {"subformat=monolithicSparse,zeroed_grain=on", "21M"},
		{"subformat=monolithicFlat", "21M"}, {"subformat=twoGbMaxExtentSparse", "2100M"}, {"subformat=twoGbMaxExtentFlat", "21M"}} {
		t.Run(c.o, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d.vmdk")
			vdisktest.Run(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", c.o, path, c.size)
			vdisktest.Run(t, "qemu-io", "-f", "vmdk", "-c", "write -P 17 512 1024", "-c", "write -P 3 5M 3M", "-c", "write -z 6M 64K", "-c", "write -P 99 20000K 7K", path)
			d := vdisktest.Open(t, vmdk.Open, path, false)
			compare := func(when string) {
				t.Helper()
				if c.size == "21M" {
					if got, want := vdisktest.Sum(t, d), vdisktest.Convert(t, "vmdk", path); got != want {
						t.Fatalf("%s: content sums to %s, qemu-img says %s", when, got, want)
					}
				}
				vdisktest.Extents(t, d)
			}
			if c.size != "21M" {
				vdisktest.Run(t, "qemu-io", "-f", "vmdk", "-c", "write -P 7 2046M 4M", path)
				d = vdisktest.Open(t, vmdk.Open, path, false) // its files have grown
				across(t, d, 7)
				if _, err := d.WriteAt(bytes.Repeat([]byte{8}, 4<<20), 2046<<20); err != nil {
					t.Fatal(err)
				}
				across(t, d, 8)
				vdisktest.Run(t, "qemu-io", "-r", "-f", "vmdk", "-c", "read -P 8 2046M 4M", path)
				return
			}
			compare("as made")
			if vdisktest.Write(t, d, 1, 60) == 0 {
				t.Fatal("nothing could be written")
			}
			compare("after writing")
		})
	}
}

// across reads over the boundary of two extents.
func across(t *testing.T, d vdisk.Disk, fill byte) {
	t.Helper()
	b := make([]byte, 4<<20)
	if _, err := d.ReadAt(b, 2046<<20); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{fill}, len(b))) {
		t.Fatalf("across extents: other bytes than %d (%v)", fill, err)
	}
}

// TestStream: qemu-img compresses what it wrote at random; nothing is written.
func TestStream(t *testing.T) {
	vdisktest.Need(t, "qemu-img")
	dir := t.TempDir()
	raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "s.vmdk")
	vdisktest.Run(t, "qemu-img", "create", "-q", raw, "21000K")
	vdisktest.Run(t, "qemu-io", "-f", "raw", "-c", "write -P 17 512 1024", "-c", "write -P 3 5M 3M", "-c", "write -P 5 20990K 10K", raw)
	vdisktest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, path)
	d := vdisktest.Open(t, vmdk.Open, path, false)
	if got, want := vdisktest.Sum(t, d), vdisktest.Convert(t, "vmdk", path); got != want {
		t.Errorf("content sums to %s, qemu-img says %s", got, want)
	}
	if _, err := d.WriteAt(make([]byte, 512), 512); !errors.Is(err, lun.ErrReadOnly) {
		t.Errorf("write: %v", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Other programs, unlike qemu-img, write a footer and point to it.
	footed := append(bytes.Clone(b), make([]byte, 3*512)...)
	marker := footed[len(b):]
	marker[0], marker[12] = 1, 3 // one sector, a footer
	copy(marker[512:], b[:512])
	le.PutUint64(footed[56:], 1<<64-1)
	if err := os.WriteFile(path, footed, 0o644); err != nil {
		t.Fatal(err)
	}
	d = vdisktest.Open(t, vmdk.Open, path, true)
	if got, want := vdisktest.Sum(t, d), vdisktest.Convert(t, "vmdk", path); got != want {
		t.Errorf("with a footer: content sums to %s, qemu-img says %s", got, want)
	}
	if _, err := vmdk.Open(vdisktest.Memory(footed[:len(footed)-512]), vdisk.Options{}); !isField(err, "magicNumber") {
		t.Errorf("cut off: %v", err)
	}
	// The first compressed grain begins where the header's overhead ends.
	at := int(binary.LittleEndian.Uint64(b[64:])) * 512
	for _, off := range []int{0, 11, 30} {
		c := bytes.Clone(b)
		c[at+off]++
		d, err := vmdk.Open(vdisktest.Memory(c), vdisk.Options{})
		if err == nil {
			_, err = d.ReadAt(make([]byte, d.Size()), 0)
		}
		var fe *lun.FormatError
		if !errors.As(err, &fe) {
			t.Errorf("byte %d of a grain: %v", off, err)
		}
	}
}

// TestParent: a parent that was written to is no parent any more.
func TestParent(t *testing.T) {
	dir := vdisktest.Unpack(t, testdata, "vmdk-delta", "vmdk-monolithicSparse.vmdk")
	child, parent := filepath.Join(dir, "vmdk-delta.vmdk"), filepath.Join(dir, "vmdk-monolithicSparse.vmdk")
	vdisktest.Write(t, vdisktest.Open(t, vmdk.Open, child, false), 2, 100)
	vdisktest.Open(t, vmdk.Open, child, true)
	if vdisktest.Write(t, vdisktest.Open(t, vmdk.Open, parent, false), 4, 40) == 0 {
		t.Fatal("nothing could be written")
	}
	if _, err := vdisktest.TryOpen(t, vmdk.Open, child, true); !isField(err, "parentCID") {
		t.Errorf("a parent that was written to: %v", err)
	}
	if err := os.Remove(parent); err != nil {
		t.Fatal(err)
	}
	if _, err := vdisktest.TryOpen(t, vmdk.Open, child, true); !errors.Is(err, vdisk.ErrOtherFile) {
		t.Errorf("no parent: %v", err)
	}
}

func isField(err error, field string) bool {
	var fe *lun.FormatError
	return errors.As(err, &fe) && fe.Field == field && fe.Format == "vmdk"
}

var le = binary.LittleEndian

const text = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\nRW 64 SPARSE \"x.vmdk\"\nddb.adapterType = \"ide\"\n"

// small is a sparse disk of 64 sectors in grains of 16, two of which are there:
// our own writing, for damage and for the fuzzer. Descriptor at sector 1,
// redundant directory at 3 and table at 4, directory at 8 and table at 9,
// grains from 16 on.
func small() []byte {
	b := make([]byte, 48*512)
	copy(b, "KDMV")
	le.PutUint32(b[4:], 1)
	le.PutUint32(b[8:], 3)
	for off, v := range map[int]uint64{12: 64, 20: 16, 28: 1, 36: 2, 48: 3, 56: 8, 64: 16} {
		le.PutUint64(b[off:], v)
	}
	le.PutUint32(b[44:], 512)
	copy(b[73:], "\n \r\n")
	copy(b[512:], text)
	for _, gd := range []int{3, 8} {
		le.PutUint32(b[gd*512:], uint32(gd+1))
		le.PutUint32(b[(gd+1)*512:], 16)
		le.PutUint32(b[(gd+1)*512+8:], 32)
	}
	for i := 16 * 512; i < len(b); i++ {
		b[i] = byte(i / 8192)
	}
	return b
}

func smallContent() []byte {
	want := make([]byte, 32768)
	copy(want, bytes.Repeat([]byte{1}, 8192))
	copy(want[16384:], bytes.Repeat([]byte{2}, 8192))
	return want
}

func TestDamage(t *testing.T) {
	both := func(at int, v uint32) func(b []byte) []byte {
		return func(b []byte) []byte {
			le.PutUint32(b[3*512+at:], v)
			le.PutUint32(b[8*512+at:], v)
			return b
		}
	}
	set := func(at int, v uint64) func(b []byte) []byte {
		return func(b []byte) []byte { le.PutUint64(b[at:], v); return b }
	}
	describe := func(from, to string) func(b []byte) []byte {
		return func(b []byte) []byte {
			clear(b[512:1536])
			copy(b[512:1536], strings.Replace(text, from, to, 1))
			return b
		}
	}
	for _, c := range []struct {
		name, field string
		damage      func(b []byte) []byte
	}{
		{"cut off in the header", "magicNumber", func(b []byte) []byte { return b[:100] }},
		{"version", "version", func(b []byte) []byte { b[4] = 4; return b }},
		{"sent as a text", "singleEndLineChar", func(b []byte) []byte { b[75] = '\n'; return b }},
		{"grain size", "grainSize", set(20, 17)},
		{"huge grain", "grainSize", set(20, 1<<40)},
		{"capacity", "capacity", set(12, 1<<60)},
		{"table length", "numGTEsPerGT", func(b []byte) []byte { le.PutUint32(b[44:], 1<<30); return b }},
		{"directory", "gdOffset", func(b []byte) []byte { le.PutUint64(b[48:], 1<<40); le.PutUint64(b[56:], 1<<40); return b }},
		{"directory at the end", "magicNumber", set(56, 1<<64-1)},
		{"descriptor beyond the end", "descriptorOffset", set(28, 1<<40)},
		{"huge descriptor", "descriptorOffset", set(36, 1<<40)},
		{"table beyond the end", "grain directory entry 0", both(0, 1<<20)},
		{"grain beyond the end", "grain table entry 0", both(512, 1<<20)},
		{"grain over the tables", "grain table entry 0", func(b []byte) []byte {
			both(512, 0)(b)
			le.PutUint32(b[4*512:], 3)
			le.PutUint32(b[9*512:], 8)
			return b
		}},
		{"compression", "compressAlgorithm", func(b []byte) []byte { le.PutUint32(b[8:], 1<<16|1<<17); b[77] = 2; return b }},
		{"no CID", "descriptor", describe("CID=12345678\n", "")},
		{"CID", "CID", describe("12345678", "x")},
		{"twice", "CID", describe("version=1\n", "version=1\nCID=1\n")},
		{"parent without a name", "parentFileNameHint", describe("parentCID=ffffffff", "parentCID=1")},
		{"extent type", "type", describe("SPARSE", "SESPARSE")},
		{"no access", "access", describe("RW", "NOACCESS")},
		{"extent size", "size", describe("RW 64", "RW 99999999999999999999")},
		{"extent without a file", "extent", describe(`"x.vmdk"`, "")},
		{"more extents inside", "extent", describe("RW 64", "RW 1 ZERO\nRW 64")},
		{"nonsense", "descriptor", describe("ddb", "nonsense\nddb")},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := vmdk.Open(vdisktest.Memory(c.damage(small())), vdisk.Options{})
			if err == nil {
				_, err = d.ReadAt(make([]byte, d.Size()), 0)
			}
			if !isField(err, c.field) {
				t.Errorf("want an error about %q, got %v", c.field, err)
			}
		})
	}
	for _, b := range [][]byte{nil, make([]byte, 3), make([]byte, 4096), []byte("version")} {
		if _, err := vmdk.Open(vdisktest.Memory(b), vdisk.Options{}); !errors.Is(err, lun.ErrNotFormat) {
			t.Errorf("%q: %v", b[:min(len(b), 8)], err)
		}
	}
}

// TestRedundant: with its first tables damaged a disk is what it was, with a
// warning.
func TestRedundant(t *testing.T) {
	for name, at := range map[string]int{"whole": -1, "directory": 8 * 512, "table": 9 * 512} {
		b := small()
		if at >= 0 {
			le.PutUint32(b[at:], 1<<24)
		}
		d, err := vmdk.Open(vdisktest.Memory(b), vdisk.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := make([]byte, d.Size())
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, smallContent()) {
			t.Errorf("%s: other content (%v)", name, err)
		}
		if w := d.Info().Warnings; (len(w) == 0) != (name == "whole") {
			t.Errorf("%s: warnings %v", name, w)
		}
		if err := d.Writable(0, 512); (err == nil) != (name == "whole") {
			t.Errorf("%s: writable: %v", name, err)
		}
	}
}

// TestOverlap: what shares bytes is read and not written.
func TestOverlap(t *testing.T) {
	for _, at := range []uint32{16, 20, 13} {
		b := small()
		le.PutUint32(b[9*512+8:], at)
		before := bytes.Clone(b)
		d, err := vmdk.Open(vdisktest.Memory(b), vdisk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.ReadAt(make([]byte, d.Size()), 0); err != nil {
			t.Errorf("read: %v", err)
		}
		if _, err := d.WriteAt(make([]byte, 512), 0); !isField(err, "grain table entry 2") {
			t.Errorf("grain at sector %d, write: %v", at, err)
		}
		if !bytes.Equal(b, before) {
			t.Error("the refused write changed the file")
		}
	}
}

// memoryFiles resolves names to memory.
func memoryFiles(files map[string][]byte) vdisk.Resolver {
	return vdisk.ResolverFunc(func(name string, _ bool) (lun.Device, error) {
		if b, ok := files[name]; ok {
			return vdisktest.Memory(b), nil
		}
		return nil, os.ErrNotExist
	})
}

// cowd is a COWD extent of 8 sectors in grains of one: our own writing, since
// no free program makes them.
func cowd() []byte {
	b := make([]byte, (5+32+2)*512)
	copy(b, "COWD")
	for off, v := range map[int]uint32{4: 1, 8: 3, 12: 8, 16: 1, 20: 4, 24: 1} {
		le.PutUint32(b[off:], v)
	}
	le.PutUint32(b[4*512:], 5)
	le.PutUint32(b[5*512+4:], 37)
	le.PutUint32(b[5*512+7*4:], 38)
	copy(b[37*512:], bytes.Repeat([]byte{1}, 512))
	copy(b[38*512:], bytes.Repeat([]byte{7}, 512))
	return b
}

// TestExtents: extents of all kinds in one disk, and QEMU's opinion of it.
func TestExtents(t *testing.T) {
	dir := t.TempDir()
	flat := bytes.Repeat([]byte{9}, 4096)
	desc := "# Disk DescriptorFile\nversion=1\nCID=abcd\nparentCID=ffffffff\ncreateType=\"%s\"\n\nRW 8 VMFSSPARSE \"c.vmdk\"\n"
	more := "RW 64 SPARSE \"s.vmdk\"\nRW 3 FLAT \"f.vmdk\" 2\n"
	files := map[string][]byte{"c.vmdk": cowd(), "s.vmdk": small(), "f.vmdk": flat, "d.vmdk": []byte(fmt.Sprintf(desc, "custom") + more + "RW 5 ZERO\n")}
	want := make([]byte, 4096)
	copy(want[512:], bytes.Repeat([]byte{1}, 512))
	copy(want[3584:], bytes.Repeat([]byte{7}, 512))
	cow := bytes.Clone(want)
	want = append(append(append(want, smallContent()...), flat[:1536]...), make([]byte, 2560)...)
	d, err := vmdk.Open(vdisktest.Memory(files["d.vmdk"]), vdisk.Options{Resolver: memoryFiles(files)})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, d.Size())
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other content (%v)", err)
	}
	vdisktest.Extents(t, d)
	if _, err := d.WriteAt(make([]byte, 512), 4096); !errors.Is(err, lun.ErrReadOnly) {
		t.Errorf("write to a disk with a COWD extent: %v", err)
	}

	vdisktest.Need(t, "qemu-img")
	files["d.vmdk"] = []byte(fmt.Sprintf(desc, "vmfsSparse"))
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "d.vmdk")
	d = vdisktest.Open(t, vmdk.Open, path, true)
	got = make([]byte, d.Size())
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, cow) {
		t.Errorf("COWD: other content (%v)", err)
	}
	// QEMU takes the disk for two of it, so it is asked for the bytes.
	vdisktest.Run(t, "qemu-io", "-r", "-f", "vmdk", "-c", "read -P 0 0 512", "-c", "read -P 1 512 512",
		"-c", "read -P 0 1024 2560", "-c", "read -P 7 3584 512", path)
}

// TestCID: only a write changes the CID, and nothing else of the descriptor.
func TestCID(t *testing.T) {
	b := small()
	d, err := vmdk.Open(vdisktest.Memory(b), vdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt([]byte{1}, 9000); !errors.Is(err, vdisk.ErrNotAllocated) {
		t.Errorf("write to an absent grain: %v", err)
	}
	if !bytes.Equal(b, small()) {
		t.Error("the refused write changed the file")
	}
	if _, err := d.WriteAt([]byte{42}, 100); err != nil {
		t.Fatal(err)
	}
	at := 512 + strings.Index(text, "12345678")
	if string(b[at:at+8]) == "12345678" || b[16*512+100] != 42 {
		t.Errorf("CID %q after a write", b[at:at+8])
	}
	copy(b[at:], "12345678")
	b[16*512+100] = 1
	if !bytes.Equal(b, small()) {
		t.Error("the write changed more than the CID and its byte")
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(small())
	f.Add([]byte("version=1\nCID=1\nRW 8 VMFSSPARSE \"c\"\nRW 64 SPARSE \"s\"\nRW 5 ZERO\nRW 4 FLAT \"f\" 3\n"))
	f.Add([]byte("version=1\nCID=1\nparentCID=1\nparentFileNameHint=\"self\"\nRW 1 FLAT \"self\"\n"))
	b := small()
	le.PutUint32(b[8:], 1|1<<16|1<<17)
	b[77] = 1
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := memoryFiles(map[string][]byte{"self": b, "c": cowd(), "s": small(), "f": make([]byte, 4096)})
		vdisktest.Hostile(t, vmdk.Open, b, vdisk.Options{Resolver: r, Depth: 3})
	})
}

func TestConcurrent(t *testing.T) {
	dir := vdisktest.Unpack(t, testdata, "vmdk-")
	vdisktest.Concurrent(t, vdisktest.Open(t, vmdk.Open, filepath.Join(dir, "vmdk-streamOptimized.vmdk"), false))
}
