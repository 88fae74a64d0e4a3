// Command conformance runs libiscsi's conformance suite (iscsi-test-cu, Debian
// package libiscsi-bin) against our target, each test by itself with a time
// limit, and prints what passed, failed, and was skipped.
//
//	go run ./iscsi/conformance [-run PREFIX] [-v] [-limit 20s]
//	go run ./iscsi/conformance -url iscsi://127.0.0.1:3261/iqn.x/1 [-read-only-url …]
//
// With -url it runs against another target, for comparison. The device is in
// memory; nothing outside is touched. The exit status is 1 if a test failed, hung
// or could not be run.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"text/tabwriter"
	"time"

	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/target"
)

func main() {
	run := flag.String("run", "", "only tests whose name begins so, e.g. Read10 or Read10.Simple")
	url := flag.String("url", "", "test this LUN instead of ours")
	ro := flag.String("read-only-url", "", "and this one in the read-only test")
	limit := flag.Duration("limit", 20*time.Second, "time for one test")
	verbose := flag.Bool("v", false, "print the output of tests that did not pass")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ok, err := report(ctx, *run, *url, *ro, *limit, *verbose)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func report(ctx context.Context, prefix, url, roURL string, limit time.Duration, verbose bool) (bool, error) {
	names, err := list(ctx)
	if err != nil {
		return false, err
	}
	choose := func(name string) string {
		if lunFor(name) == readOnlyLUN && roURL != "" {
			return roURL
		}
		return url
	}
	if url == "" {
		p, err := serve(ctx)
		if err != nil {
			return false, err
		}
		defer p.srv.Close()
		choose = func(name string) string { return p.url(lunFor(name)) }
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	count := map[outcome]int{}
	for _, n := range names {
		if !matches(n, prefix) {
			continue
		}
		r := runOne(ctx, n, choose(n), limit)
		count[r.outcome]++
		fmt.Fprintf(w, "%s\t%s\t%s\n", n, r.outcome, r.why)
		w.Flush()
		if verbose && r.outcome != passed {
			fmt.Println(r.output)
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
	}
	fmt.Printf("passed %d, failed %d, skipped %d, hung %d\n", count[passed], count[failed], count[skipped], count[hung])
	return count[failed]+count[hung] == 0, nil
}

// peer is our target with three thin LUNs of 64 MiB.
type peer struct {
	srv    *target.Server
	portal netip.AddrPort
}

const iqn = "iqn.2026-01.san.cleave:conformance"

func serve(ctx context.Context) (*peer, error) {
	s := target.New(target.Options{})
	p := &peer{srv: s}
	err := func() error {
		if err := s.AddTarget(iqn, "conformance"); err != nil {
			return err
		}
		if err := s.SetMask(iqn, mask.Anyone, mask.Grant{LUN: plainLUN}, mask.Grant{LUN: readOnlyLUN, ReadOnly: true}, mask.Grant{LUN: smallLUN}); err != nil {
			return err
		}
		for i := range 3 {
			physical := 4096
			if i == smallLUN {
				physical = 512
			}
			if _, err := s.AddLUN(iqn, i, target.LUN{Device: newMemory(64<<20, physical), Writable: i != readOnlyLUN}); err != nil {
				return err
			}
		}
		var err error
		p.portal, err = s.Listen(ctx, netip.MustParseAddrPort("127.0.0.1:0"))
		return err
	}()
	if err != nil {
		s.Close()
		return nil, err
	}
	return p, nil
}

func (p *peer) url(lun int) string { return fmt.Sprintf("iscsi://%s/%s/%d", p.portal, iqn, lun) }
