package assemble

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/arrays/embedded/remote"
)

const (
	arrayUp     = time.Minute            // how long the data plane may take until it answers
	arrayAsk    = 100 * time.Millisecond // how often it is asked meanwhile
	arrayStop   = 30 * time.Second       // how long it may take to end
	arrayPause  = time.Second            // before it is started again, doubled each time …
	arrayPauses = time.Minute            // … up to this
)

// superviseArray has a data plane answer at socket: one that runs already is
// left to whoever started it; otherwise `cleave array` is started as a process
// of its own, and again whenever it ends. It is in a process group of its own
// and outlives a control plane that is killed, so that production I/O goes on;
// the next control plane finds it running. stop ends it in order.
func superviseArray(ctx context.Context, config, socket string, log *slog.Logger) (stop func(), err error) {
	if answers(ctx, socket) == nil {
		log.Info("data plane is running already", "socket", socket)
		return func() {}, nil
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("starting the data plane: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	p, err := startArray(ctx, exe, config)
	if err == nil {
		err = p.waitUp(ctx, socket)
	}
	if err != nil {
		cancel()
		if p != nil {
			<-p.done
		}
		return nil, err
	}
	log.Info("data plane is up", "pid", p.cmd.Process.Pid, "socket", socket)
	var wg sync.WaitGroup
	wg.Go(func() {
		for pause := arrayPause; ; pause = min(2*pause, arrayPauses) {
			if p != nil {
				<-p.done
				err = p.err
			}
			if ctx.Err() != nil {
				return
			}
			log.Error("data plane ended; it is started again", "error", err, "in", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			p, err = startArray(ctx, exe, config)
		}
	})
	return func() { cancel(); wg.Wait() }, nil
}

// child is a data plane that we started.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended …
	err  error         // … with this
}

// startArray starts a data plane that is told to end when ctx does.
func startArray(ctx context.Context, exe, config string) (*child, error) {
	cmd := exec.CommandContext(ctx, exe, "array", "--config", config)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = arrayStop
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the data plane: %w", err)
	}
	p := &child{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// waitUp waits until the data plane answers, or has ended.
func (p *child) waitUp(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, arrayUp)
	defer cancel()
	tick := time.NewTicker(arrayAsk)
	defer tick.Stop()
	for {
		err := answers(ctx, socket)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("the data plane did not start (%w); what it said is above", p.err)
		case <-ctx.Done():
			return fmt.Errorf("the data plane does not answer at %s: %w", socket, err)
		case <-tick.C:
		}
	}
}

func answers(ctx context.Context, socket string) error {
	c := remote.New(socket)
	defer c.Close()
	_, err := c.Status(ctx)
	return err
}
