package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process names one process for ever: a PID alone is used again.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot, proc_pid_stat(5) field 22
	Boot  string `json:"boot"`
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// processOf names a process that is known to live or to be unreaped.
func processOf(pid int) (process, error) {
	start, err := startTime(pid)
	if err != nil {
		return process{}, err
	}
	boot, err := bootID()
	return process{PID: pid, Start: start, Boot: boot}, err
}

func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The program's name, in parentheses, may hold anything.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// pidfd opens the process, or is fs.ErrNotExist if it is gone. The look at the
// start time comes second, so the descriptor can't be of a later process.
func (p process) pidfd() (int, error) {
	boot, err := bootID()
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
		return -1, fmt.Errorf("process %d: %w", p.PID, err)
	}
	if start, err := startTime(p.PID); err == nil && start == p.Start {
		return fd, nil
	}
	unix.Close(fd)
	return -1, fs.ErrNotExist
}

// dying reports whether the process is gone, or has been killed and only waits
// for a thread that can't end. Its exit alone does not tell: that is when the
// last thread has ended.
func (p process) dying() bool {
	fd, err := p.pidfd()
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		return false
	}
	unix.Close(fd)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return true
	}
	return killed(string(b))
}

// killed reads proc_pid_status(5).
func killed(status string) bool {
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "State":
			if strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X") {
				return true
			}
		case "SigPnd", "ShdPnd":
			pending, err := strconv.ParseUint(value, 16, 64)
			if err == nil && pending&(1<<(unix.SIGKILL-1)) != 0 {
				return true
			}
		}
	}
	return false
}

// wait waits until the process is gone, and kills it when ctx ends first: then
// it has until hard ends to go.
func (p process) wait(ctx, hard context.Context) error {
	fd, err := p.pidfd()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for sent := false; ; {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 50)
		switch {
		case n == 1:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("waiting for process %d: %w", p.PID, err)
		case hard.Err() != nil:
			return fmt.Errorf("process %d does not end: %w", p.PID, hard.Err())
		case ctx.Err() != nil && !sent:
			sent = true
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("killing process %d: %w", p.PID, err)
			}
		}
	}
}
