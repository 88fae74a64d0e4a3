package program

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

var (
	// errNotAsked says that the request certainly did not get to the program.
	errNotAsked = errors.New("the program can't be started")
	errClosed   = errors.New("the program has been ended")
)

// patience is how long what a killed program has started may keep its output open.
const patience = 2 * time.Second

// command prepares a process: in a process group of its own, which is killed as a
// whole when ctx ends, or by the kernel when this process dies.
func command(ctx context.Context, o *Options, argument string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, o.Command[0], append(o.Command[1:len(o.Command):len(o.Command)], argument)...)
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}, o.Environment...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = patience
	return cmd
}

// once makes a call by a process of its own.
func once(ctx context.Context, o *Options, c call, id string, line []byte) (reply, error) {
	cmd := command(ctx, o, string(c))
	out := &bounded{most: maxReply}
	log := &lines{log: o.Log}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(line), out, log
	if err := cmd.Start(); err != nil {
		return reply{}, fmt.Errorf("%w: %w", errNotAsked, err)
	}
	err := cmd.Wait()
	// What it has left behind ends with it.
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	log.flush()
	if ctx.Err() != nil {
		return reply{}, fmt.Errorf("the program was killed: %w", context.Cause(ctx))
	}
	if out.over {
		return reply{}, errTooLong
	}
	a, parseErr := parse(out.kept, id)
	switch {
	case parseErr == nil:
		return a, nil
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return reply{}, fmt.Errorf("the program failed (%w): %s", err, log.lastLine())
	}
	return reply{}, parseErr
}

// parse reads a reply that should be the only line.
func parse(b []byte, id string) (a reply, err error) {
	line, rest, _ := bytes.Cut(b, []byte("\n"))
	if len(bytes.TrimSpace(line)) == 0 {
		return a, errors.New("the program gave no reply")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return a, fmt.Errorf("the program said more than its reply: %.80q", bytes.TrimSpace(rest))
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return reply{}, fmt.Errorf("the program's reply: %w: %.80q", err, line)
	}
	return a, a.check(id)
}

func (a reply) check(id string) error {
	switch {
	case a.ID != id:
		return fmt.Errorf("the program's reply: id %.80q, want %q", a.ID, id)
	case (a.Error == nil) == (a.Result == nil):
		return errors.New("the program's reply: want a result or an error")
	}
	return nil
}

// bounded keeps at most so many bytes, and takes no more than that.
type bounded struct {
	kept []byte
	most int
	over bool
}

var errTooLong = fmt.Errorf("the program's reply is longer than %d bytes", maxReply)

// Write implements io.Writer. After its error the program writes into a pipe that
// nobody reads, and ends.
func (b *bounded) Write(p []byte) (int, error) {
	if b.over = b.over || len(p) > b.most-len(b.kept); b.over {
		return 0, errTooLong
	}
	b.kept = append(b.kept, p...)
	return len(p), nil
}

// lines logs what is written to it, line by line.
type lines struct {
	log  *slog.Logger
	part []byte
	last string
}

const maxLine = 2000

func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		l.part = append(l.part, line[:min(len(line), maxLine-len(l.part))]...)
		if p = rest; whole {
			l.flush()
		}
	}
	return n, nil
}

func (l *lines) flush() {
	if s := strings.ToValidUTF8(strings.TrimSpace(string(l.part)), "?"); s != "" {
		l.log.Info("provider", "says", s)
		l.last = s
	}
	l.part = l.part[:0]
}

func (l *lines) lastLine() string {
	if l.last == "" {
		return "it said nothing"
	}
	return fmt.Sprintf("%.200q", l.last)
}
