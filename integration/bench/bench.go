package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Better is the direction in which a figure improves.
type Better string

const (
	Higher Better = "higher"
	Lower  Better = "lower"
)

// ErrMissing is wrapped by errors of Open that say that a peer is not installed.
var ErrMissing = errors.New("not installed")

// Row describes one figure of a benchmark.
type Row struct {
	Name   string // family/what/variant, unique
	Unit   string
	Better Better
	// Goal is the smallest ratio that was asked for; 0 if none was. "CPU at
	// most 0.6 of theirs" is a ratio of at least 1/0.6.
	Goal float64
	// Limit is an absolute figure that was asked for, 0 if none was. It stands
	// in for the peer's: with a Goal of 1 the row must reach it, with a Goal of
	// 0 it is there to be compared.
	Limit float64
}

// Side measures its side of a benchmark once and returns one figure for each
// of the benchmark's rows, all above 0.
type Side func(context.Context) ([]float64, error)

// Pair is a benchmark that is ready to run. Close gives back what Open took; it
// may be nil.
type Pair struct {
	Ours Side
	Peer Side // nil if every row has a Limit
	// PeerName, if not empty, takes the place of the benchmark's: with the
	// version that was found, say.
	PeerName string
	Close    func() error
}

// Benchmark measures rows against one peer.
type Benchmark struct {
	Rows     []Row
	PeerName string
	// Runs is how many of each side; 0 is 5. There are fewer, but two, where they
	// take long.
	Runs int
	// Longest is after what time it is given up; 0 is 90 seconds. Sides are told
	// by their context.
	Longest time.Duration
	// Open makes all ready that is not to be measured. dir is an empty
	// directory of its own on a disk, removed afterwards.
	Open func(ctx context.Context, dir string) (Pair, error)
}

// Mean is a row that is the geometric mean of the ratios of others.
type Mean struct {
	Name string
	Of   []string // names of rows, of any family
	Goal float64
}

// Family is the benchmarks of one part of the project.
type Family struct {
	Name       string // what the names of its rows begin with
	Benchmarks []Benchmark
	Means      []Mean
	Close      func() error // may be nil; called once, after the last benchmark
}

// Options is what a family may use.
type Options struct {
	// Logger is told what happens while rows are made.
	Logger *slog.Logger
	// Memory is a directory on tmpfs that is the run's own.
	Memory string
}

// Tool finds a program, or says that it is missing.
func Tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w (make deps)", name, ErrMissing)
	}
	return path, nil
}

// Output runs a program and returns what it prints. What it says on its standard
// error is in the error.
func Output(ctx context.Context, tool string, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %.300s", err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// memoryDir makes a directory of ours on tmpfs.
func memoryDir() (string, error) {
	dir, err := os.MkdirTemp("/dev/shm", "cleave-bench-")
	if err != nil {
		return "", fmt.Errorf("a directory on tmpfs: %w", err)
	}
	return dir, nil
}

// check refuses lists that would give rows without a meaning.
func check(families []Family) error {
	seen := map[string]bool{}
	add := func(family, name string) error {
		if len(name) <= len(family)+1 || name[:len(family)+1] != family+"/" {
			return fmt.Errorf("row %q is not named for its family %q", name, family)
		}
		if seen[name] {
			return fmt.Errorf("two rows are named %q", name)
		}
		seen[name] = true
		return nil
	}
	for _, f := range families {
		for _, b := range f.Benchmarks {
			if len(b.Rows) == 0 {
				return fmt.Errorf("a benchmark of %s has no rows", f.Name)
			}
			for _, r := range b.Rows {
				if err := add(f.Name, r.Name); err != nil {
					return err
				}
				if r.Better != Higher && r.Better != Lower {
					return fmt.Errorf("row %q: which is better, higher or lower?", r.Name)
				}
			}
		}
		for _, m := range f.Means {
			if err := add(f.Name, m.Name); err != nil {
				return err
			}
			if len(m.Of) == 0 {
				return fmt.Errorf("row %q is a mean of nothing", m.Name)
			}
		}
	}
	return nil
}

// names lists all rows in the order in which they are reported.
func names(families []Family) []string {
	var out []string
	for _, f := range families {
		for _, b := range f.Benchmarks {
			for _, r := range b.Rows {
				out = append(out, r.Name)
			}
		}
		for _, m := range f.Means {
			out = append(out, m.Name)
		}
	}
	return out
}

// List writes the names of all rows.
func List(w io.Writer, families []Family) {
	for _, n := range names(families) {
		fmt.Fprintln(w, n)
	}
}
