// Package vdisktest is what the tests of the container packages share: the
// images that other programs made, disks made by qemu-img now, and the checks
// that every container passes whatever its format.
package vdisktest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/klauspost/compress/zstd"
)

// Unpack puts the files of lun/testdata/containers.tar.zst whose names begin
// with one of the prefixes into a new directory, and returns that. testdata is
// the path to lun/testdata.
func Unpack(tb testing.TB, testdata string, prefixes ...string) string {
	tb.Helper()
	f, err := os.Open(filepath.Join(testdata, "containers.tar.zst"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	defer z.Close()
	dir := tb.TempDir()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			tb.Fatal(err)
		}
		name := filepath.Base(h.Name)
		for _, p := range prefixes {
			// Not TypeReg alone: the files are stored sparse.
			if h.Typeflag != tar.TypeDir && strings.HasPrefix(name, p) {
				save(tb, filepath.Join(dir, name), r)
				break
			}
		}
	}
}

// save writes a file, with holes where there are zeroes.
func save(tb testing.TB, path string, r io.Reader) {
	tb.Helper()
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	b, zero, off := make([]byte, 64<<10), make([]byte, 64<<10), int64(0)
	for {
		n, err := io.ReadFull(r, b)
		if !bytes.Equal(b[:n], zero[:n]) {
			if _, err := f.WriteAt(b[:n], off); err != nil {
				tb.Fatal(err)
			}
		}
		off += int64(n)
		if err != nil {
			break
		}
	}
	if err := f.Truncate(off); err != nil {
		tb.Fatal(err)
	}
}

// Open opens a file of a directory by open, with the directory as the resolver.
func Open(tb testing.TB, open vdisk.OpenFunc, path string, readOnly bool) vdisk.Disk {
	tb.Helper()
	d, err := TryOpen(tb, open, path, readOnly)
	if err != nil {
		tb.Fatalf("%s: %v", filepath.Base(path), err)
	}
	return d
}

// TryOpen is Open for images that may be refused. What was opened is closed at
// the end of the test.
func TryOpen(tb testing.TB, open vdisk.OpenFunc, path string, readOnly bool) (vdisk.Disk, error) {
	tb.Helper()
	folder := vdisk.Folder(filepath.Dir(path))
	dev, err := folder.Resolve(filepath.Base(path), readOnly)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { vdisk.Close(dev) })
	d, err := open(dev, vdisk.Options{Resolver: folder, ReadOnly: readOnly})
	if err == nil {
		tb.Cleanup(func() { d.Close() })
	}
	return d, err
}

// Sum is the SHA-256 of a device's content, read in pieces of uneven length, so
// that they begin and end anywhere in a block.
func Sum(tb testing.TB, d lun.Device) string {
	tb.Helper()
	h := sha256.New()
	b := make([]byte, 1<<20+1536)
	for off := int64(0); off < d.Size(); {
		n := min(int64(len(b)), d.Size()-off)
		if _, err := d.ReadAt(b[:n], off); err != nil {
			tb.Fatalf("read %d bytes at %d: %v", n, off, err)
		}
		h.Write(b[:n])
		off += n
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Convert is the SHA-256 of what qemu-img takes the file's content for.
func Convert(tb testing.TB, format, path string) string {
	tb.Helper()
	out := filepath.Join(tb.TempDir(), "raw")
	Run(tb, "qemu-img", "convert", "-f", format, "-O", "raw", path, out)
	f, err := os.Open(out)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		tb.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Need skips the test if a program isn't installed.
func Need(tb testing.TB, program string) {
	tb.Helper()
	if _, err := exec.LookPath(program); err != nil {
		tb.Skipf("%s is not installed", program)
	}
}

// Run runs a program and fails the test if it fails.
func Run(tb testing.TB, program string, args ...string) {
	tb.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		tb.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
}

// Extents checks that a disk's map covers it in order, and that its holes read
// as zeroes.
func Extents(tb testing.TB, d vdisk.Disk) {
	tb.Helper()
	next := int64(0)
	b := make([]byte, 1<<20)
	err := d.Extents(0, d.Size(), func(e lun.Extent) error {
		if e.Off != next || e.Len <= 0 {
			tb.Fatalf("extent %+v, expected one at %d", e, next)
		}
		next += e.Len
		for off := e.Off; e.Hole && off < next; off += int64(len(b)) {
			n := min(int64(len(b)), next-off)
			if _, err := d.ReadAt(b[:n], off); err != nil {
				return err
			}
			if len(bytes.TrimLeft(b[:n], "\x00")) > 0 {
				tb.Fatalf("the hole %+v has data", e)
			}
		}
		return nil
	})
	if err != nil || next != d.Size() {
		tb.Fatalf("the map ends at %d of %d: %v", next, d.Size(), err)
	}
}

// Write writes at n random places of a disk, where it lets itself be written,
// and returns how many bytes it took. What was refused must be refused for not
// being allocated, and must not have changed a byte; what was written must be
// read back, with its surroundings as they were.
func Write(tb testing.TB, d vdisk.Disk, seed uint64, n int) (written int64) {
	tb.Helper()
	r := rand.New(rand.NewPCG(seed, 6))
	for range n {
		off := r.Int64N(d.Size())
		length := min(1+r.Int64N(1<<uint(1+r.IntN(18))), d.Size()-off)
		lo, hi := max(off-700, 0), min(off+length+700, d.Size())
		before, after := make([]byte, hi-lo), make([]byte, hi-lo)
		if _, err := d.ReadAt(before, lo); err != nil {
			tb.Fatal(err)
		}
		p := make([]byte, length)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		verdict := d.Writable(off, length)
		_, err := d.WriteAt(p, off)
		if (verdict == nil) != (err == nil) {
			tb.Fatalf("%d bytes at %d: Writable says %v, WriteAt %v", length, off, verdict, err)
		}
		if err == nil {
			copy(before[off-lo:], p)
			written += length
		} else if !errors.Is(err, vdisk.ErrNotAllocated) {
			tb.Fatalf("%d bytes at %d: %v", length, off, err)
		}
		if _, err := d.ReadAt(after, lo); err != nil || !bytes.Equal(before, after) {
			tb.Fatalf("%d bytes at %d (write: %v) left other bytes than expected: %v", length, off, verdict, err)
		}
	}
	if err := d.Sync(); err != nil {
		tb.Fatal(err)
	}
	return written
}

// Memory is a device in memory.
type Memory []byte

func (m Memory) Size() int64 { return int64(len(m)) }
func (m Memory) Sync() error { return nil }

func (m Memory) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	return copy(p, m[off:]), nil
}

func (m Memory) WriteAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	return copy(m[off:], p), nil
}

// Hostile opens what a fuzzer made and uses it: whatever it is, that must end
// with content or with an error, and a damaged file's error is of a known kind.
func Hostile(tb testing.TB, open vdisk.OpenFunc, data []byte, o vdisk.Options) {
	tb.Helper()
	d, err := open(Memory(data), o)
	if err != nil {
		return
	}
	defer d.Close()
	size := d.Size()
	if size < 0 {
		tb.Fatalf("a disk of %d bytes", size)
	}
	b := make([]byte, min(size, 64<<10))
	for _, off := range []int64{0, size / 3, size - int64(len(b))} {
		if off+int64(len(b)) > size {
			continue
		}
		if _, err := d.ReadAt(b, off); err == nil {
			_, _ = d.WriteAt(b, off)
		}
	}
	if _, err := d.ReadAt(make([]byte, 1), size); !errors.Is(err, lun.ErrOutOfRange) {
		tb.Fatalf("a byte beyond the end: %v", err)
	}
	_ = d.Extents(0, min(size, 16<<20), func(lun.Extent) error { return nil })
}
