package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/integration/bench"
)

const (
	region  = 64 * kib
	changed = 2048 // regions between a split and its resync
)

// resyncs are the rows about putting a split mirror back after changed regions
// of the volume were written to, all over it. What is moved is what this
// process wrote in the meantime, as the kernel counts it, records and bitmaps
// included. The rate is that of the changed bytes until the mirror is in sync,
// which it is when it is stable; so the peer is a copy of a file of as many
// bytes that is synced as well.
func resyncs() []bench.Benchmark {
	return []bench.Benchmark{{
		Rows: []bench.Row{
			{Name: "embedded/resync/moved", Unit: "x", Better: bench.Lower, Limit: 1.05, Goal: 1},
			{Name: "embedded/resync/rate", Unit: "MiB/s", Better: bench.Higher, Goal: 0.7},
		},
		PeerName: "cp --reflink=never, sync", Runs: 5,
		Open: func(ctx context.Context, dir string) (bench.Pair, error) {
			cp, err := newCopier(ctx, dir)
			if err != nil {
				return bench.Pair{}, err
			}
			m, err := newMirrored(ctx, dir, 4*gib)
			if err != nil {
				return bench.Pair{}, err
			}
			n := 0
			ours := func(ctx context.Context) ([]float64, error) {
				n++
				return m.resync(ctx, driver.Tag(fmt.Sprintf("t%d", n)))
			}
			return bench.Pair{Ours: ours, Peer: cp.run, Close: m.close}, nil
		},
	}}
}

// resync splits, changes regions, and measures how they get to the mirror.
func (m *mirrored) resync(ctx context.Context, tag driver.Tag) ([]float64, error) {
	id := driver.VolumeID("v")
	if err := m.a.Prepare(ctx, []driver.VolumeID{id}, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true}); err != nil {
		return nil, err
	}
	s, err := m.a.Split(ctx, tag, id)
	if err != nil {
		return nil, err
	}
	var offs []int64
	for _, i := range rand.Perm(4 * gib / region)[:changed] {
		offs = append(offs, int64(i)*region)
	}
	if err := errors.Join(m.write(ctx, noise(region), offs, 1), m.sync()); err != nil {
		return nil, err
	}
	before, err := written()
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := m.a.Resync(ctx, s.ID); err != nil {
		return nil, err
	}
	if err := m.a.WaitInSync(ctx, id); err != nil {
		return nil, err
	}
	took := time.Since(begun)
	after, err := written()
	return []float64{float64(after-before) / (changed * region), changed * region / mib / took.Seconds()}, err
}

// written is how many bytes this process has written so far (proc(5), wchar).
func written() (int64, error) {
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(b, []byte("wchar: "))
	if !ok {
		return 0, fmt.Errorf("/proc/self/io has no wchar")
	}
	n, _, _ := bytes.Cut(rest, []byte("\n"))
	return strconv.ParseInt(string(n), 10, 64)
}

// copier copies a file of as many bytes as change.
type copier struct{ cp, sync, from, to string }

func newCopier(ctx context.Context, dir string) (c copier, err error) {
	if c.cp, err = bench.Tool("cp"); err != nil {
		return c, err
	}
	if c.sync, err = bench.Tool("sync"); err != nil {
		return c, err
	}
	c.from, c.to = filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := os.WriteFile(c.from, noise(changed*region), 0o600); err != nil {
		return c, err
	}
	return c, command(ctx, c.sync, c.from)
}

func (c copier) run(ctx context.Context) ([]float64, error) {
	if err := os.RemoveAll(c.to); err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := command(ctx, c.cp, "--reflink=never", c.from, c.to); err != nil {
		return nil, err
	}
	if err := command(ctx, c.sync, c.to); err != nil {
		return nil, err
	}
	return []float64{1, changed * region / mib / time.Since(begun).Seconds()}, nil
}

func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %.200s", filepath.Base(name), err, out)
	}
	return nil
}
