package extents_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/extents"
	"github.com/cleave-san/cleave/lun/luntest"
)

func collect(into *[]lun.Extent) func(lun.Extent) error {
	return func(e lun.Extent) error {
		*into = append(*into, e)
		return nil
	}
}

// sparse is a file of 1 MiB with data at its second quarter.
func sparse(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt(slices.Repeat([]byte{1}, 256<<10), 256<<10); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFile(t *testing.T) {
	f := sparse(t)
	for _, c := range []struct {
		off, n int64
		want   []lun.Extent
	}{
		{0, 0, nil},
		{0, 1 << 20, []lun.Extent{{Len: 256 << 10, Hole: true}, {Off: 256 << 10, Len: 256 << 10}, {Off: 512 << 10, Len: 512 << 10, Hole: true}}},
		{300 << 10, 100, []lun.Extent{{Off: 300 << 10, Len: 100}}},
		{1<<20 - 512, 512, []lun.Extent{{Off: 1<<20 - 512, Len: 512, Hole: true}}},
	} {
		var got []lun.Extent
		if err := extents.File(f, c.off, c.n, collect(&got)); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%d bytes at %d: %v, %v, want %v", c.n, c.off, got, err, c.want)
		}
	}
	enough := errors.New("enough")
	if err := extents.File(f, 0, 1<<20, func(lun.Extent) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("stopped by the caller: %v", err)
	}
	f.Close()
	if err := extents.File(f, 0, 1<<20, func(lun.Extent) error { return nil }); !errors.Is(err, lun.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestPieces(t *testing.T) {
	a, b := luntest.ReadOnly(make([]byte, 4096)), mapped{sparse(t)}
	var got []lun.Extent
	err := extents.Pieces(1000, 700<<10, func(off int64) (lun.Device, int64, int64) {
		switch {
		case off < 2000:
			return a, off - 1000, 2000 - off // has no map
		case off < 3000:
			return nil, 0, 3000 - off
		}
		return b, off + 512, 1 << 40
	}, collect(&got))
	want := []lun.Extent{{Off: 1000, Len: 1000}, {Off: 2000, Len: 1000}, {Off: 3000, Len: 256<<10 - 3512, Hole: true},
		{Off: 256<<10 - 512, Len: 256 << 10}, {Off: 512<<10 - 512, Len: 188<<10 + 1512, Hole: true}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if err := extents.As(a, 4000, 97, 0, collect(&got)); !errors.Is(err, lun.ErrOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}
	if err := extents.Pieces(0, 1, func(int64) (lun.Device, int64, int64) { return a, 0, 0 }, collect(&got)); err == nil {
		t.Error("a piece without a length is no error")
	}
}

// mapped is a file as a device.
type mapped struct{ *os.File }

func (m mapped) Size() int64 { return 1 << 20 }
func (m mapped) Extents(off, n int64, fn func(lun.Extent) error) error {
	return extents.File(m.File, off, n, fn)
}
