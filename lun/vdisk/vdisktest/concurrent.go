package vdisktest

import (
	"bytes"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/lun/vdisk"
)

// Concurrent reads a disk from several goroutines at once, one of which writes
// back what it read where it may; the content stays as it was.
func Concurrent(tb testing.TB, d vdisk.Disk) {
	tb.Helper()
	const piece = 48<<10 + 512
	want := make([]byte, min(d.Size(), 8<<20))
	if _, err := d.ReadAt(want, 0); err != nil {
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			b := make([]byte, piece)
			for off := g * 4096; off+piece <= len(want); off += piece {
				if _, err := d.ReadAt(b, int64(off)); err != nil || !bytes.Equal(b, want[off:off+piece]) {
					tb.Errorf("%d bytes at %d: other content (%v)", piece, off, err)
					return
				}
				if g == 0 && d.Writable(int64(off), piece) == nil {
					if _, err := d.WriteAt(b, int64(off)); err != nil {
						tb.Errorf("write at %d: %v", off, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}
