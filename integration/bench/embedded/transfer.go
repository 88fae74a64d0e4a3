package embedded

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	array "github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/integration/bench"
)

const (
	kib = 1 << 10
	mib = 1 << 20

	plainWrites = "two plain pwrite streams"
	plainReads  = "plain pread"
)

// pattern is one way to read or write a device of 100 GiB.
type pattern struct {
	name   string
	unit   string  // of the rate
	scale  float64 // transfers to units
	length int64   // of a transfer
	// Transfers in one run, and in one on tmpfs. Each random one is an extent of
	// each file: that costs tmpfs next to nothing, and a disk that discards what
	// is freed several times as long to remove as to write.
	count, memory int
	// depth is how many of ours are in flight: for a stream as many as the peer
	// has, and for random ones as many as an initiator keeps open.
	depth  int
	random bool
}

var patterns = []pattern{
	{name: "seq-1MiB", unit: "MiB/s", scale: 1, length: mib, count: 256, memory: 256, depth: plainStreams},
	{name: "rand-4KiB", unit: "1/s", scale: 1, length: 4 * kib, count: 1000, memory: 40000, depth: inFlight, random: true},
}

// plainStreams is how many threads write the peer's files: one for each.
const plainStreams = 2

// plainSize is the size of the sparse volume, and of the plain files.
const plainSize = 100 * gib

// writes are the rows about what two mirrors cost. The peer writes the same
// bytes at the same places to two sparse files on the same file system, with a
// thread for each file: no program that keeps two copies can use the processors
// and the disk better. Both sides therefore have two threads' worth of pwrite
// to do; ours has the intent log on top.
//
// The first row of a pattern is the rate of acknowledged writes: data is in the
// page cache of both. The second has the final sync in it, so that what is put
// off is paid for, and includes the writing back on both sides. The rows called
// tmpfs do the same in memory, where nothing hides what the array itself costs.
func writes(o bench.Options) []bench.Benchmark {
	var out []bench.Benchmark
	for _, p := range patterns {
		name := "embedded/write/" + p.name
		out = append(out, bench.Benchmark{
			Rows: []bench.Row{
				{Name: name, Unit: p.unit, Better: bench.Higher, Goal: 0.8},
				{Name: name + "/stable", Unit: p.unit, Better: bench.Higher, Goal: 0.8},
			},
			PeerName: plainWrites, Runs: 5,
			Open: func(ctx context.Context, dir string) (bench.Pair, error) {
				ours, plain, err := devices(ctx, dir)
				if err != nil {
					return bench.Pair{}, err
				}
				return bench.Pair{Ours: p.writing(ours), Peer: p.writing(plain), Close: closeBoth(ours, plain)}, nil
			},
		})
		p.count = p.memory
		out = append(out, bench.Benchmark{
			Rows:     []bench.Row{{Name: name + "/tmpfs", Unit: p.unit, Better: bench.Higher, Goal: 0.8}},
			PeerName: plainWrites, Runs: 5,
			Open: func(ctx context.Context, _ string) (bench.Pair, error) { return p.inMemory(ctx, o.Memory) },
		})
	}
	return out
}

// inMemory is the two sides of a row of acknowledged writes to tmpfs.
func (p pattern) inMemory(ctx context.Context, parent string) (bench.Pair, error) {
	dir, err := os.MkdirTemp(parent, "write-")
	if err != nil {
		return bench.Pair{}, err
	}
	ours, plain, err := devices(ctx, dir)
	if err != nil {
		return bench.Pair{}, errors.Join(err, os.RemoveAll(dir))
	}
	acked := func(d device) bench.Side {
		side := p.writing(d)
		return func(ctx context.Context) ([]float64, error) {
			x, err := side(ctx)
			return x[:1], err
		}
	}
	return bench.Pair{
		Ours: acked(ours), Peer: acked(plain),
		Close: func() error { return errors.Join(closeBoth(ours, plain)(), os.RemoveAll(dir)) },
	}, nil
}

// reads are the rows about what the way through the array costs a reader. What
// is read is in the page cache: the disk would hide the difference.
func reads() []bench.Benchmark {
	const hot = 512 * mib
	var out []bench.Benchmark
	for _, p := range patterns {
		if p.random {
			p.count, p.depth = 300000, 2
		} else {
			p.count, p.depth = 2048, 1
		}
		out = append(out, bench.Benchmark{
			Rows: []bench.Row{
				{Name: "embedded/read/" + p.name, Unit: p.unit, Better: bench.Higher, Goal: 0.95},
			},
			PeerName: plainReads, Runs: 9,
			Open: func(ctx context.Context, dir string) (bench.Pair, error) {
				ours, plain, err := devices(ctx, dir)
				if err != nil {
					return bench.Pair{}, err
				}
				for _, d := range []device{ours, plain} {
					if err := fillUp(ctx, d, hot); err != nil {
						return bench.Pair{}, errors.Join(err, closeBoth(ours, plain)())
					}
				}
				return bench.Pair{Ours: p.reading(ours, hot), Peer: p.reading(plain, hot), Close: closeBoth(ours, plain)}, nil
			},
		})
	}
	return out
}

// device is what both sides of a row are written to and read from.
type device interface {
	// write writes p at each of the offsets, up to depth at once.
	write(ctx context.Context, p []byte, offs []int64, depth int) error
	read(p []byte, off int64) error
	sync() error
	close() error
}

func devices(ctx context.Context, dir string) (ours, plain device, err error) {
	o, err := newMirrored(ctx, dir, plainSize)
	if err != nil {
		return nil, nil, err
	}
	p, err := newPlain(dir, plainSize)
	if err != nil {
		return nil, nil, errors.Join(err, o.close())
	}
	return o, p, nil
}

func closeBoth(x, y device) func() error {
	return func() error { return errors.Join(x.close(), y.close()) }
}

// mirrored is a volume of two mirrors.
type mirrored struct {
	a *array.Array
	v *array.Volume
}

func newMirrored(ctx context.Context, dir string, size int64) (*mirrored, error) {
	a, err := array.Open(ctx, array.Options{
		StateDir: filepath.Join(dir, "state"),
		Pools:    map[string]string{"a": filepath.Join(dir, "a"), "b": filepath.Join(dir, "b")},
	})
	if err != nil {
		return nil, err
	}
	info, err := a.CreateVolume(ctx, array.CreateVolume{Name: "v", Size: size, Pools: []string{"a", "b"}})
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	v, err := a.OpenVolume(info.ID, "benchmark")
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return &mirrored{a: a, v: v}, nil
}

func (m *mirrored) write(ctx context.Context, p []byte, offs []int64, depth int) error {
	return inParallel(depth, func(w int) error {
		for i := w; i < len(offs) && ctx.Err() == nil; i += depth {
			if _, err := m.v.WriteAt(p, offs[i]); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
}

func (m *mirrored) read(p []byte, off int64) error {
	_, err := m.v.ReadAt(p, off)
	return err
}

func (m *mirrored) sync() error  { return m.v.Sync() }
func (m *mirrored) close() error { return errors.Join(m.v.Close(), m.a.Close()) }

// plain is two sparse files.
type plain struct{ f [plainStreams]*os.File }

func newPlain(dir string, size int64) (*plain, error) {
	p := new(plain)
	for i := range p.f {
		var err error
		if p.f[i], err = os.Create(filepath.Join(dir, fmt.Sprintf("plain%d", i))); err == nil {
			err = p.f[i].Truncate(size)
		}
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	return p, nil
}

// write writes to each file from a thread of its own, whatever the depth.
func (d *plain) write(ctx context.Context, p []byte, offs []int64, _ int) error {
	return inParallel(len(d.f), func(w int) error {
		for i := 0; i < len(offs) && ctx.Err() == nil; i++ {
			off := offs[i]
			if _, err := d.f[w].WriteAt(p, off); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
}

func (d *plain) read(p []byte, off int64) error {
	_, err := d.f[0].ReadAt(p, off)
	return err
}

func (d *plain) sync() error { return inParallel(len(d.f), func(w int) error { return d.f[w].Sync() }) }

func (d *plain) close() error {
	var errs []error
	for _, f := range d.f {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

func inParallel(n int, fn func(int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = fn(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// writing is the side that writes to d. Its runs go to other places each time,
// the same for both sides.
func (p pattern) writing(d device) bench.Side {
	buf := noise(p.length)
	r := rand.New(rand.NewPCG(1, 2))
	next := int64(0)
	return func(ctx context.Context) ([]float64, error) {
		offs := make([]int64, p.count)
		for i := range offs {
			if p.random {
				offs[i] = r.Int64N(plainSize/p.length) * p.length
			} else {
				offs[i] = next % plainSize
				next += p.length
			}
		}
		begun := time.Now()
		err := d.write(ctx, buf, offs, p.depth)
		acked := time.Since(begun)
		if err == nil {
			err = d.sync()
		}
		stable := time.Since(begun)
		n := float64(p.count) * p.scale
		return []float64{n / acked.Seconds(), n / stable.Seconds()}, err
	}
}

// reading is the side that reads what fillUp has put into the first size bytes.
func (p pattern) reading(d device, size int64) bench.Side {
	return func(context.Context) ([]float64, error) {
		begun := time.Now()
		err := inParallel(p.depth, func(w int) error {
			r := rand.New(rand.NewPCG(3, uint64(w)))
			buf := make([]byte, p.length)
			for i := w; i < p.count; i += p.depth {
				off := int64(i) * p.length % size
				if p.random {
					off = r.Int64N(size/p.length) * p.length
				}
				if err := d.read(buf, off); err != nil {
					return err
				}
			}
			return nil
		})
		return []float64{float64(p.count) * p.scale / time.Since(begun).Seconds()}, err
	}
}

func fillUp(ctx context.Context, d device, size int64) error {
	var offs []int64
	for off := int64(0); off < size; off += mib {
		offs = append(offs, off)
	}
	return errors.Join(d.write(ctx, noise(mib), offs, 1), d.sync())
}

// noise is bytes that no file system can make holes of.
func noise(n int64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(5, 6))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
