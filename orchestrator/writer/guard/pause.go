package guard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/writer"
)

// Command is the hidden command that exe must answer with Main.
const Command = "guard"

// Paused is a VM that a guard holds. It is a writer.Pause.
type Paused struct {
	path  string
	from  time.Time // ours, with its monotonic reading
	was   orchestrator.Power
	stdin io.WriteCloser
	ask   sync.Once
	done  chan struct{} // closed when the guard has ended, out and err are set then
	out   orchestrator.Pause
	err   error
}

var _ writer.Pause = (*Paused)(nil)

// Pause starts a guard on the QMP socket at qmpPath and returns when the VM
// stands. exe is the program that answers Command with Main, usually
// os.Executable(). Whatever Pause returns, no VM stays paused for longer than
// limit, or longer than this process lives.
//
// Errors: orchestrator.ErrBusy if another client holds the socket,
// writer.ErrGone if there is no QEMU, or what the guard said.
func Pause(ctx context.Context, exe, qmpPath string, limit time.Duration) (*Paused, error) {
	if limit <= 0 {
		return nil, fmt.Errorf("guard: a pause needs a limit, not %v", limit)
	}
	cmd := exec.Command(exe, Command, "--qmp", qmpPath, "--limit", limit.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal, no signal to our group reaches it
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("guard: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("guard: %w", err)
	}
	p := &Paused{path: qmpPath, from: time.Now(), stdin: stdin, done: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("guard: start %s: %w", exe, err)
	}
	records := make(chan record, 1)
	go p.follow(cmd, stdout, records)

	select {
	case r, ok := <-records:
		switch {
		case !ok:
			<-p.done
			return nil, p.err
		case r.Error != "":
			return nil, r.asError()
		case r.Paused == nil:
			return nil, errors.New("guard: it did not say that the VM is paused")
		}
		return p, nil
	case <-ctx.Done():
		stdin.Close() // the guard takes us for dead and lets the VM run
		return nil, fmt.Errorf("guard: pause: %w", context.Cause(ctx))
	}
}

func (r record) asError() error {
	switch {
	case r.Busy:
		return fmt.Errorf("guard: %s: %w", r.Error, orchestrator.ErrBusy)
	case r.Gone:
		return fmt.Errorf("guard: %s: %w", r.Error, writer.ErrGone)
	}
	return fmt.Errorf("guard: %s", r.Error)
}

// Was is what the VM was before; if it is not Running, nothing was paused.
func (p *Paused) Was() orchestrator.Power { return p.was }

// Done is closed when the pause is over, whoever ended it.
func (p *Paused) Done() <-chan struct{} { return p.done }

// Resume is part of writer.Pause. An error after which the VM runs says that
// the pause did not hold: what was done meanwhile is not one instant.
func (p *Paused) Resume(ctx context.Context) (orchestrator.Pause, error) {
	p.ask.Do(func() {
		_, _ = io.WriteString(p.stdin, resumeWord+"\n") // an error means that the guard has ended: done says how
		p.stdin.Close()
	})
	select {
	case <-p.done:
		return p.out, p.err
	case <-ctx.Done():
		return orchestrator.Pause{}, fmt.Errorf("guard: it goes on trying to resume: %w", context.Cause(ctx))
	}
}

// follow reads what the guard says until it ends, and stands in for a guard
// that died before its work was done.
func (p *Paused) follow(cmd *exec.Cmd, stdout io.Reader, records chan<- record) {
	defer close(records)
	defer close(p.done)
	defer p.stdin.Close()
	var held *pausedRecord
	var resumed *resumedRecord
	said, stopping := "", false
	s := bufio.NewScanner(stdout)
	for s.Scan() {
		var r record
		if json.Unmarshal(s.Bytes(), &r) != nil {
			continue
		}
		switch {
		case r.Stopping:
			stopping = true
			continue
		case r.Paused != nil:
			held = r.Paused
			p.was = power(held.Status)
			p.out = orchestrator.Pause{From: held.From, WasState: p.was}
		case r.Resumed != nil:
			resumed = r.Resumed
		case r.Error != "":
			said = r.Error
		}
		select {
		case records <- r:
		default: // nobody waits for the later ones
		}
	}
	waitErr := cmd.Wait()
	switch {
	case held != nil && !held.Held: // was not running: nothing to do
	case resumed != nil:
		p.out.For, p.out.ByGuard = resumed.For, resumed.By != byLauncher
		switch resumed.By {
		case byLauncher, byOrphaned, byDeadline:
		case byOther:
			p.err = errors.New("guard: another QMP client let the VM run: the pause did not hold")
		case byEnd:
			p.err = fmt.Errorf("guard: the VM ended while it was paused: %w", writer.ErrGone)
		}
	case said != "": // it failed, and left the VM running
		p.err = errors.New("guard: " + said)
	case !stopping: // it never got as far as touching the VM
		p.err = fmt.Errorf("guard: it did nothing and ended: %w", waitErr)
	default:
		// It was killed, and the VM may stand.
		_, err := letRun(nil, p.path)
		p.out.For = time.Since(p.from)
		p.out.ByGuard = true // it may have run for a moment that nobody measured
		p.err = fmt.Errorf("guard: it died, and the VM was resumed in its place: %w", waitErr)
		if err != nil {
			p.err = fmt.Errorf("guard: it died (%w): %w", waitErr, writer.ErrGone)
		}
	}
}

// power translates QEMU's run state (qapi/run-state.json).
func power(status string) orchestrator.Power {
	switch status {
	case "running":
		return orchestrator.Running
	case "shutdown":
		return orchestrator.Off
	case "":
		return orchestrator.PowerUnknown
	}
	return orchestrator.Paused
}
