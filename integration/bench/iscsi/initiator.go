package iscsi

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cleave-san/cleave/integration/bench"
)

// Goals of the initiator's speed: no row slower than libiscsi, and short
// requests in numbers faster, where its one thread and its system calls per PDU
// are the limit.
const (
	noSlower = 1.0
	faster   = 1.5
)

// longer is how many times as long as those of the target's family runs are: both
// sides are quick, and what decides a run of 200 ms is how its first few go.
const longer = 4

// InitiatorFamily gives the benchmarks of our initiator beside libiscsi, as
// `qemu-img bench` uses it: the same requests to the same target, which is ours.
func InitiatorFamily(o bench.Options) bench.Family {
	s := &servers{memory: o.Memory}
	f := bench.Family{Name: "initiator", Close: s.close}
	for _, l := range loads {
		if l.perf {
			continue
		}
		l.count *= longer
		goal := noSlower
		if l.block == kibi4 && l.depth >= 32 {
			goal = faster
		}
		f.Benchmarks = append(f.Benchmarks, bench.Benchmark{
			Rows:     []bench.Row{{Name: "initiator/" + l.name, Unit: "requests/s", Better: bench.Higher, Goal: goal}},
			PeerName: "qemu-img", Runs: 5,
			Open: func(ctx context.Context, _ string) (bench.Pair, error) { return s.openInitiators(ctx, l) },
		})
	}
	return f
}

// openInitiators starts the target and builds our side if they are not there yet.
func (s *servers) openInitiators(ctx context.Context, l load) (p bench.Pair, err error) {
	theirs, err := bench.Tool("qemu-img")
	if err != nil {
		return p, err
	}
	version, err := bench.Output(ctx, theirs, "--version")
	if err != nil {
		return p, err
	}
	version, _, _ = strings.Cut(strings.TrimPrefix(version, "qemu-img version "), " ")
	sv, err := s.cleave(ctx, l.chap)
	if err != nil {
		return p, err
	}
	ours, err := s.buildClient(ctx)
	if err != nil {
		return p, err
	}
	side := func(run func(context.Context) (requests, seconds float64, err error)) bench.Side {
		return func(ctx context.Context) ([]float64, error) {
			requests, seconds, err := run(ctx)
			if err != nil {
				return nil, sv.explain(err)
			}
			return []float64{requests / seconds}, nil
		}
	}
	return bench.Pair{
		Ours: side(func(ctx context.Context) (float64, float64, error) { return l.runOurs(ctx, ours, s.secret, sv) }),
		Peer: side(func(ctx context.Context) (float64, float64, error) { return l.run(ctx, theirs, sv) }),
		// libiscsi says no version of its own.
		PeerName: "qemu-img " + version,
	}, nil
}

// buildClient builds the measured side of our initiator.
func (s *servers) buildClient(ctx context.Context) (string, error) {
	exe := filepath.Join(s.memory, "initiator")
	if _, err := os.Stat(exe); err == nil {
		return exe, nil
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", exe, "github.com/cleave-san/cleave/integration/bench/cmd/initiator")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return exe, nil
}

// runOurs performs the load by our initiator.
func (l load) runOurs(ctx context.Context, exe, secretFile string, s server) (requests, seconds float64, err error) {
	args := []string{"-c", strconv.Itoa(l.count), "-d", strconv.Itoa(l.depth), "-s", strconv.Itoa(l.block), "-as", initiator}
	if l.write {
		args = append(args, "-w")
	}
	if l.random {
		args = append(args, "-S", strconv.Itoa(l.block*7919))
	}
	if l.digest {
		args = append(args, "-header-digest")
	}
	user := ""
	if s.user != "" {
		user = s.user + "@"
		args = append(args, "-chap-secret-file", secretFile)
	}
	out, err := bench.Output(ctx, exe, append(args, fmt.Sprintf("iscsi://%s%s/%s/%d", user, s.portal, s.iqn, s.lun))...)
	if err != nil {
		return 0, 0, err
	}
	return l.completed(out)
}
