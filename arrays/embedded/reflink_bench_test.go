package embedded

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// BenchmarkHoldReflink reports for how long snapshots by reflink held writes:
// of an idle volume, of one with 200 MiB that were never synced, and of groups
// with 32 writers over all volumes. Held is the longest of a group's.
func BenchmarkHoldReflink(b *testing.B) {
	for _, c := range []struct {
		name    string
		volumes int
		dirty   int64 // bytes before each split
		writers int
	}{{"1-clean", 1, 0, 0}, {"1-dirty-200MiB", 1, 200 * mib, 0}, {"1-writers", 1, 0, 32}, {"8-writers", 8, 0, 32}, {"64-clean", 64, 0, 0}, {"64-writers", 64, 0, 32}} {
		b.Run(c.name, func(b *testing.B) {
			a := open(b, reflinks(b))
			var ids []driver.VolumeID
			var hs []*Volume
			size := 256 * mib / int64(c.volumes)
			for i := range c.volumes {
				info, h := createBy(b, a, fmt.Sprintf("v%d", i), size, ByReflink, "a")
				write(b, h, 0, mib, '0')
				ids, hs = append(ids, info.ID), append(hs, h)
			}
			quit := make(chan struct{})
			var wg sync.WaitGroup
			for w := range c.writers {
				wg.Go(func() {
					p := make([]byte, 4096)
					for i := w; ; i++ {
						select {
						case <-quit:
							return
						default:
						}
						if _, err := hs[i%len(hs)].WriteAt(p, rand.Int64N(mib/4096)*4096); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			var held []time.Duration
			for i := 0; b.Loop(); i++ {
				for off := int64(0); off < c.dirty; off += mib {
					write(b, hs[0], off, mib, byte(i))
				}
				ss, err := a.SplitGroup(b.Context(), driver.Tag(fmt.Sprintf("t%d", i)), ids)
				if err != nil {
					b.Fatal(err)
				}
				longest := time.Duration(0)
				for _, s := range ss {
					longest = max(longest, s.Held)
					if err := a.Delete(b.Context(), s.ID); err != nil {
						b.Fatal(err)
					}
				}
				held = append(held, longest)
			}
			close(quit)
			wg.Wait()
			slices.Sort(held)
			b.ReportMetric(float64(held[len(held)/2].Microseconds()), "p50-held-µs")
			b.ReportMetric(float64(held[len(held)*99/100].Microseconds()), "p99-held-µs")
		})
	}
}
