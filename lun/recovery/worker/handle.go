package worker

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

// Handle names one worker process for ever: a PID alone is used again. It is
// what a journal keeps.
type Handle struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"` // clock ticks after boot, proc_pid_stat(5) field 22
	Boot   string `json:"boot"`  // /proc/sys/kernel/random/boot_id
	Socket string `json:"socket,omitempty"`
}

// handleOf makes the handle of a process that is known to live or to be
// unreaped.
func handleOf(pid int, socket string) (Handle, error) {
	start, err := startTime(pid)
	if err != nil {
		return Handle{}, err
	}
	boot, err := bootID()
	return Handle{PID: pid, Start: start, Boot: boot, Socket: socket}, err
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
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

// pidfd opens the handle's process, or returns fs.ErrNotExist if it is gone.
// The descriptor comes first and the look at the start time second: if that
// matches, the descriptor can't be of a later process.
func (h Handle) pidfd() (int, error) {
	boot, err := bootID()
	if err != nil {
		return -1, err
	}
	if h.PID <= 1 || boot != h.Boot {
		return -1, fs.ErrNotExist
	}
	fd, err := unix.PidfdOpen(h.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, fs.ErrNotExist
	}
	if err != nil {
		return -1, fmt.Errorf("opening process %d: %w", h.PID, err)
	}
	start, err := startTime(h.PID)
	if err == nil && start == h.Start {
		return fd, nil
	}
	unix.Close(fd)
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return -1, fs.ErrNotExist
	}
	return -1, err
}

// Alive reports whether the worker still runs.
func (h Handle) Alive() (bool, error) {
	fd, err := h.pidfd()
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

// Kill ends the worker and waits until it is gone, or ctx is; then it removes
// its socket. A worker that is gone already is success; a process that has got
// the worker's PID since is left alone.
func Kill(ctx context.Context, h Handle) error {
	fd, err := h.pidfd()
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("recovery worker %d: %w", h.PID, err)
	default:
		defer unix.Close(fd)
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("killing recovery worker %d: %w", h.PID, err)
		}
		for gone := false; !gone; {
			if gone, err = exited(fd, 50*time.Millisecond); err != nil {
				return fmt.Errorf("waiting for recovery worker %d: %w", h.PID, err)
			}
			if !gone && ctx.Err() != nil {
				return fmt.Errorf("recovery worker %d was killed and is not gone: %w", h.PID, ctx.Err())
			}
		}
	}
	if h.Socket != "" {
		if err := os.Remove(h.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("socket of recovery worker %d: %w", h.PID, err)
		}
	}
	return nil
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
