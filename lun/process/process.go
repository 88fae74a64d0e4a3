// Package process gives processes names that are never another's: a PID alone is
// used again. Whoever starts a process that is to outlive him keeps its name in
// a record; later, and as another process, he asks for it, waits for it or ends
// it by that name, and a stranger that has got the PID since is left alone.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is the name of one process. The zero value names none.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot, proc_pid_stat(5) field 22
	Boot  string `json:"boot"`  // as BootID says
}

// BootID names this boot of the host.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// Of names a process that is known to live or to be unreaped.
func Of(pid int) (Process, error) {
	start, err := startTime(pid)
	if err != nil {
		return Process{}, err
	}
	boot, err := BootID()
	return Process{PID: pid, Start: start, Boot: boot}, err
}

func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses and may hold
	// anything; fields are counted from its end.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// Open returns a pidfd (pidfd_open(2)), which the caller closes, or
// fs.ErrNotExist if the process is gone. Any other error says nothing about it.
func (p Process) Open() (int, error) {
	boot, err := BootID()
	if err != nil {
		return -1, err
	}
	if p.PID <= 1 || p.Boot != boot {
		return -1, fs.ErrNotExist
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, fs.ErrNotExist
	}
	if err != nil {
		return -1, fmt.Errorf("opening process %d: %w", p.PID, err)
	}
	// The descriptor first and this look second: if that matches, the descriptor
	// can't be of a later process.
	start, err := startTime(p.PID)
	if err == nil && start == p.Start {
		return fd, nil
	}
	unix.Close(fd)
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return -1, fs.ErrNotExist
	}
	return -1, err
}

// Alive reports whether the process still runs. One that nobody has reaped does
// not.
func (p Process) Alive() (bool, error) {
	fd, err := p.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	gone, err := exited(fd, 0)
	return !gone, err
}

// Wait waits until the process is gone. The error is ctx's if that ends first.
func (p Process) Wait(ctx context.Context) error { return p.end(ctx, false) }

// Kill kills the process and waits until it is gone. One that is gone already is
// success. The error is ctx's if that ends first: it was killed all the same.
func (p Process) Kill(ctx context.Context) error { return p.end(ctx, true) }

func (p Process) end(ctx context.Context, kill bool) error {
	fd, err := p.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if kill {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("killing process %d: %w", p.PID, err)
		}
	}
	for {
		gone, err := exited(fd, 50*time.Millisecond)
		switch {
		case err != nil:
			return fmt.Errorf("waiting for process %d: %w", p.PID, err)
		case gone:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("process %d does not end: %w", p.PID, ctx.Err())
		}
	}
}

// exited waits up to d for the process of a pidfd to end.
func exited(fd int, d time.Duration) (bool, error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, int(d.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return n == 1, err
}
