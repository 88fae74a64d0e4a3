package cached_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cleave-san/cleave/lun/fs/cached"
)

type counted struct {
	bytes.Reader
	reads atomic.Int64
	fail  atomic.Bool
}

var errMedium = errors.New("medium error")

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	if c.fail.Load() {
		return 0, errMedium
	}
	return c.Reader.ReadAt(p, off)
}

func TestReader(t *testing.T) {
	want := make([]byte, 1<<20+123)
	rand.NewChaCha8([32]byte{1}).Read(want)
	src := &counted{}
	src.Reset(want)
	r := cached.New(src, int64(len(want)), 128<<10)
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 2))
			for range 500 {
				off := rnd.IntN(len(want))
				p := make([]byte, min(rnd.IntN(50000), len(want)-off))
				if n, err := r.ReadAt(p, int64(off)); err != nil || n != len(p) || !bytes.Equal(p, want[off:off+n]) {
					t.Errorf("%d bytes at %d: %d, %v", len(p), off, n, err)
				}
			}
		})
	}
	all.Wait()
	if _, err := r.ReadAt(make([]byte, 2), int64(len(want))-1); err != io.ErrUnexpectedEOF {
		t.Errorf("beyond the end: %v", err)
	}
}

// TestKept: what is used again and again stays, while much else is read once;
// an error is not kept.
func TestKept(t *testing.T) {
	src := &counted{}
	src.Reset(make([]byte, 4<<20))
	r := cached.New(src, 4<<20, 64<<10)
	p := make([]byte, 100)
	for i := range int64(200) {
		for _, off := range []int64{0, 64<<10 + i*16<<10} {
			if off+100 < 4<<20 {
				if _, err := r.ReadAt(p, off); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if n := src.reads.Load(); n > 210 {
		t.Errorf("%d reads of the device for 200 pages and one that is used all the time", n)
	}
	src.fail.Store(true)
	if _, err := r.ReadAt(p, 3<<20+512<<10); !errors.Is(err, errMedium) {
		t.Error(err)
	}
	src.fail.Store(false)
	if _, err := r.ReadAt(p, 3<<20+512<<10); err != nil {
		t.Error(err)
	}
}
