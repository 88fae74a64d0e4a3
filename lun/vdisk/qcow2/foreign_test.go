package qcow2_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/qcow2"
)

// lab makes disks with QEMU's own tools in a directory of its own.
type lab struct {
	testing.TB
	dir string
}

func newLab(t testing.TB) *lab {
	t.Helper()
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: make deps", tool)
		}
	}
	return &lab{t, t.TempDir()}
}

func (l *lab) run(name string, arg ...string) string {
	l.Helper()
	c := exec.Command(name, arg...)
	c.Dir = l.dir
	out, err := c.CombinedOutput()
	if err != nil {
		l.Fatalf("%s %s: %v\n%s", name, strings.Join(arg, " "), err, out)
	}
	return string(out)
}

func (l *lab) img(args string) string { l.Helper(); return l.run("qemu-img", strings.Fields(args)...) }

// io runs qemu-io commands on a qcow2 disk.
func (l *lab) io(image string, cmds ...string) {
	l.Helper()
	args := []string{"-f", "qcow2", "--cache", "unsafe"}
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	l.run("qemu-io", append(args, image)...)
}

func (l *lab) open(name string, o vdisk.Options) (vdisk.Disk, error) {
	l.Helper()
	dev, err := vdisk.Folder(l.dir).Resolve(name, o.ReadOnly)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { vdisk.Close(dev) })
	if o.Resolver == nil {
		o.Resolver = vdisk.Folder(l.dir)
	}
	d, err := qcow2.Open(dev, o)
	if err == nil {
		l.Cleanup(func() { d.Close() })
	}
	return d, err
}

func (l *lab) mustOpen(name string, o vdisk.Options) vdisk.Disk {
	l.Helper()
	d, err := l.open(name, o)
	if err != nil {
		l.Fatalf("%s: %v", name, err)
	}
	return d
}

// raw is what qemu-img makes of a disk, or of an internal snapshot of it.
func (l *lab) raw(name, snapshot string) []byte {
	l.Helper()
	args := []string{"convert", "-t", "unsafe", "-f", "qcow2", "-O", "raw"}
	if snapshot != "" {
		args = append(args, "-l", snapshot)
	}
	l.run("qemu-img", append(args, name, "out.raw")...)
	b, err := os.ReadFile(filepath.Join(l.dir, "out.raw"))
	if err != nil {
		l.Fatal(err)
	}
	return b
}

// compare reads the whole disk in steps of random size, and the map.
func (l *lab) compare(d vdisk.Disk, want []byte) {
	l.Helper()
	if d.Size() != int64(len(want)) {
		l.Fatalf("the disk has %d bytes, want %d", d.Size(), len(want))
	}
	got := make([]byte, len(want))
	r := rand.New(rand.NewPCG(1, 2))
	for off := 0; off < len(got); {
		n := min(1+r.IntN(3<<20), len(got)-off)
		if r.IntN(2) == 0 {
			n = min(1+r.IntN(9000), n)
		}
		if _, err := d.ReadAt(got[off:off+n], int64(off)); err != nil {
			l.Fatal(err)
		}
		off += n
	}
	if i := differ(got, want); i >= 0 {
		l.Fatalf("byte %d is %#x, want %#x", i, got[i], want[i])
	}
	at := int64(0)
	err := d.Extents(0, d.Size(), func(e lun.Extent) error {
		if e.Off != at || e.Len <= 0 {
			l.Fatalf("extent %+v, want one from %d", e, at)
		}
		at += e.Len
		if e.Hole && len(bytes.Trim(want[e.Off:at], "\x00")) > 0 {
			l.Fatalf("extent %+v is no hole", e)
		}
		return nil
	})
	if err != nil || at != d.Size() {
		l.Fatalf("extents up to %d of %d: %v", at, d.Size(), err)
	}
}

func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// compareMap compares the map with qemu-img's. Only for chains of qcow2, since
// QEMU asks the file system about holes of others.
func (l *lab) compareMap(d vdisk.Disk, name string) {
	l.Helper()
	var list []struct {
		Start, Length int64
		Zero, Data    bool
	}
	out := exec.Command("qemu-img", "map", "--output=json", "-f", "qcow2", name)
	out.Dir = l.dir
	b, err := out.Output()
	if err != nil {
		l.Fatal(err)
	}
	if err := json.Unmarshal(b, &list); err != nil {
		l.Fatal(err)
	}
	var want, got []lun.Extent
	add := func(to *[]lun.Extent, e lun.Extent) {
		if n := len(*to); n > 0 && (*to)[n-1].Hole == e.Hole {
			(*to)[n-1].Len += e.Len
			return
		}
		*to = append(*to, e)
	}
	for _, m := range list {
		add(&want, lun.Extent{Off: m.Start, Len: m.Length, Hole: m.Zero || !m.Data})
	}
	if err := d.Extents(0, d.Size(), func(e lun.Extent) error { add(&got, e); return nil }); err != nil {
		l.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		l.Errorf("map %v\nwant %v", got, want)
	}
}

// scatter is random writes, zeroes and discards, as qemu-io takes them.
func scatter(r *rand.Rand, size int64, n int) []string {
	var out []string
	for i := range n {
		off := r.Int64N(size/512) * 512
		length := min((1+r.Int64N(1<<uint(r.IntN(9))))*512, size-off)
		switch r.IntN(8) {
		case 0:
			out = append(out, fmt.Sprintf("write -z %d %d", off, length))
		case 1:
			out = append(out, fmt.Sprintf("write -z -u %d %d", off, length))
		case 2:
			out = append(out, fmt.Sprintf("discard %d %d", off, length))
		default:
			out = append(out, fmt.Sprintf("write -P %d %d %d", 1+i%255, off, length))
		}
	}
	return out
}

var kinds = []struct{ name, options string }{
	{"v2", "compat=0.10"},
	{"v2-512", "compat=0.10,cluster_size=512"},
	{"v3", "compat=1.1"},
	{"512", "cluster_size=512"},
	{"4k", "cluster_size=4k"},
	{"2M", "cluster_size=2M"},
	{"extended-16k", "extended_l2=on,cluster_size=16k"},
	{"extended-128k", "extended_l2=on,cluster_size=128k"},
	{"extended-2M", "extended_l2=on,cluster_size=2M"},
	{"refcount-1", "refcount_bits=1"},
	{"refcount-2", "refcount_bits=2,cluster_size=1k"},
	{"refcount-64-metadata", "refcount_bits=64,preallocation=metadata"},
	{"full", "preallocation=full"},
	{"extended-metadata", "extended_l2=on,preallocation=metadata"},
	{"lazy", "lazy_refcounts=on"},
	{"external", "data_file=external.data"},
	{"external-raw", "data_file=external-raw.data,data_file_raw=on"},
	{"zstd", "compression_type=zstd"},
}

// fileHoles are the kinds with allocated clusters that QEMU knows to be holes
// from the file system.
var fileHoles = map[string]bool{"external": true, "external-raw": true, "refcount-64-metadata": true}

// TestKinds: every kind of disk that qemu-img makes, filled by qemu-io at
// random, equals what qemu-img converts it to, before and after it was written
// in place; and qemu-img finds no fault with it.
func TestKinds(t *testing.T) {
	const size = 7<<20 + 512*3
	for i, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			r := rand.New(rand.NewPCG(7, uint64(i)))
			l.img(fmt.Sprintf("create -q -f qcow2 -o %s d.qcow2 %d", k.options, size))
			l.io("d.qcow2", scatter(r, size, 60)...)
			want := l.raw("d.qcow2", "")
			d := l.mustOpen("d.qcow2", vdisk.Options{})
			l.compare(d, want)
			if !fileHoles[k.name] {
				l.compareMap(d, "d.qcow2")
			}
			l.overwrite(d, r, want)
			if err := d.Sync(); err != nil {
				t.Fatal(err)
			}
			l.img("check -q -f qcow2 d.qcow2")
			if i := differ(l.raw("d.qcow2", ""), want); i >= 0 {
				t.Errorf("after writing in place, byte %d differs", i)
			}
		})
	}
}

// overwrite writes in place wherever that is possible, and into want.
func (l *lab) overwrite(d vdisk.Disk, r *rand.Rand, want []byte) {
	l.Helper()
	before := bytes.Clone(want)
	var done, refused int
	for range 300 {
		off := r.Int64N(d.Size())
		p := make([]byte, min(1+r.Int64N(1<<uint(r.IntN(17))), d.Size()-off))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		switch _, err := d.WriteAt(p, off); {
		case err == nil:
			copy(want[off:], p)
			done++
		case errors.Is(err, vdisk.ErrNotAllocated):
			refused++
			if w := d.Writable(off, int64(len(p))); !errors.Is(w, vdisk.ErrNotAllocated) {
				l.Fatalf("a write was refused, and Writable says %v", w)
			}
		default:
			l.Fatal(err)
		}
	}
	if done == 0 || bytes.Equal(before, want) {
		l.Fatalf("nothing could be written: %d refused", refused)
	}
	l.compare(d, want)
}

// TestCompressed: both ways of packing, with clusters of all sizes. They are
// read, and not written.
func TestCompressed(t *testing.T) {
	for _, kind := range []string{"zlib", "zstd"} {
		for _, cluster := range []string{"512", "4k", "64k", "2M"} {
			t.Run(kind+"-"+cluster, func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				r := rand.New(rand.NewPCG(3, 3))
				const size = 6 << 20
				l.img(fmt.Sprintf("create -q -f qcow2 s.qcow2 %d", size))
				l.io("s.qcow2", scatter(r, size, 40)...)
				l.img("convert -c -O qcow2 -o compression_type=" + kind + ",cluster_size=" + cluster + " s.qcow2 d.qcow2")
				d := l.mustOpen("d.qcow2", vdisk.Options{})
				l.compare(d, l.raw("s.qcow2", ""))
				l.compareMap(d, "d.qcow2")
				err := d.Extents(0, size, func(e lun.Extent) error {
					if e.Hole {
						return nil
					}
					return d.Writable(e.Off, 1)
				})
				if !errors.Is(err, vdisk.ErrNotAllocated) || !strings.Contains(err.Error(), "compressed") {
					t.Errorf("a compressed cluster is writable: %v", err)
				}
			})
		}
	}
}

// TestChain: backing files of all kinds, smaller and larger than their
// children.
func TestChain(t *testing.T) {
	l := newLab(t)
	r := rand.New(rand.NewPCG(11, 1))
	base := make([]byte, 5<<20)
	for i := range base {
		base[i] = byte(r.Uint32())
	}
	if err := os.WriteFile(filepath.Join(l.dir, "base.raw"), base, 0o644); err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		args string
		size int64
	}{
		{"-o cluster_size=4k -b base.raw -F raw one.qcow2", 6 << 20},
		{"-o extended_l2=on,cluster_size=128k -b one.qcow2 -F qcow2 two.qcow2", 8 << 20},
		{"-o compat=0.10 -b two.qcow2 -F qcow2 three.qcow2", 7 << 20},
		{"-o extended_l2=on,compression_type=zstd -b three.qcow2 -F qcow2 four.qcow2", 9 << 20},
	} {
		l.img(fmt.Sprintf("create -q -f qcow2 %s %d", step.args, step.size))
		name := step.args[strings.LastIndexByte(step.args, ' ')+1:]
		l.io(name, scatter(r, step.size, 25)...)
		d := l.mustOpen(name, vdisk.Options{})
		want := l.raw(name, "")
		l.compare(d, want)
		if n := len(d.Info().Parents); n != i+1 || len(d.Info().Warnings) != 0 {
			t.Errorf("%s: %d parents, warnings %v", name, n, d.Info().Warnings)
		}
		if _, err := l.open(name, vdisk.Options{Depth: i + 1}); err != nil {
			t.Errorf("%s with %d parents: %v", name, i+1, err)
		}
		if i == 0 {
			continue
		}
		if _, err := l.open(name, vdisk.Options{Depth: i}); !errors.Is(err, vdisk.ErrDepth) {
			t.Errorf("%s with at most %d parents: %v", name, i, err)
		}
	}
	d := l.mustOpen("four.qcow2", vdisk.Options{})
	want := l.raw("four.qcow2", "")
	l.overwrite(d, r, want)
	if i := differ(l.raw("four.qcow2", ""), want); i >= 0 {
		t.Errorf("after writing in place, byte %d differs", i)
	}
	for _, name := range []string{"one", "two", "three", "four"} {
		l.img("check -q -f qcow2 " + name + ".qcow2")
	}

	none := vdisk.ResolverFunc(func(string, bool) (lun.Device, error) { return nil, errors.New("no") })
	if _, err := l.open("four.qcow2", vdisk.Options{Resolver: none}); !errors.Is(err, vdisk.ErrOtherFile) {
		t.Errorf("a resolver that opens nothing: %v", err)
	}
	// Parents that are not plain names, and one that is its own.
	for _, name := range []string{"/etc/passwd", "../x", "nbd://127.0.0.1:1/x", `json:{"driver":"file","filename":"base.raw"}`} {
		l.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", name, "one.qcow2")
		if _, err := l.open("one.qcow2", vdisk.Options{}); !errors.Is(err, vdisk.ErrOtherFile) {
			t.Errorf("parent %s: %v", name, err)
		}
	}
	l.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "one.qcow2", "one.qcow2")
	if _, err := l.open("one.qcow2", vdisk.Options{}); !errors.Is(err, vdisk.ErrDepth) {
		t.Errorf("a disk that is its own parent: %v", err)
	}
}

// TestInternalSnapshots: each is read as it was, and what they share with the
// active state is not written.
func TestInternalSnapshots(t *testing.T) {
	for _, options := range []string{"compat=0.10", "cluster_size=4k", "extended_l2=on"} {
		t.Run(options, func(t *testing.T) {
			l := newLab(t)
			r := rand.New(rand.NewPCG(5, 5))
			const size = 6 << 20
			l.img(fmt.Sprintf("create -q -f qcow2 -o %s d.qcow2 %d", options, size))
			l.io("d.qcow2", scatter(r, size, 30)...)
			l.img("snapshot -c first d.qcow2")
			l.io("d.qcow2", scatter(r, size, 10)...)
			l.img("snapshot -c second d.qcow2")
			now := int64(size)
			if !strings.Contains(options, "compat=0.10") { // QEMU can't
				now += 1 << 20
				l.img("resize -q -f qcow2 d.qcow2 +1M")
			}
			l.io("d.qcow2", scatter(r, now, 40)...)
			d := l.mustOpen("d.qcow2", vdisk.Options{})
			if s := d.Info().Snapshots; len(s) != 2 || s[0].Name != "first" || s[0].ID != "1" || s[1].Name != "second" || s[0].Unix == 0 {
				t.Fatalf("snapshots %+v", s)
			}
			first, second, want := l.raw("d.qcow2", "first"), l.raw("d.qcow2", "second"), l.raw("d.qcow2", "")
			l.overwrite(d, r, want)
			l.img("check -q -f qcow2 d.qcow2")
			if i := differ(l.raw("d.qcow2", ""), want); i >= 0 {
				t.Errorf("after writing in place, byte %d differs", i)
			}
			for name, want := range map[string][]byte{"first": first, "second": second, "1": first} {
				s := l.mustOpen("d.qcow2", vdisk.Options{Snapshot: name})
				if s.Size() == size { // version 2 does not always record it
					want = want[:size]
				}
				l.compare(s, want)
				if _, err := s.WriteAt([]byte{1}, 0); !errors.Is(err, lun.ErrReadOnly) {
					t.Errorf("snapshot %s was written: %v", name, err)
				}
			}
			if _, err := l.open("d.qcow2", vdisk.Options{Snapshot: "third"}); err == nil {
				t.Error("a snapshot that is not there was opened")
			}
		})
	}
}
