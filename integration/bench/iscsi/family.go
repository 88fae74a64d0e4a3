// Package iscsi is the benchmarks of the iSCSI target beside tgtd: the same file
// on tmpfs, served by either, read and written by programs that are neither's:
// `qemu-img bench` and libiscsi's `iscsi-perf`. Both servers run as they come.
// And those of our initiator beside libiscsi, on our target.
package iscsi

import (
	"context"
	"fmt"

	"github.com/cleave-san/cleave/integration/bench"
)

// fileSize is the size of the served file, in bytes.
const fileSize = 1 << 30

// load is one kind of I/O. Random access by qemu-img is a stride that comes by
// all blocks in an order of its own; iscsi-perf draws its blocks by lot.
type load struct {
	name   string
	write  bool
	block  int // bytes
	depth  int
	random bool
	perf   bool // by iscsi-perf, which only reads
	chap   bool
	digest bool
	count  int     // requests of one run by qemu-img: about a second
	runs   int     // of each side; 0: as many as are usual
	goal   float64 // of the speed
	cpu    float64 // goal of the processor time per request; 0: no such row
}

const (
	mebi   = 1 << 20
	kibi4  = 4096
	single = 1.15
	deep   = 1.6
	less   = 1 / 0.6
	// many is the runs of rows whose single runs differ most: at 1 MiB a client
	// is fast or slow, by a third, for as long as it lives. Many short runs tell
	// more of it than a few long ones.
	many = 9
)

var loads = []load{
	{name: "read-1m-depth1", block: mebi, depth: 1, count: 600, runs: many, goal: single},
	{name: "read-1m-depth8", block: mebi, depth: 8, count: 800, runs: many, goal: deep, cpu: less},
	{name: "write-1m-depth1", write: true, block: mebi, depth: 1, count: 400, runs: many, goal: single},
	{name: "write-1m-depth8", write: true, block: mebi, depth: 8, count: 500, runs: many, goal: deep, cpu: less},
	{name: "read-4k-depth1", block: kibi4, depth: 1, random: true, count: 12000, goal: single},
	{name: "read-4k-depth32", block: kibi4, depth: 32, random: true, count: 50000, goal: 2.5, cpu: less},
	{name: "read-4k-depth128", block: kibi4, depth: 128, random: true, count: 50000, goal: deep, cpu: less},
	{name: "write-4k-depth1", write: true, block: kibi4, depth: 1, random: true, count: 12000, goal: single},
	{name: "write-4k-depth32", write: true, block: kibi4, depth: 32, random: true, count: 40000, goal: deep, cpu: less},
	{name: "write-4k-depth128", write: true, block: kibi4, depth: 128, random: true, count: 40000, goal: deep, cpu: less},
	{name: "perf-read-4k-depth1", block: kibi4, depth: 1, perf: true, goal: single},
	{name: "perf-read-4k-depth32", block: kibi4, depth: 32, perf: true, goal: 2.5, cpu: less},
	{name: "perf-read-4k-depth128", block: kibi4, depth: 128, perf: true, goal: deep, cpu: less},
	// What they cost is to be read beside the rows without them.
	{name: "chap-read-4k-depth32", block: kibi4, depth: 32, random: true, chap: true, count: 50000},
	{name: "digest-read-4k-depth32", block: kibi4, depth: 32, random: true, digest: true, count: 50000},
	{name: "digest-write-1m-depth8", write: true, block: mebi, depth: 8, digest: true, count: 500, runs: many},
}

// Family gives the benchmarks of the target.
func Family(o bench.Options) bench.Family {
	s := &servers{memory: o.Memory}
	f := bench.Family{Name: "iscsi", Close: s.close}
	mean := bench.Mean{Name: "iscsi/mean", Goal: 2}
	for _, l := range loads {
		rows := []bench.Row{{Name: "iscsi/" + l.name, Unit: "requests/s", Better: bench.Higher, Goal: l.goal}}
		if l.cpu > 0 {
			rows = append(rows, bench.Row{Name: "iscsi/" + l.name + "-cpu", Unit: "µs/request", Better: bench.Lower, Goal: l.cpu})
		}
		if l.goal > 0 {
			mean.Of = append(mean.Of, rows[0].Name)
		}
		f.Benchmarks = append(f.Benchmarks, bench.Benchmark{
			Rows: rows, PeerName: "tgtd", Runs: l.runs,
			Open: func(ctx context.Context, _ string) (bench.Pair, error) { return s.open(ctx, l) },
		})
	}
	f.Means = []bench.Mean{mean}
	return f
}

// open starts what is not running yet.
func (s *servers) open(ctx context.Context, l load) (p bench.Pair, err error) {
	client := "qemu-img"
	if l.perf {
		client = "iscsi-perf"
	}
	tool, err := bench.Tool(client)
	if err != nil {
		return p, err
	}
	peer, version, err := s.tgtd(ctx)
	if err != nil {
		return p, err
	}
	ours, err := s.cleave(ctx, l.chap)
	if err != nil {
		return p, err
	}
	if l.chap {
		peer.user, peer.secret = chapUser, chapSecret
		peer.iqn = peerCHAP
	}
	side := func(sv server) bench.Side {
		return func(ctx context.Context) ([]float64, error) {
			before, err := sv.cpu()
			if err != nil {
				return nil, err
			}
			requests, seconds, err := l.run(ctx, tool, sv)
			if err != nil {
				return nil, sv.explain(fmt.Errorf("%s: %w", client, err))
			}
			after, err := sv.cpu()
			if err != nil {
				return nil, err
			}
			out := []float64{requests / seconds}
			if l.cpu > 0 {
				out = append(out, (after-before)*1e6/requests)
			}
			return out, nil
		}
	}
	return bench.Pair{Ours: side(ours), Peer: side(peer), PeerName: "tgtd " + version}, nil
}
