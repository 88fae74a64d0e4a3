package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"time"

	"github.com/cleave-san/cleave/integration/results"
)

// A benchmark gets no further runs once it has taken enough, if it has had two,
// and fails when it has taken longest: one that hangs costs its own rows only.
const (
	enough  = 12 * time.Second
	longest = 90 * time.Second
)

// noisy is the share of the processors from which on others disturb the figures.
const noisy = 0.05

// Runner runs benchmarks and keeps their results.
type Runner struct {
	// Rows chooses by name. A benchmark runs whole if one of its rows is chosen.
	Rows *regexp.Regexp
	// Results is the path of the results file. It is written after each
	// benchmark; rows that are not run now stay as they are.
	Results string
	// Table gets the results as they come, and warnings.
	Table io.Writer

	// busy measures what others use of the processors. Default: BusyShare.
	busy func(context.Context) (float64, error)
}

// Run runs what was chosen of the families, and closes all of them. It returns
// an error if a row has no figures or misses its goal, after all of them ran,
// and at once if ctx ends.
func (r Runner) Run(ctx context.Context, families []Family) (err error) {
	defer func() {
		for _, f := range families {
			if f.Close != nil {
				err = errors.Join(err, f.Close())
			}
		}
	}()
	if err := check(families); err != nil {
		return err
	}
	if r.busy == nil {
		r.busy = BusyShare
	}
	all, err := results.Load[Result](r.Results)
	if err != nil {
		return err
	}
	var done []Result
	keep := func(fresh []Result) error {
		for _, res := range fresh {
			fmt.Fprintln(r.Table, line(res))
		}
		done = append(done, fresh...)
		all = merge(all, fresh, names(families))
		return results.Save(r.Results, all)
	}
	fmt.Fprintln(r.Table, header)
	for _, f := range families {
		for _, b := range f.Benchmarks {
			if !r.chosen(b) {
				continue
			}
			fresh, err := r.benchmark(ctx, b)
			if err != nil {
				return err
			}
			if err := keep(fresh); err != nil {
				return err
			}
		}
		for _, m := range f.Means {
			if r.Rows.MatchString(m.Name) {
				if err := keep([]Result{mean(m, all)}); err != nil {
					return err
				}
			}
		}
	}
	return verdict(r.Table, done)
}

func (r Runner) chosen(b Benchmark) bool {
	for _, row := range b.Rows {
		if r.Rows.MatchString(row.Name) {
			return true
		}
	}
	return false
}

// benchmark runs one. Its own failure is in the results; the error is ctx's.
func (r Runner) benchmark(ctx context.Context, b Benchmark) ([]Result, error) {
	busy, err := r.busy(ctx)
	if err != nil {
		return nil, err
	}
	if busy > noisy {
		fmt.Fprintf(r.Table, "# others use %.0f %% of the processors: the next figures are not those of a quiet machine\n", 100*busy)
	}
	most := b.Longest
	if most == 0 {
		most = longest
	}
	limited, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("it took longer than %v", most))
	defer cancel()
	res, err := measure(limited, b)
	if err != nil && limited.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(limited), err)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		res = nil
		for _, row := range b.Rows {
			res = append(res, Result{Name: row.Name, Unit: row.Unit, Better: row.Better, PeerName: b.PeerName, Goal: row.Goal, Why: err.Error()})
		}
	}
	for i := range res {
		res[i].Busy = busy
	}
	return res, nil
}

// measure opens a benchmark and runs both sides of it in turn.
func measure(ctx context.Context, b Benchmark) (res []Result, err error) {
	dir, err := os.MkdirTemp("", "cleave-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	p, err := b.Open(ctx, dir)
	if err != nil {
		return nil, err
	}
	if p.Close != nil {
		defer func() { err = errors.Join(err, p.Close()) }()
	}
	runs := b.Runs
	if runs == 0 {
		runs = 5
	}
	ours, peer := make([][]float64, len(b.Rows)), make([][]float64, len(b.Rows))
	begun := time.Now()
	for i := range runs {
		if i >= 2 && time.Since(begun) > enough {
			break
		}
		first := func() error { return into(ctx, ours, "ours", p.Ours) }
		second := func() error { return into(ctx, peer, b.PeerName, p.Peer) }
		if i%2 == 1 {
			first, second = second, first
		}
		if err := errors.Join(first(), second()); err != nil {
			return nil, err
		}
	}
	name := b.PeerName
	if p.PeerName != "" {
		name = p.PeerName
	}
	for i, row := range b.Rows {
		if row.Limit == 0 && p.Peer == nil {
			return nil, fmt.Errorf("%s has neither a peer nor a limit", row.Name)
		}
		one, err := summarise(row, name, ours[i], peer[i])
		if err != nil {
			return nil, err
		}
		res = append(res, one)
	}
	return res, nil
}

// into runs one side once and adds its figures to those of its rows.
func into(ctx context.Context, figures [][]float64, name string, side Side) error {
	if side == nil {
		return nil
	}
	got, err := side(ctx)
	if err == nil && len(got) != len(figures) {
		err = fmt.Errorf("%d figures for %d rows", len(got), len(figures))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for i, x := range got {
		figures[i] = append(figures[i], x)
	}
	return nil
}

// Main is Run with a directory on tmpfs for the families that make makes.
func (r Runner) Main(ctx context.Context, o Options, families []func(Options) Family) (err error) {
	if o.Memory, err = memoryDir(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.Memory)) }()
	var made []Family
	for _, f := range families {
		made = append(made, f(o))
	}
	begun := time.Now()
	err = r.Run(ctx, made)
	fmt.Fprintf(r.Table, "# %v; %s\n", time.Since(begun).Round(time.Second), r.Results)
	return err
}
