// Command bench runs the benchmarks against their peers and writes
// bench/results.json; see package integration/bench for what the rows mean.
// Its exit status is 1 if a row could not be measured or misses its goal.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"runtime/pprof"
	"syscall"

	"github.com/cleave-san/cleave/integration/bench"
	"github.com/cleave-san/cleave/integration/bench/embedded"
	"github.com/cleave-san/cleave/integration/bench/files"
	"github.com/cleave-san/cleave/integration/bench/iscsi"
	"github.com/cleave-san/cleave/integration/bench/nbd"
	"github.com/cleave-san/cleave/integration/bench/recovery"
	"github.com/cleave-san/cleave/integration/bench/vdisk"
)

// families are run in this order.
var families = []func(bench.Options) bench.Family{
	embedded.Family,
	iscsi.Family,
	iscsi.InitiatorFamily,
	nbd.Family,
	vdisk.Family,
	recovery.Family,
	files.Family,
}

func main() {
	rows := flag.String("run", ".", "regular expression of row names")
	out := flag.String("o", "bench/results.json", "results file")
	list := flag.Bool("list", false, "only list the rows")
	verbose := flag.Bool("v", false, "log what happens meanwhile")
	profile := flag.String("cpuprofile", "", "write a processor profile of this program, both sides of a row in it")
	flag.Parse()
	o := bench.Options{Logger: slog.New(slog.DiscardHandler)}
	if *verbose {
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if *list {
		var all []bench.Family
		for _, f := range families {
			all = append(all, f(o))
		}
		bench.List(os.Stdout, all)
		return
	}
	if err := profiled(*profile, func() error { return run(*rows, *out, o) }); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(rows, out string, o bench.Options) error {
	chosen, err := regexp.Compile(rows)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := bench.Runner{Rows: chosen, Results: out, Table: os.Stdout}
	return r.Main(ctx, o, families)
}

// profiled runs fn and writes a profile of it, if path is not empty.
func profiled(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return errors.Join(err, f.Close())
	}
	err = fn()
	pprof.StopCPUProfile()
	return errors.Join(err, f.Close())
}
