// Package luntest is what tests share that read disks: a device in memory, and
// the images of lun/testdata, whose README says how they were made.
package luntest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/klauspost/compress/zstd"
)

// ReadOnly is a device in memory that can't be written to. It may be used by
// several goroutines while nobody changes the bytes.
type ReadOnly []byte

func (m ReadOnly) Size() int64                        { return int64(len(m)) }
func (m ReadOnly) Sync() error                        { return nil }
func (m ReadOnly) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }

func (m ReadOnly) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	return copy(p, m[off:]), nil
}

// Testdata is the path of lun/testdata, from a test anywhere in the module.
func Testdata() (string, error) {
	dir, err := os.Getwd() // the package's own directory
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "lun", "testdata"), nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("lun/testdata: no module's directory is above this one")
		}
		dir = up
	}
}

// Unpack writes the image of that name ("lvm-o1-thick-4k") to a file at path,
// over one that is there, with holes where it has zeroes.
func Unpack(name, path string) error {
	return read(name, func(r io.Reader) error {
		out, err := os.Create(path)
		if err != nil {
			return err
		}
		return errors.Join(save(out, r), out.Close())
	})
}

// read has fn read an image from its start.
func read(name string, fn func(io.Reader) error) error {
	dir, err := Testdata()
	if err != nil {
		return err
	}
	in, err := os.Open(filepath.Join(dir, name+".img.zst"))
	if err != nil {
		return err
	}
	defer in.Close()
	z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1)) // no goroutines
	if err != nil {
		return err
	}
	defer z.Close()
	if err := fn(z); err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	return nil
}

func save(f *os.File, r io.Reader) error {
	b, off := make([]byte, 64<<10), int64(0)
	for {
		n, err := io.ReadFull(r, b)
		if !zero(b[:n]) {
			if _, err := f.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return f.Truncate(off)
		}
		if err != nil {
			return err
		}
	}
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// File unpacks an image into a file of the test's own, and returns its path.
func File(tb testing.TB, name string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), name+".img")
	if err := Unpack(name, path); err != nil {
		tb.Fatal(err)
	}
	return path
}

var (
	mu     sync.Mutex
	images = make(map[string]ReadOnly)
)

// Image is the content of an image. All tests of a process share it: none may
// change it in place.
func Image(tb testing.TB, name string) ReadOnly {
	tb.Helper()
	mu.Lock()
	defer mu.Unlock()
	if images[name] == nil {
		err := read(name, func(r io.Reader) (err error) {
			images[name], err = io.ReadAll(r)
			return err
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	return images[name]
}

// Head is a copy of the first n bytes of an image.
func Head(tb testing.TB, name string, n int) []byte {
	tb.Helper()
	b := make([]byte, n)
	err := read(name, func(r io.Reader) error {
		_, err := io.ReadFull(r, b)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// CheckMap fails a test unless the runs that d tells of [off, off+n) cover that in
// order and its holes read as zeroes. It returns how many bytes are holes.
func CheckMap(tb testing.TB, d lun.Device, off, n int64) (holes int64) {
	tb.Helper()
	m, ok := d.(lun.Mapper)
	if !ok {
		tb.Fatalf("%T has no map", d)
	}
	at := off
	var extents []lun.Extent
	if err := m.Extents(off, n, func(e lun.Extent) error {
		if e.Off != at || e.Len <= 0 || e.Len > off+n-at {
			tb.Fatalf("%T: a run of %d bytes at %d, after one that ended at %d", d, e.Len, e.Off, at)
		}
		at += e.Len
		extents = append(extents, e)
		return nil
	}); err != nil {
		tb.Fatal(err)
	}
	if at != off+n {
		tb.Fatalf("%T: the runs end at %d, not at %d", d, at, off+n)
	}
	b := make([]byte, 1<<20)
	for _, e := range extents {
		for at := e.Off; e.Hole && at < e.Off+e.Len; at += int64(len(b)) {
			p := b[:min(int64(len(b)), e.Off+e.Len-at)]
			if _, err := d.ReadAt(p, at); err != nil {
				tb.Fatal(err)
			}
			if !zero(p) {
				tb.Fatalf("%T: there is data in the hole of %d bytes at %d", d, e.Len, e.Off)
			}
			holes += int64(len(p))
		}
	}
	return holes
}
