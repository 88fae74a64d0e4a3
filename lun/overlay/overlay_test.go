package overlay_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/overlay"
	"pgregory.net/rapid"
)

type memory = luntest.ReadOnly

func noise(n int) memory {
	rnd := rand.New(rand.NewPCG(7, 7))
	m := make(memory, n)
	for i := range m {
		m[i] = byte(rnd.Uint32())
	}
	return m
}

func over(t testing.TB, base lun.Device, o overlay.Options) *overlay.Overlay {
	t.Helper()
	v, err := overlay.Temp(base, t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

// TestBehavesAsADisk compares any run of writes, trims and reads with a plain
// copy of the base, and the base with what it was.
func TestBehavesAsADisk(t *testing.T) {
	base := noise(3<<20 + 512) // the last block is short
	sum := sha256.Sum256(base)
	rapid.Check(t, func(rt *rapid.T) {
		v, err := overlay.Temp(base, "", overlay.Options{})
		if err != nil {
			rt.Fatal(err)
		}
		defer v.Close()
		want := bytes.Clone(base)
		pos := rapid.IntRange(0, len(base)-1)
		size := rapid.OneOf(rapid.IntRange(0, 10000), rapid.IntRange(0, len(base)))
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			off := pos.Draw(rt, "off")
			n := min(size.Draw(rt, "n"), len(base)-off)
			switch rapid.IntRange(0, 3).Draw(rt, "op") {
			case 0, 1:
				p := bytes.Repeat([]byte{byte(rapid.IntRange(0, 255).Draw(rt, "fill"))}, n)
				if _, err := v.WriteAt(p, int64(off)); err != nil {
					rt.Fatal(err)
				}
				copy(want[off:], p)
			case 2:
				if err := v.Trim(int64(off), int64(n)); err != nil {
					rt.Fatal(err)
				}
				clear(want[off : off+n])
			}
			got := make([]byte, n)
			if _, err := v.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, want[off:off+n]) {
				rt.Fatalf("read of %d at %d differs (%v)", n, off, err)
			}
		}
		got := make([]byte, len(base))
		if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			rt.Fatalf("the whole differs (%v)", err)
		}
	})
	if sha256.Sum256(base) != sum {
		t.Error("the base was changed")
	}
}

// TestNeighboursInOneBlock: writers of different bytes of one block, all at
// once, lose nothing of each other.
func TestNeighboursInOneBlock(t *testing.T) {
	base := noise(1 << 20)
	v := over(t, base, overlay.Options{})
	const writers, piece = 8, 128
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(w + 1)}, piece)
			for off := w * piece; off < len(base); off += writers * piece {
				if _, err := v.WriteAt(p, int64(off)); err != nil {
					t.Error(err)
				}
				got := make([]byte, piece)
				if _, err := v.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, p) {
					t.Errorf("at %d: %v, read back %x…", off, err, got[:4])
				}
			}
		})
	}
	wg.Wait()
	got := make([]byte, len(base))
	if _, err := v.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		if want := byte(i/piece%writers + 1); b != want {
			t.Fatalf("byte %d is %d, want %d", i, b, want)
		}
	}
}

func TestLimit(t *testing.T) {
	v := over(t, noise(8<<20), overlay.Options{Limit: 2 << 20})
	var err error
	n := int64(0)
	for ; n < 8<<20 && err == nil; n += 1 << 18 {
		_, err = v.WriteAt(make([]byte, 1<<18), n)
	}
	if !errors.Is(err, lun.ErrNoSpace) || n > 3<<20 {
		t.Errorf("after %d bytes: %v, want ErrNoSpace at the limit", n, err)
	}
	if held, err := v.Held(); err != nil || held > 2<<20 {
		t.Errorf("holds %d (%v)", held, err)
	}
	if _, err := v.WriteAt(bytes.Repeat([]byte{1}, 5000), 100); err != nil {
		t.Errorf("what is held already can't be written again: %v", err)
	}
	if err := v.Trim(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt(make([]byte, 1<<18), 0); err != nil {
		t.Errorf("after space was given back: %v", err)
	}
}

// TestTrimOfAHugeDevice: a mkfs trims the whole device first.
func TestTrimOfAHugeDevice(t *testing.T) {
	v := over(t, hollow(1<<40), overlay.Options{})
	if err := v.Trim(0, v.Size()); err != nil {
		t.Fatal(err)
	}
	if held, err := v.Held(); err != nil || held > 1<<20 {
		t.Errorf("a trimmed device holds %d bytes (%v)", held, err)
	}
	b := []byte{1}
	if _, err := v.ReadAt(b, 1<<39); err != nil || b[0] != 0 {
		t.Errorf("reads %d (%v), want zero", b[0], err)
	}
}

// hollow is a device of ones of any size.
type hollow int64

func (h hollow) Size() int64                        { return int64(h) }
func (h hollow) Sync() error                        { return nil }
func (h hollow) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (h hollow) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = 1
	}
	return len(p), lun.CheckRange(off, int64(len(p)), int64(h))
}

func TestEdges(t *testing.T) {
	base := noise(10000)
	v := over(t, base, overlay.Options{})
	for _, r := range [][2]int64{{-1, 1}, {10000, 1}, {9999, 2}, {1 << 62, 1}} {
		if _, err := v.ReadAt(make([]byte, r[1]), r[0]); !errors.Is(err, lun.ErrOutOfRange) {
			t.Errorf("read %v: %v", r, err)
		}
		if _, err := v.WriteAt(make([]byte, r[1]), r[0]); !errors.Is(err, lun.ErrOutOfRange) {
			t.Errorf("write %v: %v", r, err)
		}
		if err := v.Trim(r[0], r[1]); !errors.Is(err, lun.ErrOutOfRange) {
			t.Errorf("trim %v: %v", r, err)
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"sync": v.Sync(), "trim": v.Trim(0, 1), "again": func() error { _, err := v.ReadAt(make([]byte, 1), 0); return err }()} {
		if !errors.Is(err, lun.ErrClosed) {
			t.Errorf("%s after close: %v", name, err)
		}
	}
}

func TestFileMustBeEmpty(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := overlay.New(noise(4096), f, overlay.Options{}); err == nil {
		t.Error("an overlay over someone's data")
	}
}

// broken fails reads beyond its first block.
type broken struct{ memory }

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off >= overlay.BlockSize {
		return 0, fmt.Errorf("medium error")
	}
	return b.memory.ReadAt(p, off)
}

// TestBaseErrors: a block that can't be copied up stays as it was; a whole
// block can be written all the same.
func TestBaseErrors(t *testing.T) {
	v := over(t, broken{noise(1 << 16)}, overlay.Options{})
	if _, err := v.WriteAt(make([]byte, 10), 5000); err == nil {
		t.Error("a part of an unreadable block was written")
	}
	if _, err := v.ReadAt(make([]byte, 10), 5000); err == nil {
		t.Error("an unreadable block was read after a failed write")
	}
	if _, err := v.WriteAt(make([]byte, overlay.BlockSize), overlay.BlockSize); err != nil {
		t.Error(err)
	}
	if _, err := v.ReadAt(make([]byte, 10), 5000); err != nil {
		t.Error(err)
	}
}
