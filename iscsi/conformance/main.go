// Command conformance runs libiscsi's conformance suite (iscsi-test-cu, Debian
// package libiscsi-bin) against our target, each test alone with a time limit,
// and prints what passed, failed, and was skipped.
//
//	go run ./iscsi/conformance [-run PREFIX] [-v] [-limit 20s]
//	go run ./iscsi/conformance -url iscsi://127.0.0.1:3261/iqn.x/1 [-read-only-url …]
//	go run ./iscsi/conformance -o iscsi/CONFORMANCE.md
//
// With -url it runs against another target. With -o it runs against ours and
// tgtd and gotgt and writes the report (make conformance). The devices are in memory;
// everything listens on loopback. The exit status is 1 if a test of ours did
// not pass and excuses.go does not list it, or if one of another target failed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"text/tabwriter"
	"time"
)

// workers is how many tests run at once, each with a target of its own.
const workers = 4

func main() {
	var o options
	flag.StringVar(&o.prefix, "run", "", "only tests whose name begins so, e.g. Read10 or Read10.Simple")
	flag.StringVar(&o.url, "url", "", "test this LUN instead of ours")
	flag.StringVar(&o.readOnlyURL, "read-only-url", "", "and this one in the read-only test")
	flag.StringVar(&o.report, "o", "", "run against ours, tgtd and gotgt, and write the report to this file (from the top of the tree, as root)")
	flag.DurationVar(&o.limit, "limit", 20*time.Second, "time for one test")
	flag.BoolVar(&o.verbose, "v", false, "print the output of tests that did not pass")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := o.run
	if o.report != "" {
		run = o.writeReport
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

type options struct {
	prefix, url, readOnlyURL, report string
	limit                            time.Duration
	verbose                          bool
}

// run tests one target and prints its results.
func (o *options) run(ctx context.Context) error {
	names, err := list(ctx)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !matches(n, o.prefix) })
	n, where := workers, site(own)
	if o.url != "" {
		n, where = 1, at(func(test string) string {
			if lunFor(test) == readOnlyLUN && o.readOnlyURL != "" {
				return o.readOnlyURL
			}
			return o.url
		})
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	results := runAll(ctx, names, n, o.limit, where, func(name string, r result) {
		fmt.Fprintf(w, "%s\t%s\t%s\n", name, r.outcome, r.why)
		w.Flush()
		if o.verbose && r.outcome != passed {
			fmt.Println(r.output)
		}
	})
	if err := ctx.Err(); err != nil {
		return err
	}
	c := count(results)
	fmt.Printf("passed %d, failed %d, skipped %d, hung %d\n", c[passed], c[failed], c[skipped], c[hung])
	if o.url != "" {
		if c[failed]+c[hung] > 0 {
			return fmt.Errorf("%d tests failed", c[failed]+c[hung])
		}
		return nil
	}
	return firstUnexcused(names, results)
}

func firstUnexcused(names []string, results map[string]result) error {
	for _, n := range names {
		if err := unexcused(n, results[n]); err != nil {
			return err
		}
	}
	return nil
}
