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
	// longest is the size of the largest volumes: 16 TiB, less what ext4 can't
	// hold in one file.
	longest = 16*tib - gib
)

// holds are the rows about how long a group split holds writes: from before the
// first admission lock is asked for until the last is released. No write waits
// longer for the split. The figure of a run is the 99th percentile of its
// splits, which is the longest hold where there are fewer than a hundred.
//
// Pools lie on tmpfs. The rows called flat hold volumes of 16 TiB against those
// of 1 GiB; the goal leaves room for the noise of figures of a few microseconds.
// The rows called ext4 lie on the disk, whatever its file system is.
func holds(o bench.Options) []bench.Benchmark {
	var out []bench.Benchmark
	for _, n := range []int{1, 8, 64, 256} {
		asked := 0.0
		if n == 64 {
			asked = 1
		}
		onDisk := 2
		if n > 64 { // a disk takes many seconds to resync so many
			onDisk = 1
		}
		name := fmt.Sprintf("embedded/hold/%d/", n)
		limit := func(what string, goal float64) bench.Row {
			return bench.Row{Name: name + what, Unit: "ms", Better: bench.Lower, Limit: 5, Goal: goal}
		}
		out = append(out,
			bench.Benchmark{
				Rows: []bench.Row{limit("1GiB", asked)}, Runs: 2,
				Open: func(ctx context.Context, _ string) (bench.Pair, error) {
					h, err := newHolder(ctx, o.Memory, n, gib)
					return bench.Pair{Ours: h.p99, Close: h.close}, err
				},
			},
			bench.Benchmark{
				Rows:     []bench.Row{limit("16TiB", asked), {Name: name + "flat", Unit: "ms", Better: bench.Lower, Goal: 0.5}},
				PeerName: "ours, 1 GiB", Runs: 2,
				Open: func(ctx context.Context, _ string) (bench.Pair, error) {
					return holdPair(ctx, o.Memory, longest, o.Memory, gib, n)
				},
			},
			bench.Benchmark{
				Rows:     []bench.Row{limit("ext4", 0), {Name: name + "ext4-tmpfs", Unit: "ms", Better: bench.Lower}},
				PeerName: "ours, tmpfs", Runs: onDisk,
				Open: func(ctx context.Context, dir string) (bench.Pair, error) {
					return holdPair(ctx, dir, gib, o.Memory, gib, n)
				},
			},
		)
	}
	return out
}

// holdPair holds volumes of one place and size against those of another. Both
// sides give two figures, the same twice: for the limit and for the comparison.
func holdPair(ctx context.Context, dir string, size int64, peerDir string, peerSize int64, n int) (bench.Pair, error) {
	ours, err := newHolder(ctx, dir, n, size)
	if err != nil {
		return bench.Pair{}, err
	}
	peer, err := newHolder(ctx, peerDir, n, peerSize)
	if err != nil {
		return bench.Pair{}, errors.Join(err, ours.close())
	}
	twice := func(h *holder) bench.Side {
		return func(ctx context.Context) ([]float64, error) {
			x, err := h.p99(ctx)
			return append(x, x...), err
		}
	}
	return bench.Pair{
		Ours: twice(ours), Peer: twice(peer),
		Close: func() error { return errors.Join(ours.close(), peer.close()) },
	}, nil
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

// longEnough is after what time a run ends that has had a few splits: on a slow
// disk a group of 64 takes a second to split and resync.
const longEnough = 3 * time.Second

// p99 splits the group again and again while it is written to.
func (h *holder) p99(ctx context.Context) ([]float64, error) {
	stop, failed := h.load()
	held, err := h.splitOften(ctx, max(8, min(100, 2000/len(h.volumes))))
	stop()
	if err := errors.Join(err, failed()); err != nil {
		return nil, err
	}
	slices.Sort(held)
	return []float64{held[len(held)*99/100].Seconds() * 1000}, nil
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
	for begun := time.Now(); len(held) < times && (len(held) < 3 || time.Since(begun) < longEnough); {
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
	for _, err := range errs { // one stands for all
		if err != nil {
			return err
		}
	}
	return nil
}
