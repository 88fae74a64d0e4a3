package fstest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// Verify compares a reader with what the kernel shows of a copy of the same
// image, in a Pool, after it has mounted and so recovered it.
func Verify(tb testing.TB, f fs.FS, image, kind string, o Options) {
	tb.Helper()
	got, err := Of(f, Device(tb, image))
	if err != nil {
		tb.Fatal(err)
	}
	copied := Clone(tb, image)
	defer os.Remove(copied)
	if f.Info().Replayed != "" {
		o.Recovered = time.Now()
	}
	dir, unmount := Mount(tb, copied, kind, "noatime")
	defer unmount()
	want, err := Host(dir)
	if err != nil {
		tb.Fatal(err)
	}
	Compare(tb, got, want, o)
	if len(want) < 5 {
		tb.Errorf("only %d files", len(want))
	}
	tb.Logf("%d files equal; %s", len(want), f.Info().Replayed)
}

// Cut loads what is mounted at dir and clones its image n times meanwhile, each
// after something was committed and while something is not.
func Cut(tb testing.TB, image, dir string, seed uint64, magic []byte, n int) (cuts []string) {
	tb.Helper()
	ctx, cancel := context.WithCancel(tb.Context())
	var loads sync.WaitGroup
	defer loads.Wait()
	defer cancel()
	for g := range 2 {
		own := fmt.Sprintf("%s/load%d-%d", dir, seed, g)
		if err := os.Mkdir(own, 0o755); err != nil {
			tb.Fatal(err)
		}
		l := NewLoad(own, seed*100+uint64(g))
		l.Magic, l.Sync, l.Largest = magic, true, 1<<20
		loads.Go(func() {
			if err := l.Run(ctx, 1<<30); err != nil {
				tb.Error(err)
			}
		})
	}
	d, err := os.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	defer d.Close()
	for i := range n {
		for range 1 + (seed+uint64(i))%3 {
			if err := unix.Syncfs(int(d.Fd())); err != nil {
				tb.Fatal(err)
			}
		}
		cuts = append(cuts, Clone(tb, image))
	}
	return cuts
}

// Write puts a device's content over an image of its size.
func Write(tb testing.TB, image string, d lun.Device) {
	tb.Helper()
	w, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer w.Close()
	b := make([]byte, 1<<20)
	for off := int64(0); off < d.Size(); off += int64(len(b)) {
		p := b[:min(int64(len(b)), d.Size()-off)]
		if _, err := d.ReadAt(p, off); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.WriteAt(p, off); err != nil {
			tb.Fatal(err)
		}
	}
}
