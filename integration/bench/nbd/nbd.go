// Package nbd is the benchmarks of the NBD server beside qemu-nbd: the same file
// on tmpfs, served by either on a unix socket as it comes, read and written by
// `qemu-img bench` and `nbdcopy`, which are neither's.
package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/integration/bench"
)

const (
	mebi  = 1 << 20
	kibi4 = 4096
	// fileSize is the size of the served file, in bytes.
	fileSize = 1 << 30
	// noSlower is the goal of each row, and cheaper that of the processor time.
	noSlower = 1.0
	cheaper  = 1.0
)

// load is one kind of I/O. Random access is a stride that comes by all blocks in
// an order of its own.
type load struct {
	name   string
	write  bool
	block  int // bytes
	depth  int
	random bool
	count  int // requests of one run: about a second
}

var loads = []load{
	{name: "read-1m-depth8", block: mebi, depth: 8, count: 3000},
	{name: "write-1m-depth8", write: true, block: mebi, depth: 8, count: 2000},
	{name: "read-4k-depth1", block: kibi4, depth: 1, random: true, count: 20000},
	{name: "read-4k-depth32", block: kibi4, depth: 32, random: true, count: 50000},
	{name: "write-4k-depth1", write: true, block: kibi4, depth: 1, random: true, count: 20000},
	{name: "write-4k-depth32", write: true, block: kibi4, depth: 32, random: true, count: 40000},
}

// Family gives the benchmarks.
func Family(o bench.Options) bench.Family {
	s := &servers{memory: o.Memory}
	f := bench.Family{Name: "nbd", Close: s.close}
	for _, l := range loads {
		f.Benchmarks = append(f.Benchmarks, bench.Benchmark{
			Rows: []bench.Row{
				{Name: "nbd/" + l.name, Unit: "requests/s", Better: bench.Higher, Goal: noSlower},
				{Name: "nbd/" + l.name + "-cpu", Unit: "µs/request", Better: bench.Lower, Goal: cheaper},
			},
			PeerName: "qemu-nbd", Runs: 5,
			Open: func(ctx context.Context, _ string) (bench.Pair, error) {
				return s.open(ctx, "qemu-img", l.run, l.count)
			},
		})
	}
	f.Benchmarks = append(f.Benchmarks, bench.Benchmark{
		Rows: []bench.Row{
			{Name: "nbd/copy", Unit: "MiB/s", Better: bench.Higher, Goal: noSlower},
			{Name: "nbd/copy-cpu", Unit: "µs/MiB", Better: bench.Lower, Goal: cheaper},
		},
		PeerName: "qemu-nbd", Runs: 5,
		Open: func(ctx context.Context, _ string) (bench.Pair, error) {
			return s.open(ctx, "nbdcopy", copyAll, fileSize/mebi)
		},
	})
	return f
}

// client has a foreign program do something at a URL, and returns for how many
// seconds.
type client func(ctx context.Context, tool, url string) (seconds float64, err error)

// open starts what is not running yet. count is how much one run of the client
// does.
func (s *servers) open(ctx context.Context, program string, do client, count int) (p bench.Pair, err error) {
	tool, err := bench.Tool(program)
	if err != nil {
		return p, err
	}
	peer, version, err := s.qemu(ctx)
	if err != nil {
		return p, err
	}
	ours, err := s.cleave(ctx)
	if err != nil {
		return p, err
	}
	side := func(sv *server) bench.Side {
		return func(ctx context.Context) ([]float64, error) {
			before, err := sv.cpu()
			if err != nil {
				return nil, err
			}
			seconds, err := do(ctx, tool, sv.url())
			if err != nil {
				return nil, fmt.Errorf("%s at %s: %w", program, sv.name, err)
			}
			after, err := sv.cpu()
			if err != nil {
				return nil, err
			}
			return []float64{float64(count) / seconds, (after - before) * 1e6 / float64(count)}, nil
		}
	}
	return bench.Pair{Ours: side(ours), Peer: side(peer), PeerName: "qemu-nbd " + version}, nil
}

var completed = regexp.MustCompile(`Run completed in ([0-9.]+) seconds`)

func (l load) run(ctx context.Context, tool, url string) (seconds float64, err error) {
	args := []string{"bench", "-f", "raw", "-t", "none", "-c", strconv.Itoa(l.count), "-d", strconv.Itoa(l.depth), "-s", strconv.Itoa(l.block)}
	if l.write {
		args = append(args, "-w")
	}
	if l.random {
		args = append(args, "-S", strconv.Itoa(l.block*7919))
	}
	out, err := bench.Output(ctx, tool, append(args, url)...)
	if err != nil {
		return 0, err
	}
	m := completed.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("no time in %.200q", out)
	}
	return strconv.ParseFloat(m[1], 64)
}

// copyAll reads all that is there, over several connections.
func copyAll(ctx context.Context, tool, url string) (seconds float64, err error) {
	begun := time.Now()
	_, err = bench.Output(ctx, tool, url, "null:")
	return time.Since(begun).Seconds(), err
}

// server is one that runs.
type server struct {
	name, socket string
	process      *exec.Cmd
}

func (s *server) url() string { return "nbd+unix:///?socket=" + url.QueryEscape(s.socket) }

// cpu is the processor time that the server has used, in seconds.
func (s *server) cpu() (float64, error) {
	used, err := bench.CPU(s.process.Process.Pid)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.name, err)
	}
	return used, nil
}

// servers are both, each started when it is first needed.
type servers struct {
	memory     string
	file       string
	ours, peer *server
	about      string // the peer's version
	ended      []*exec.Cmd
}

// prepare makes the file that both serve, wholly allocated.
func (s *servers) prepare() error {
	if s.file != "" {
		return nil
	}
	f, err := os.Create(filepath.Join(s.memory, "nbd.img"))
	if err != nil {
		return err
	}
	block := bytes.Repeat([]byte("cleave!\n"), 1<<17)
	for range fileSize / len(block) {
		if _, err := f.Write(block); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	s.file = f.Name()
	return f.Close()
}

func (s *servers) cleave(ctx context.Context) (*server, error) {
	if s.ours != nil {
		return s.ours, nil
	}
	exe := filepath.Join(s.memory, "cleave-nbd")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", exe, "github.com/cleave-san/cleave/plugin/cmd/cleave")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w: %s", err, out)
	}
	sv, err := s.start(ctx, "cleave", exe, func(file, socket string) []string {
		return []string{"lun", "nbd", file, "--raw", "--writable", "--socket", socket}
	})
	s.ours = sv
	return sv, err
}

// qemu starts the peer, for as many clients at once as ours takes.
func (s *servers) qemu(ctx context.Context) (*server, string, error) {
	if s.peer != nil {
		return s.peer, s.about, nil
	}
	program, err := bench.Tool("qemu-nbd")
	if err != nil {
		return nil, "", err
	}
	version, err := bench.Output(ctx, program, "--version")
	if err != nil {
		return nil, "", err
	}
	if words := strings.Fields(version); len(words) > 1 { // the first is how it was called
		version = words[1]
	}
	sv, err := s.start(ctx, "qemu-nbd", program, func(file, socket string) []string {
		return []string{"-t", "-e", "16", "-f", "raw", "-k", socket, file}
	})
	s.peer, s.about = sv, version
	return sv, version, err
}

// start starts a server and waits until it answers.
func (s *servers) start(ctx context.Context, name, program string, args func(file, socket string) []string) (*server, error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	sv := &server{name: name, socket: filepath.Join(s.memory, name+".sock")}
	sv.process = exec.Command(program, args(s.file, sv.socket)...)
	sv.process.Stderr = os.Stderr
	sv.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := sv.process.Start(); err != nil {
		return nil, err
	}
	s.ended = append(s.ended, sv.process)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", sv.socket)
		if err == nil {
			return sv, c.Close()
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return nil, fmt.Errorf("%s does not answer: %w", name, err)
		}
	}
}

// close ends both.
func (s *servers) close() error {
	for _, cmd := range s.ended {
		cmd.Process.Kill() //nolint:errcheck // it may have ended by itself
		cmd.Wait()         //nolint:errcheck // killed
	}
	if s.file == "" {
		return nil
	}
	return os.Remove(s.file)
}
