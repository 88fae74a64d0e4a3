package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/integration/results"
)

// figures is a side whose runs give these, one after the other.
func figures(order *[]string, who string, xs ...float64) Side {
	return func(context.Context) ([]float64, error) {
		if order != nil {
			*order = append(*order, who)
		}
		x := xs[0]
		xs = append(xs[1:], x)
		return []float64{x}, nil
	}
}

func pair(p Pair, err error) func(context.Context, string) (Pair, error) {
	return func(context.Context, string) (Pair, error) { return p, err }
}

// try runs families and returns the results file's rows, the table and the error.
func try(t *testing.T, path, rows string, busy float64, families ...Family) ([]Result, string, error) {
	t.Helper()
	var table bytes.Buffer
	r := Runner{
		Rows: regexp.MustCompile(rows), Results: path, Table: &table,
		busy: func(context.Context) (float64, error) { return busy, nil },
	}
	err := r.Run(t.Context(), families)
	res, lerr := results.Load[Result](path)
	if lerr != nil {
		t.Fatal(lerr)
	}
	return res, table.String(), err
}

func TestRun(t *testing.T) {
	var order []string
	closed := 0
	path := filepath.Join(t.TempDir(), "deep", "results.json")
	f := Family{
		Name: "f",
		Benchmarks: []Benchmark{
			{
				Rows: []Row{{Name: "f/speed", Unit: "MB/s", Better: Higher, Goal: 1.5}}, PeerName: "peer", Runs: 3,
				Open: pair(Pair{
					Ours: figures(&order, "ours", 30, 20, 40), Peer: figures(&order, "peer", 10, 10, 20),
					PeerName: "peer 1.0", Close: func() error { closed++; return nil },
				}, nil),
			},
			{
				Rows: []Row{{Name: "f/time", Unit: "ms", Better: Lower, Goal: 1, Limit: 5}}, Runs: 2,
				Open: pair(Pair{Ours: figures(nil, "", 2, 3)}, nil),
			},
			{
				Rows: []Row{{Name: "f/slow", Unit: "MB/s", Better: Higher, Goal: 1}}, PeerName: "peer", Runs: 1,
				Open: pair(Pair{Ours: figures(nil, "", 1), Peer: figures(nil, "", 2)}, nil),
			},
			{
				Rows: []Row{{Name: "f/absent", Unit: "MB/s", Better: Higher}}, PeerName: "tgtd",
				Open: pair(Pair{}, fmt.Errorf("tgtd: %w", ErrMissing)),
			},
			{
				Rows: []Row{{Name: "f/zero", Unit: "MB/s", Better: Higher}}, PeerName: "peer",
				Open: pair(Pair{Ours: figures(nil, "", 1), Peer: figures(nil, "", 0)}, nil),
			},
			{
				Rows: []Row{{Name: "f/nobody", Unit: "MB/s", Better: Higher}},
				Open: pair(Pair{Ours: figures(nil, "", 1)}, nil),
			},
		},
		Means: []Mean{
			{Name: "f/mean", Of: []string{"f/speed", "f/slow"}, Goal: 1.1},
			{Name: "f/hollow", Of: []string{"f/speed", "f/absent"}},
		},
		Close: func() error { closed++; return nil },
	}
	got, table, err := try(t, path, ".", 0.3, f)
	if err == nil || !strings.Contains(err.Error(), "6 of 8 rows are no success") {
		t.Errorf("error: %v", err)
	}
	if closed != 2 {
		t.Errorf("%d closed, want the pair and the family", closed)
	}
	if want := []string{"ours", "peer", "peer", "ours", "ours", "peer"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	want := []Result{
		{Name: "f/speed", Unit: "MB/s", Better: Higher, Ours: 30, PeerName: "peer 1.0", Peer: 10, Ratio: 2, Goal: 1.5, Runs: 3, Min: 2, Max: 3, Busy: 0.3},
		{Name: "f/time", Unit: "ms", Better: Lower, Ours: 2.5, PeerName: "goal", Peer: 5, Ratio: (2.5 + 5.0/3) / 2, Goal: 1, Runs: 2, Min: 5.0 / 3, Max: 2.5, Busy: 0.3},
		{Name: "f/slow", Unit: "MB/s", Better: Higher, Ours: 1, PeerName: "peer", Peer: 2, Ratio: 0.5, Goal: 1, Runs: 1, Min: 0.5, Max: 0.5, Busy: 0.3},
		{Name: "f/absent", Unit: "MB/s", Better: Higher, PeerName: "tgtd", Busy: 0.3, Why: "tgtd: not installed"},
		{Name: "f/zero", Unit: "MB/s", Better: Higher, PeerName: "peer", Busy: 0.3, Why: "f/zero: a run gave 0 MB/s"},
		{Name: "f/nobody", Unit: "MB/s", Better: Higher, Busy: 0.3, Why: "f/nobody has neither a peer nor a limit"},
		{Name: "f/mean", Unit: "x", Better: Higher, Ours: 1, PeerName: "mean of 2 rows", Peer: 1, Ratio: 1, Goal: 1.1, Runs: 1, Min: 0.5, Max: 2, Busy: 0.3},
		{Name: "f/hollow", Unit: "x", Better: Higher, PeerName: "mean of 2 rows", Why: "row f/absent has no figures"},
	}
	for i := range got {
		got[i].Ours, got[i].Ratio = round(got[i].Ours), round(got[i].Ratio)
	}
	for i := range want {
		want[i].Ours, want[i].Ratio = round(want[i].Ours), round(want[i].Ratio)
		if i < len(got) && !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("row %d\n got %+v\nwant %+v", i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d rows, want %d", len(got), len(want))
	}
	for _, s := range []string{"others use 30 %", "MISS peer", "tgtd: not installed", "f/mean"} {
		if !strings.Contains(table, s) {
			t.Errorf("the table lacks %q:\n%s", s, table)
		}
	}
}

func round(x float64) float64 { return math.Round(x*1e9) / 1e9 }

// TestMerge: rows that are not run stay, those that nobody knows go, and a part
// that fails takes none of the others with it.
func TestMerge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	b, _ := json.Marshal([]Result{{Name: "f/gone", Ratio: 1}, {Name: "f/b", Ratio: 7}, {Name: "f/a", Ratio: 7}})
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	one := func(name string) Benchmark {
		return Benchmark{
			Rows: []Row{{Name: name, Unit: "x", Better: Higher, Limit: 1, Goal: 1}},
			Open: pair(Pair{Ours: figures(nil, "", 2)}, nil),
		}
	}
	got, table, err := try(t, path, "/a$", 0, Family{Name: "f", Benchmarks: []Benchmark{one("f/a"), one("f/b")}})
	if err != nil || len(got) != 2 || got[0].Name != "f/a" || got[0].Ratio != 2 || got[1].Ratio != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	if strings.Contains(table, "others use") {
		t.Errorf("a warning on a quiet machine:\n%s", table)
	}
	if _, _, err := try(t, path, "nothing", 0, Family{Name: "f", Benchmarks: []Benchmark{one("f/a")}}); err == nil {
		t.Error("no row was chosen, and nobody said so")
	}
}

// TestStopped: an interrupt ends the run, closes what is open and keeps what
// was measured.
func TestStopped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	ctx, cancel := context.WithCancel(t.Context())
	closed := 0
	row := func(n string) []Row { return []Row{{Name: n, Unit: "x", Better: Higher, Limit: 1}} }
	f := Family{Name: "f", Close: func() error { closed++; return nil }, Benchmarks: []Benchmark{
		{Rows: row("f/a"), Open: pair(Pair{Ours: figures(nil, "", 1)}, nil)},
		{Rows: row("f/b"), Open: pair(Pair{
			Ours:  func(ctx context.Context) ([]float64, error) { cancel(); return nil, ctx.Err() },
			Close: func() error { closed++; return nil },
		}, nil)},
	}}
	r := Runner{Rows: regexp.MustCompile("."), Results: path, Table: &bytes.Buffer{}, busy: func(context.Context) (float64, error) { return 0, nil }}
	if err := r.Run(ctx, []Family{f}); !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
	if got, err := results.Load[Result](path); err != nil || len(got) != 1 || closed != 2 {
		t.Errorf("%+v, %v; %d closed", got, err, closed)
	}
}

func TestCheck(t *testing.T) {
	row := func(n string) Benchmark { return Benchmark{Rows: []Row{{Name: n, Better: Higher}}} }
	for want, f := range map[string]Family{
		"not named for its family": {Name: "f", Benchmarks: []Benchmark{row("g/a")}},
		"two rows are named":       {Name: "f", Benchmarks: []Benchmark{row("f/a")}, Means: []Mean{{Name: "f/a"}}},
		"has no rows":              {Name: "f", Benchmarks: []Benchmark{{}}},
		"which is better":          {Name: "f", Benchmarks: []Benchmark{{Rows: []Row{{Name: "f/a"}}}}},
		"a mean of nothing":        {Name: "f", Means: []Mean{{Name: "f/a"}}},
	} {
		if err := check([]Family{f}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestParseCPU(t *testing.T) {
	c, err := parseCPU("cpu  10 1 5 100 20 2 3 4 7 8\ncpu0 ...")
	if err != nil || c.total != 145 || c.idle != 120 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, s := range []string{"", "cpu 1 2", "intr 1 2 3 4 5", "cpu a b c d e f g h"} {
		if _, err := parseCPU(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
	if share, err := BusyShare(t.Context()); err != nil || share < 0 || share > 1 {
		t.Errorf("share %v, %v", share, err)
	}
}
