package rbd

import (
	"context"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// environment is all that a program of Ceph's gets, beside what it is told.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/"}

// child is a program that serves an image. The kernel ends it with us, whatever
// ends us.
type child struct {
	name string
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	says tail          // to be read after that
}

func start(env []string, stdout io.Writer, program string, args ...string) (*child, error) {
	c := &child{name: filepath.Base(program), cmd: exec.Command(program, args...), gone: make(chan struct{})}
	c.cmd.Env = append(env, environment...)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.cmd.Stdout, c.cmd.Stderr = stdout, &c.says
	started := make(chan error, 1)
	go func() {
		// The kernel's signal goes with the thread that forked (prctl(2),
		// PR_SET_PDEATHSIG): it stays and waits.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			_ = c.cmd.Wait() // ended by us, or says has why
			close(c.gone)
		}
	}()
	return c, <-started
}

// end has the program end by itself, and waits until it has.
func (c *child) end() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	c.ended()
}

// ended waits until the program, which has been told to, has ended.
func (c *child) ended() {
	select {
	case <-c.gone:
	case <-time.After(10 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.gone
	}
}

// until tries until that succeeds, the program is gone, or ctx ends.
func (c *child) until(ctx context.Context, try func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-c.gone:
			return driver.Errorf(driver.Unreachable, "%s ended: %s%w", c.name, said(c.says), err)
		case <-ctx.Done():
			return driver.Errorf(driver.Unreachable, "%s: %w: %w", c.name, context.Cause(ctx), err)
		}
	}
}
