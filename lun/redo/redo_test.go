package redo_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/redo"
)

const size = 1 << 16

// disk is one in memory; after fails writes are left, every write fails.
type disk struct {
	b     []byte
	left  int
	limit bool
}

var errBroken = errors.New("broken")

func newDisk() *disk { return &disk{b: bytes.Repeat([]byte{7}, size)} }

func (d *disk) Size() int64 { return int64(len(d.b)) }
func (d *disk) Sync() error { return nil }
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	return copy(p, d.b[off:]), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	if d.limit {
		if d.left--; d.left < 0 {
			return 0, errBroken
		}
	}
	return copy(d.b[off:], p), nil
}

func devices(d ...*disk) (out []lun.Device) {
	for _, x := range d {
		out = append(out, x)
	}
	return out
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

// journal makes a sealed one of two devices.
func journal(t testing.TB, f redo.File) {
	t.Helper()
	w, err := redo.Create(f, []int64{size, size}, []byte("a note"))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{w.Guard(0, 8192, fill(1, 512)), w.Guard(1, 0, fill(2, 512)), w.Add(0, 0, fill(3, 8192)), w.Add(0, 8704, fill(4, 512)), w.Add(1, size-3, fill(5, 3)), w.Seal()} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func newFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestApply fails in every write in turn; applied again, the result is the same, and
// in between the devices say of what they are.
func TestApply(t *testing.T) {
	f := newFile(t)
	if _, err := redo.Open(t.Context(), f); !errors.Is(err, redo.ErrNone) || !errors.Is(redo.Sealed(f), redo.ErrNone) {
		t.Fatalf("an empty file: %v", err)
	}
	journal(t, f)
	if err := redo.Sealed(f); err != nil {
		t.Error(err)
	}
	want := [2]*disk{newDisk(), newDisk()}
	copy(want[0].b, fill(3, 8192))
	copy(want[0].b[8192:], fill(1, 512))
	copy(want[0].b[8704:], fill(4, 512))
	copy(want[1].b, fill(2, 512))
	copy(want[1].b[size-3:], fill(5, 3))
	for n := range 8 {
		a, b := newDisk(), newDisk()
		devs := devices(a, b)
		a.limit, a.left = true, n
		j, err := redo.Open(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		if string(j.Note) != "a note" || j.Bytes != 512+512+8192+512+3 || !j.Fits(devs) {
			t.Errorf("%+v", j)
		}
		if begun, err := j.Begun(devs); begun || err != nil {
			t.Errorf("begun %t, %v", begun, err)
		}
		err = j.Apply(t.Context(), devs, nil)
		whole, _ := j.Applied(t.Context(), devs)
		begun, _ := j.Begun(devs)
		if (err == nil) != whole || err != nil && !errors.Is(err, errBroken) || begun != (n >= 1 && n < 4) {
			t.Errorf("%d writes: %v, all is there: %t, begun: %t", n, err, whole, begun)
		}
		if err := redo.Check(a, 8192); (err != nil) != begun {
			t.Errorf("%d writes: begun: %t, and a look at the guard says %v", n, begun, err)
		}
		a.limit = false
		if j, err = redo.Open(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		last := int64(0)
		if err := j.Apply(t.Context(), devs, func(n int64) { last = n }); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a.b, want[0].b) || !bytes.Equal(b.b, want[1].b) || last != j.Bytes {
			t.Errorf("%d writes, then all of them: that is not it; %d of %d bytes", n, last, j.Bytes)
		}
	}
}

// TestDamaged turns each bit of a journal's in turn: it is refused, or was none, and
// never another one.
func TestDamaged(t *testing.T) {
	f := newFile(t)
	journal(t, f)
	good, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(good) {
		if i >= 512+22 && i < 1024 { // nothing is between the note and the records
			continue
		}
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		var fe *lun.FormatError
		if _, err := redo.Open(t.Context(), contents(bad)); !errors.As(err, &fe) {
			t.Fatalf("byte %d is another: %v", i, err)
		}
	}
	for n := range len(good) {
		if _, err := redo.Open(t.Context(), contents(good[:n])); err == nil || n > 0 && errors.Is(err, redo.ErrNone) {
			t.Fatalf("only %d bytes of %d are there: %v", n, len(good), err)
		}
	}
	var fe *lun.FormatError
	if _, err := redo.Open(t.Context(), contents(make([]byte, 4096))); !errors.As(err, &fe) {
		t.Errorf("somebody's file of zeroes: %v", err)
	}
	// One that was not sealed is none.
	w, err := redo.Create(f, []int64{size}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := redo.Open(t.Context(), f); !errors.Is(err, redo.ErrNone) {
		t.Errorf("one that is not sealed: %v", err)
	}
	for _, err := range []error{w.Add(1, 0, fill(1, 1)), w.Add(0, size, fill(1, 1)), w.Add(0, -1, fill(1, 1)), w.Add(0, 0, nil), w.Guard(0, 0, fill(1, 512))} {
		if !errors.Is(err, lun.ErrOutOfRange) {
			t.Errorf("what no journal takes: %v", err)
		}
	}
}

// contents is a file that is only read.
type contents []byte

func (c contents) Sync() error                        { return nil }
func (c contents) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (c contents) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(c).ReadAt(p, off)
}

// FuzzOpen: what is opened is applied within its devices.
func FuzzOpen(f *testing.F) {
	file := newFile(f)
	journal(f, file)
	good, err := os.ReadFile(file.Name())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:1024])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		if b = bytes.Clone(b); len(b) >= 512 { // else nothing comes past it
			binary.LittleEndian.PutUint32(b[508:], crc32.Checksum(b[:508], crc32.MakeTable(crc32.Castagnoli)))
		}
		j, err := redo.Open(context.Background(), contents(b))
		if err != nil {
			return
		}
		var devs []lun.Device
		for _, n := range j.Sizes {
			if n > size {
				return
			}
			devs = append(devs, &disk{b: make([]byte, n)})
		}
		if _, err := j.Applied(context.Background(), devs); err != nil {
			t.Fatal(err)
		}
		if err := j.Apply(context.Background(), devs, nil); err != nil && !errors.Is(err, lun.ErrReadOnly) {
			t.Fatal(err)
		}
	})
}
