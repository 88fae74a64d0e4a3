package embedded

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	array "github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/integration/bench"
)

// manyVolumes is how many volumes of two mirrors one data plane has.
const manyVolumes = 1000

// many is the rows about an array of many volumes: how long the data plane takes
// from its start to where it accepts initiators, and how large it is when nothing
// has been asked of it since. The latter is all of the process that is in memory,
// the program's own code as well; volumes that were not written to have bitmaps of
// no size.
func many(o bench.Options) bench.Benchmark {
	return bench.Benchmark{
		Rows: []bench.Row{
			{Name: "embedded/many/start", Unit: "s", Better: bench.Lower, Limit: 2, Goal: 1},
			{Name: "embedded/many/idle", Unit: "MiB", Better: bench.Lower, Limit: 64, Goal: 1},
		},
		Runs: 3,
		Open: func(ctx context.Context, _ string) (bench.Pair, error) {
			dir, err := os.MkdirTemp(o.Memory, "many-")
			if err != nil {
				return bench.Pair{}, err
			}
			d := dataPlane{dir: dir, exe: filepath.Join(dir, "cleave")}
			if err := errors.Join(d.build(ctx), d.create(ctx)); err != nil {
				return bench.Pair{}, errors.Join(err, os.RemoveAll(dir))
			}
			return bench.Pair{Ours: d.start, Close: func() error { return os.RemoveAll(dir) }}, nil
		},
	}
}

// dataPlane is `cleave array` on pools of its own.
type dataPlane struct{ dir, exe string }

func (d *dataPlane) build(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", d.exe, "github.com/cleave-san/cleave/plugin/cmd/cleave")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	return nil
}

func (d *dataPlane) create(ctx context.Context) error {
	a, err := array.Open(ctx, array.Options{
		StateDir: filepath.Join(d.dir, "state", "array"), // where cleave array has it
		Pools:    map[string]string{"a": filepath.Join(d.dir, "a"), "b": filepath.Join(d.dir, "b")},
	})
	if err != nil {
		return err
	}
	err = inParallel(manyVolumes, func(i int) error {
		_, err := a.CreateVolume(ctx, array.CreateVolume{Name: fmt.Sprintf("v%d", i), Size: 100 * gib, Pools: []string{"a", "b"}})
		return err
	})
	return errors.Join(err, a.Close())
}

// start runs the data plane until it has been idle for some seconds.
func (d *dataPlane) start(ctx context.Context) ([]float64, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	portal := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, d.exe, "array", "--state", filepath.Join(d.dir, "state"), "--portal", portal,
		"--pool", "a="+filepath.Join(d.dir, "a"), "--pool", "b="+filepath.Join(d.dir, "b"),
		"--array-socket", filepath.Join(d.dir, "array.sock"))
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	err = accepts(ctx, portal)
	took := time.Since(begun)
	var rss float64
	if err == nil {
		err = idle(ctx)
	}
	if err == nil {
		rss, err = resident(cmd.Process.Pid)
	}
	if err := errors.Join(err, cmd.Cancel(), cmd.Wait()); err != nil {
		return nil, fmt.Errorf("cleave array: %w: %s", err, said.String())
	}
	return []float64{took.Seconds(), rss / mib}, nil
}

// accepts waits until a portal does.
func accepts(ctx context.Context, portal string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c, err := net.Dial("tcp", portal)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Millisecond):
		}
	}
}

func idle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(3 * time.Second):
		return nil
	}
}

// resident is how much of a process is in memory, in bytes.
func resident(pid int) (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "VmRSS:"); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 64)
			return n * kib, err
		}
	}
	return 0, fmt.Errorf("%s has no VmRSS", f.Name())
}
