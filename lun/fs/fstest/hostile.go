package fstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// Memory is a device in memory that counts what is read of it and fails a write.
type Memory struct {
	Bytes []byte
	Read  int64
}

func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	m.Read += int64(len(p))
	return copy(p, m.Bytes[off:]), nil
}

func (m *Memory) WriteAt([]byte, int64) (int, error) {
	return 0, errors.New("a reader wrote to the device")
}
func (m *Memory) Size() int64 { return int64(len(m.Bytes)) }
func (m *Memory) Sync() error { return nil }

// Mutate changes a copy of an image as the fuzzer says: each twelve bytes are a
// place and what is put there, the first four of them or all eight, at even
// places; the places are where wild selects.
func Mutate(image, how []byte) []byte {
	b := append([]byte(nil), image...)
	for ; len(how) >= 12; how = how[12:] {
		at := int(binary.LittleEndian.Uint32(how) % uint32(len(b)-8) &^ 1)
		n := 2 << (how[3] % 3)
		copy(b[at:at+n], how[4:])
	}
	return b
}

var errEnough = errors.New("enough")

// Exercise reads all that a file system of a stranger has, up to a bound, and
// fails the test for an error of no kind.
func Exercise(tb testing.TB, f fs.FS) {
	tb.Helper()
	files, budget := 0, int64(32<<20)
	err := fs.Walk(f, f.Root(), func(v fs.Visit) error {
		if files++; files > 2000 || budget < 0 {
			return errEnough
		}
		Sensible(tb, v.Err)
		if v.Err != nil {
			return nil
		}
		Sensible(tb, f.Xattrs(v.Stat.Ref, func(name string, value []byte) error {
			if name == "" || len(value) > fs.MaxXattr {
				tb.Errorf("attribute %q of %d bytes", name, len(value))
			}
			budget -= int64(len(value))
			if budget < 0 {
				return errEnough
			}
			return nil
		}))
		switch v.Stat.Type {
		case fs.Symlink:
			target, err := f.Readlink(v.Stat.Ref)
			if len(target) > fs.MaxTarget {
				tb.Errorf("a target of %d bytes", len(target))
			}
			Sensible(tb, err)
		case fs.Regular:
			budget -= read(tb, f, v.Stat.Ref)
		}
		return nil
	})
	Sensible(tb, err)
}

// read reads a file's beginning, middle and end, and its map.
func read(tb testing.TB, f fs.FS, r fs.Ref) (n int64) {
	tb.Helper()
	c, err := f.Open(r)
	if err != nil {
		Sensible(tb, err)
		return 0
	}
	b := make([]byte, 256<<10)
	for _, off := range []int64{0, c.Size() / 2, max(0, c.Size()-100)} {
		k, err := c.ReadAt(b, off)
		if n += int64(k); err != io.EOF {
			Sensible(tb, err)
		}
	}
	at, runs := int64(0), 0
	Sensible(tb, c.Extents(0, c.Size(), func(e fs.Extent) error {
		if e.Off != at || e.Len <= 0 || e.Len > c.Size()-at {
			tb.Errorf("extent %+v after byte %d of %d", e, at, c.Size())
			return errEnough
		}
		if at += e.Len; runs > 2000 {
			return errEnough
		}
		runs++
		return nil
	}))
	return n + int64(runs)*1000
}

// Sensible wants an error that names what is wrong, in one line.
func Sensible(tb testing.TB, err error) {
	tb.Helper()
	if err == nil || errors.Is(err, errEnough) {
		return
	}
	if strings.ContainsAny(err.Error(), "\n") {
		tb.Errorf("an error of several lines: %q", err)
	}
	var fe *lun.FormatError
	if errors.As(err, &fe) {
		if fe.Format == "" || fe.Field == "" || fe.Reason == "" {
			tb.Errorf("%#v", fe)
		}
		return
	}
	for _, known := range []error{lun.ErrNotFormat, fs.ErrNotExist, fs.ErrNotDir, fs.ErrNotFile, fs.ErrDirty, fs.ErrEncrypted, fs.ErrTooDeep} {
		if errors.Is(err, known) {
			return
		}
	}
	tb.Errorf("an error of no kind: %v", fmt.Errorf("%w", err))
}
