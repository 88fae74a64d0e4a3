package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// gotgtVersion is the one that integration/foreignarray is built with.
const gotgtVersion = "v0.2.2"

// gotgt is the lab's foreign array, which serves by gotgt, ready to be run once
// per test: some tests end it.
type gotgt struct {
	dir, exe, volume string
}

// buildGotgt needs the module cache or a network, and root: gotgt listens on every
// address, so it gets a network namespace of its own, with the test in it.
func buildGotgt(ctx context.Context) (g *gotgt, err error) {
	g = &gotgt{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("gotgt: %w", err), g.remove())
		}
	}()
	if g.dir, err = os.MkdirTemp("", "cleave-gotgt-"); err != nil {
		return g, err
	}
	g.exe, g.volume = filepath.Join(g.dir, "foreignarray"), filepath.Join(g.dir, "volume")
	build := exec.CommandContext(ctx, "go", "build", "-C", "integration/foreignarray", "-o", g.exe, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return g, fmt.Errorf("%w: %.300s", err, out)
	}
	if err := os.WriteFile(g.volume, nil, 0o600); err != nil {
		return g, err
	}
	return g, os.Truncate(g.volume, lunSize)
}

func (g *gotgt) remove() error {
	if g.dir == "" {
		return nil
	}
	return os.RemoveAll(g.dir)
}

// site starts a gotgt for each test. It holds one session, so there is no second
// path.
func (g *gotgt) site(_ context.Context, _ string) (place, error) {
	cmd := exec.Command("unshare", "-n", "sh", "-c", `ip link set lo up && exec "$@"`, "sh", g.exe, "--volume", g.volume)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return place{}, err
	}
	if err := cmd.Start(); err != nil {
		return place{}, err
	}
	patience := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	patience.Stop()
	if err != nil {
		_ = cmd.Process.Kill() // it may have ended by itself
		return place{}, fmt.Errorf("gotgt does not start: %w", errors.Join(err, cmd.Wait()))
	}
	return place{
		urls:   []string{strings.TrimSpace(line)},
		within: []string{"nsenter", "-n", "-t", strconv.Itoa(cmd.Process.Pid)},
		done: func() error {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				return fmt.Errorf("gotgt ended: %w", err)
			}
			return nil
		},
	}, nil
}
