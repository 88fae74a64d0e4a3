package attach

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/lun/process"
)

// lifeline is a launcher's hold on a helper: the helper undoes its work when it
// breaks before keep.
type lifeline struct {
	stdin io.WriteCloser
	cmd   *exec.Cmd
}

// launch starts a helper and waits until its device is open. What it is, is in
// the record before it is told what to do.
func (h *Host) launch(ctx context.Context, rec *record, s spec, files ...*os.File) (r reply, err error) {
	ctx, cancel := context.WithTimeout(ctx, h.o.StartTimeout)
	defer cancel()
	s.Timeout = h.o.StartTimeout
	log, err := os.OpenFile(h.runPath(rec.ID, ".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return r, err
	}
	defer log.Close()
	cmd := exec.Command(h.o.Helper[0], h.o.Helper[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stderr, cmd.ExtraFiles, cmd.Dir = log, files, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return r, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return r, err
	}
	if err := cmd.Start(); err != nil {
		return r, fmt.Errorf("starting the helper: %w", err)
	}
	rec.link = &lifeline{stdin: in, cmd: cmd}
	defer out.Close()
	if rec.Helper, err = process.Of(cmd.Process.Pid); err != nil {
		return r, err
	}
	if err := rec.save(); err != nil {
		return r, err
	}
	stop := context.AfterFunc(ctx, func() { out.Close() })
	defer stop()
	b, err := json.Marshal(s)
	if err != nil {
		return r, err
	}
	_, werr := in.Write(append(b, '\n'))
	line, err := bufio.NewReader(io.LimitReader(out, 1<<20)).ReadBytes('\n')
	switch {
	case ctx.Err() != nil:
		return r, fmt.Errorf("waiting for the helper: %w", ctx.Err())
	case err != nil:
		return r, fmt.Errorf("the helper ended without a word%s: %w", lastWords(log.Name()), errors.Join(err, werr))
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("the helper's answer: %w", err)
	}
	if r.Error != nil {
		return r, r.Error
	}
	rec.Size, rec.Warning = r.Size, r.Warning
	return r, nil
}

// lastWords is the end of a helper's log, for an error message.
func lastWords(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%q)", b[max(0, len(b)-300):])
}

// keep lets the helper go on without this process.
func (rec *record) keep() error {
	if rec.link == nil {
		return nil
	}
	_, err := io.WriteString(rec.link.stdin, keepWord+"\n")
	err = errors.Join(err, rec.link.stdin.Close())
	link := rec.link
	rec.link = nil
	go func() { _ = link.cmd.Wait() }() // reaped, if we live that long
	if err != nil {
		return fmt.Errorf("the helper ended: %w", err)
	}
	return nil
}

// killPatience is for how long a helper that was killed may take to be gone.
const killPatience = 10 * time.Second

// endHelper has the helper end: by itself within the patience, or killed.
func (h *Host) endHelper(ctx context.Context, rec *record, patience time.Duration) error {
	if rec.link != nil {
		rec.link.stdin.Close()
		link := rec.link
		rec.link = nil
		go func() { _ = link.cmd.Wait() }()
	}
	soft, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	hard, cancel := context.WithTimeout(ctx, patience+killPatience)
	defer cancel()
	return endWithin(soft, hard, rec.Helper)
}
