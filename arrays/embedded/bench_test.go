package embedded

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// BenchmarkWrite compares writes to a volume of two mirrors ("ours") with the
// same bytes written by pwrite to two plain files ("plain").
func BenchmarkWrite(b *testing.B) {
	for _, c := range []struct {
		name string
		n    int
		rnd  bool
	}{{"seq-1MiB", mib, false}, {"rand-4KiB", 4096, true}} {
		const size = 1 << 30
		next := func(i int) int64 {
			if c.rnd {
				return rand.Int64N(size/4096) * 4096
			}
			return int64(i) * mib % size
		}
		b.Run(c.name+"/ours", func(b *testing.B) {
			a := open(b, options(testDir(b)))
			_, h := create(b, a, "v", size, "a", "b")
			p := make([]byte, c.n)
			b.SetBytes(int64(c.n))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := h.WriteAt(p, next(i)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.name+"/plain", func(b *testing.B) {
			dir := testDir(b)
			var fs [2]*os.File
			for i := range fs {
				f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
				if err != nil {
					b.Fatal(err)
				}
				defer f.Close()
				f.Truncate(size)
				fs[i] = f
			}
			p := make([]byte, c.n)
			b.SetBytes(int64(c.n))
			for i := 0; b.Loop(); i++ {
				off := next(i)
				for _, f := range fs {
					if _, err := f.WriteAt(p, off); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkHold reports for how long group splits held writes, with 32 writers
// over all volumes.
func BenchmarkHold(b *testing.B) {
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			a := open(b, options(testDir(b)))
			var ids []driver.VolumeID
			var hs []*Volume
			for i := range n {
				info, h := create(b, a, fmt.Sprintf("v%d", i), 64*mib, "a", "b")
				ids, hs = append(ids, info.ID), append(hs, h)
			}
			quit := make(chan struct{})
			var wg sync.WaitGroup
			for w := range 32 {
				wg.Go(func() {
					p := make([]byte, 4096)
					for i := w; ; i++ {
						select {
						case <-quit:
							return
						default:
						}
						hs[i%n].WriteAt(p, rand.Int64N(64*mib/4096)*4096)
					}
				})
			}
			var held []time.Duration
			for i := 0; b.Loop(); i++ {
				tag := driver.Tag(fmt.Sprintf("t%d", i))
				if err := a.Prepare(b.Context(), ids, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true}); err != nil {
					b.Fatal(err)
				}
				ss, err := a.SplitGroup(b.Context(), tag, ids)
				if err != nil {
					b.Fatal(err)
				}
				held = append(held, ss[0].Held)
				for _, s := range ss {
					if err := a.Resync(b.Context(), s.ID); err != nil {
						b.Fatal(err)
					}
				}
			}
			close(quit)
			wg.Wait()
			sort.Slice(held, func(i, j int) bool { return held[i] < held[j] })
			b.ReportMetric(float64(held[len(held)/2].Microseconds()), "p50-held-µs")
			b.ReportMetric(float64(held[len(held)*99/100].Microseconds()), "p99-held-µs")
		})
	}
}
