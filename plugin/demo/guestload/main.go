// Command guestload is the load inside the VMs of the demo and the lab: a
// static program that a guest runs from the host's root, seen over 9p.
//
//	guestload insert --record PORT       insert 1, 2, 3, … into PostgreSQL, one commit each
//	guestload canary --device DEV        write 1, 2, 3, … near the start, then near the end, of a device
//	guestload canary-check --device DEV  do the two still belong together?
//
// The record of what was committed goes to a virtio-serial port, whose other end
// is a file of the host: outside every volume that a test may split.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// exitTorn is canary-check's status when the two values do not belong together.
const exitTorn = 3

const usage = `usage: guestload insert --record PORT [--socket FILE] [--pause 5ms]
       guestload canary --device DEV [--last-device DEV] [--pause 10ms]
       guestload canary-check --device DEV [--last-device DEV]`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	fmt.Fprintln(os.Stderr, "guestload:", err)
	if errors.Is(err, errTorn) {
		os.Exit(exitTorn)
	}
	os.Exit(1)
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	f := flag.NewFlagSet("guestload "+args[0], flag.ContinueOnError)
	f.SetOutput(io.Discard)
	switch args[0] {
	case "insert":
		l := inserter{now: time.Now}
		record := f.String("record", "", "")
		f.StringVar(&l.socket, "socket", "/run/postgresql/.s.PGSQL.5432", "")
		f.DurationVar(&l.pause, "pause", 5*time.Millisecond, "")
		if err := f.Parse(args[1:]); err != nil || *record == "" {
			return errors.New(usage)
		}
		port, err := os.OpenFile(*record, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		defer port.Close()
		l.record = port
		return l.run(ctx)
	case "canary", "canary-check":
		first := f.String("device", "", "")
		last := f.String("last-device", "", "")
		pause := f.Duration("pause", 10*time.Millisecond, "")
		if err := f.Parse(args[1:]); err != nil || *first == "" {
			return errors.New(usage)
		}
		if *last == "" {
			*last = *first
		}
		if args[0] == "canary" {
			return runCanary(ctx, *first, *last, *pause)
		}
		c, err := readCanary(*first, *last)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "first=%d last=%d\n", c.first, c.last)
		return c.check()
	}
	return errors.New(usage)
}

// wait pauses for d unless ctx ends first.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
