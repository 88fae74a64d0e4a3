package recovery

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/cleave-san/cleave/integration/bench"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
)

// dense is a volume of which 512 MiB have an exception in every 64 KiB.
var dense = image{origin: 1 << 30, exceptions: 8192, spacing: 64 << 10, filled: true}

// reads are the rows about reading through a view what a guest has changed all
// over, beside reading the split at the same places. All of it is in memory.
func reads(o bench.Options) []bench.Benchmark {
	row := func(name string, goal float64, size int64, count int) bench.Benchmark {
		return bench.Benchmark{
			Rows:     []bench.Row{{Name: "recovery/read/" + name, Unit: "MiB/s", Better: bench.Higher, Goal: goal}},
			PeerName: "the split itself",
			Open: func(ctx context.Context, dir string) (_ bench.Pair, err error) {
				own, err := os.MkdirTemp(o.Memory, "read-")
				if err != nil {
					return bench.Pair{}, err
				}
				clean := func() error { return os.RemoveAll(own) }
				defer func() {
					if err != nil {
						err = errors.Join(err, clean())
					}
				}()
				path := filepath.Join(own, "dense.img")
				if err := dense.write(path); err != nil {
					return bench.Pair{}, err
				}
				d, err := open.File(path)
				if err != nil {
					return bench.Pair{}, err
				}
				v, err := view(ctx, d, dir)
				if err != nil {
					return bench.Pair{}, errors.Join(err, d.Close())
				}
				return bench.Pair{Ours: reader(v.Devices[0], size, count), Peer: reader(d, size, count),
					Close: func() error { return errors.Join(v.Close(), d.Close(), clean()) }}, nil
			},
		}
	}
	return []bench.Benchmark{row("1MiB", 0.9, 1<<20, 2000), row("4KiB", 0.7, 4<<10, 200_000)}
}

// reader reads at random places, always the same, one after the other.
func reader(d lun.Device, size int64, count int) bench.Side {
	return func(context.Context) ([]float64, error) {
		random := rand.New(rand.NewPCG(3, 4))
		places := int64(dense.exceptions) * dense.spacing / size
		b := make([]byte, size)
		begun := time.Now()
		for range count {
			if _, err := d.ReadAt(b, start+random.Int64N(places)*size); err != nil {
				return nil, err
			}
		}
		return []float64{float64(int64(count)*size) / (1 << 20) / time.Since(begun).Seconds()}, nil
	}
}
