package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/integration/bench"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// scattered is a volume with 128 MiB of exceptions all over.
var scattered = image{origin: 2 << 30, exceptions: 32768, spacing: 64 << 10, filled: true}

// places are the rows about a recovery in place on a disk, to the last sync:
// how long it takes beside writing the same extents, from memory, with one sync;
// and how much it writes for each byte that was preserved.
func places() []bench.Benchmark {
	return []bench.Benchmark{{
		Rows: []bench.Row{
			{Name: "recovery/in-place/time", Unit: "s", Better: bench.Lower, Goal: 1 / 1.3},
			{Name: "recovery/in-place/written", Unit: "x", Better: bench.Lower, Limit: 1.02, Goal: 1},
		},
		PeerName: "pwrite of the same extents",
		Open: func(_ context.Context, dir string) (bench.Pair, error) {
			path := filepath.Join(dir, "scattered.img")
			if err := scattered.write(path); err != nil {
				return bench.Pair{}, err
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return bench.Pair{}, err
			}
			d, err := open.FromFile(f)
			if err != nil {
				return bench.Pair{}, errors.Join(err, f.Close())
			}
			return bench.Pair{
				Ours:  func(ctx context.Context) ([]float64, error) { return inPlace(ctx, f, d) },
				Peer:  func(context.Context) ([]float64, error) { return plain(f) },
				Close: d.Close,
			}, nil
		},
	}}
}

// inPlace has the snapshot there again, and recovers.
func inPlace(ctx context.Context, f *os.File, d *open.FileDevice) ([]float64, error) {
	if _, err := f.WriteAt(scattered.head(), 0); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	w := &counted{FileDevice: d, f: f}
	begun := time.Now()
	c, err := open.Probe(ctx, open.Source{Name: "disk", Device: w})
	if err != nil {
		return nil, err
	}
	p, err := recovery.PrepareInPlace(ctx, c, recovery.InPlaceOptions{})
	if err != nil {
		return nil, err
	}
	if err := p.Run(ctx, nil); err != nil {
		return nil, err
	}
	took := time.Since(begun)
	if p.Done || p.Bytes() != int64(scattered.exceptions)*chunk {
		return nil, fmt.Errorf("%d bytes were to be written", p.Bytes())
	}
	return []float64{took.Seconds(), float64(w.written.Load()) / float64(p.Bytes())}, nil
}

// plain writes what a recovery writes, where it writes it.
func plain(f *os.File) ([]float64, error) {
	b := make([]byte, chunk)
	begun := time.Now()
	for i := range int64(scattered.exceptions) {
		if _, err := f.WriteAt(b, start+i*scattered.spacing); err != nil {
			return nil, err
		}
	}
	err := f.Sync()
	return []float64{time.Since(begun).Seconds(), 1}, err
}

// counted is a file that is written, and counts it.
type counted struct {
	*open.FileDevice
	f       *os.File
	written atomic.Int64
}

var _ lun.Device = (*counted)(nil)

func (c *counted) WriteAt(p []byte, off int64) (int, error) {
	c.written.Add(int64(len(p)))
	return c.f.WriteAt(p, off)
}

func (c *counted) Sync() error { return c.f.Sync() }
