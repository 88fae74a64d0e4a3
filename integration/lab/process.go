package lab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// process is a child that the kernel kills when we die, however we die.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once it is reaped; then err holds
	err  error
}

// startProcess starts a program with its output in a log file.
//
// The kernel ties PR_SET_PDEATHSIG to the thread that forked, not to the
// process (prctl(2)), so that thread stays locked and waits for the child.
func startProcess(program string, args []string, logFile string) (*process, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	defer log.Close()
	p := &process{cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("lab: starting %s: %w", program, err)
	}
	return p, nil
}

// kill ends the process and waits until it is gone.
func (p *process) kill() {
	select {
	case <-p.done:
		return
	default:
	}
	// Reaped only by our own Wait, so the number cannot be someone else's yet.
	_ = p.cmd.Process.Kill()
	<-p.done
}

// tail is the end of a text file, for an error message.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}
