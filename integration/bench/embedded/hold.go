package embedded

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	array "github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/integration/bench"
)

const (
	gib = 1 << 30
	tib = 1 << 40

	inFlight = 32 // writes over all volumes
	// splits in one run. The figure of a run is the p99 of the holds, which
	// is the second longest of these.
	splits = 100
)

// holds are the rows about how long a group split holds writes: from before the
// first admission lock is asked for until the last is released. No write waits
// longer for the split. Pools lie on tmpfs, and the last rows on the disk's file
// system.
func holds(o bench.Options) []bench.Benchmark {
	var out []bench.Benchmark
	for _, n := range []int{1, 8, 64, 256} {
		asked := 0.0
		if n == 64 {
			asked = 1
		}
		out = append(out, bench.Benchmark{
			Rows: []bench.Row{
				{Name: fmt.Sprintf("embedded/hold/%d/p99", n), Unit: "ms", Better: bench.Lower, Limit: 5, Goal: asked},
			},
			Runs: 3,
			Open: func(ctx context.Context, _ string) (bench.Pair, error) {
				h, err := newHolder(ctx, o.Memory, n, gib)
				return bench.Pair{Ours: h.p99, Close: h.close}, err
			},
		})
	}
	return out
}

// holder is an array whose volumes are written to and split, again and again.
type holder struct {
	a       *array.Array
	dir     string
	ids     []driver.VolumeID
	volumes []*array.Volume
	size    int64
	tags    int
}

func newHolder(ctx context.Context, parent string, n int, size int64) (_ *holder, err error) {
	h := &holder{size: size}
	if h.dir, err = os.MkdirTemp(parent, "hold-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	h.a, err = array.Open(ctx, array.Options{
		StateDir: filepath.Join(h.dir, "state"),
		Pools:    map[string]string{"a": filepath.Join(h.dir, "a"), "b": filepath.Join(h.dir, "b")},
	})
	if err != nil {
		return nil, err
	}
	for i := range n {
		info, err := h.a.CreateVolume(ctx, array.CreateVolume{Name: fmt.Sprintf("v%d", i), Size: size, Pools: []string{"a", "b"}})
		if err != nil {
			return nil, err
		}
		v, err := h.a.OpenVolume(info.ID, "benchmark")
		if err != nil {
			return nil, err
		}
		h.ids, h.volumes = append(h.ids, info.ID), append(h.volumes, v)
	}
	return h, nil
}

func (h *holder) close() error {
	var err error
	if h.a != nil {
		err = h.a.Close()
	}
	return errors.Join(err, os.RemoveAll(h.dir))
}

// p99 splits the group again and again while it is written to.
func (h *holder) p99(ctx context.Context) ([]float64, error) {
	stop, failed := h.load()
	held, err := h.splitOften(ctx, splits)
	stop()
	if err := errors.Join(err, failed()); err != nil {
		return nil, err
	}
	slices.Sort(held)
	return []float64{held[len(held)*99/100-1].Seconds() * 1000}, nil
}

// load has writes of 4 KiB in flight all the time. They go to a few places all
// over each volume, so that memory does not fill up.
func (h *holder) load() (stop func(), failed func() error) {
	places := int64(min(64, max(4, 512/len(h.volumes))))
	quit := make(chan struct{})
	errs := make([]error, inFlight)
	var wg sync.WaitGroup
	for w := range inFlight {
		wg.Go(func() {
			p := make([]byte, 4096)
			for i := w; ; i++ {
				select {
				case <-quit:
					return
				default:
				}
				off := rand.Int64N(places) * (h.size / places)
				if _, errs[w] = h.volumes[i%len(h.volumes)].WriteAt(p, off); errs[w] != nil {
					return
				}
				runtime.Gosched() // the next writer's turn, as an answer to an initiator would be
			}
		})
	}
	return func() { close(quit); wg.Wait() }, func() error { return errors.Join(errs...) }
}

func (h *holder) splitOften(ctx context.Context, times int) ([]time.Duration, error) {
	var held []time.Duration
	for range times {
		h.tags++
		tag := driver.Tag(fmt.Sprintf("t%d", h.tags))
		if err := h.a.Prepare(ctx, h.ids, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true}); err != nil {
			return nil, err
		}
		ss, err := h.a.SplitGroup(ctx, tag, h.ids)
		if err != nil {
			return nil, err
		}
		held = append(held, ss[0].Held)
		if err := h.resync(ctx, ss); err != nil {
			return nil, err
		}
	}
	return held, nil
}

// resync takes all mirrors back at once: each waits for writes under way.
func (h *holder) resync(ctx context.Context, ss []driver.Snapshot) error {
	errs := make([]error, len(ss))
	var wg sync.WaitGroup
	for i, s := range ss {
		wg.Go(func() { errs[i] = h.a.Resync(ctx, s.ID) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
