package lvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// runner runs one of lvm2's commands and returns what it wrote to its standard
// output. Its error is errNotRun, one of context's, or a *commandError.
type runner func(ctx context.Context, args ...string) ([]byte, error)

// errNotRun says that no command was started.
var errNotRun = errors.New("lvm can't be started")

// commandError is the error of a command that ran and ended.
type commandError struct {
	Command string
	Status  int
	Says    string // the last line that is an error's
}

func (e *commandError) Error() string {
	return fmt.Sprintf("%s ended with status %d: %s", e.Command, e.Status, e.Says)
}

// killedError says that a command did not heed a deadline.
type killedError struct {
	command string
	cause   error
	hard    bool // by SIGKILL: it may have left devices suspended
}

func (e *killedError) Error() string { return fmt.Sprintf("%s was killed: %v", e.command, e.cause) }
func (e *killedError) Unwrap() error { return e.cause }

const (
	// patience is how long a command may go on after SIGTERM, and how long one
	// that is stuck in the kernel after SIGKILL.
	patience = 5 * time.Second
	// maxOutput bounds a report: a volume is about a kilobyte of it.
	maxOutput = 64 << 20
)

// command is the runner of a program, lvm(8).
func command(program string) runner {
	return func(ctx context.Context, args ...string) ([]byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("%w: %w", errNotRun, err)
		}
		out, says := &bounded{most: maxOutput}, &bounded{most: 64 << 10}
		cmd := exec.Command(program, args...)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1"}
		cmd.Dir = "/"
		cmd.Stdout, cmd.Stderr = out, says
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it goes on if we die: half of its work is worse
		cmd.WaitDelay = patience                              // for what a child of it has open
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("%w: %w", errNotRun, err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		name := args[0]
		select {
		case err := <-ended:
			return result(name, out, says, err)
		case <-ctx.Done():
		}
		kill := func(s syscall.Signal) bool {
			_ = syscall.Kill(-cmd.Process.Pid, s) // gone already: just as well
			t := time.NewTimer(patience)
			defer t.Stop()
			select {
			case <-ended:
				return true
			case <-t.C:
				return false
			}
		}
		soft := kill(syscall.SIGTERM)
		if !soft {
			// One that is stuck in the kernel outlives this too, and ends when that does.
			kill(syscall.SIGKILL)
		}
		return nil, &killedError{name, context.Cause(ctx), !soft}
	}
}

func result(name string, out, says *bounded, err error) ([]byte, error) {
	var status *exec.ExitError
	switch {
	case errors.As(err, &status):
		return nil, &commandError{name, status.ExitCode(), lastError(says.kept)}
	case out.over:
		return nil, &commandError{name, 0, fmt.Sprintf("it said more than %d bytes", maxOutput)}
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return nil, &commandError{name, -1, err.Error()}
	}
	return out.kept, nil
}

// lastError is the last line of a command's standard error that is no warning, as
// one printable line.
func lastError(b []byte) string {
	last := ""
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "WARNING:") {
			last = line
		}
	}
	if last == "" {
		return "it gives no reason"
	}
	if len(last) > 300 {
		last = last[:300] + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(last, "?"))
}

// bounded keeps at most so many bytes and lets the rest go.
type bounded struct {
	kept []byte
	most int
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), b.most-len(b.kept))
	b.kept = append(b.kept, p[:n]...)
	b.over = b.over || n < len(p)
	return len(p), nil
}

// versionOf is the release in what `lvm version` says.
func versionOf(b []byte) string {
	for line := range bytes.Lines(b) {
		if _, v, ok := bytes.Cut(line, []byte("LVM version:")); ok {
			if f := strings.Fields(string(v)); len(f) > 0 && len(f[0]) < 40 {
				return f[0]
			}
		}
	}
	return ""
}
