package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/orchestrator"
)

// Initiator is the name that the stage's VMs log in with, and ProofInitiator
// that of whoever reads the copies.
const (
	Initiator      = "iqn.2026-01.org.example:hypervisor"
	ProofInitiator = "iqn.2026-01.org.example:proof"
	target         = "iqn.2026-01.org.example:array"
)

// Options say where a stage stands. Exe is the cleave program; Dir must be short
// (it holds sockets) and on a disk with room for the volumes' data.
type Options struct {
	Exe string
	Dir string
	// Portals is how many portals the array has; default 1.
	Portals int
	// Arrays are further arrays of the control plane's, each with the lines of its
	// entry in cleave.yaml.
	Arrays []string
	// Output receives what the array and control plane log; nil: files in Dir.
	Output io.Writer
}

// Stage is one array, one control plane and their VMs.
type Stage struct {
	o       Options
	portals []string
	secret  string
	proxy   *proxy

	mu    sync.Mutex
	array *process
	serve *process
	vms   []*lab.Machine
}

// New makes a stage whose array runs, with three pools.
func New(ctx context.Context, o Options) (*Stage, error) {
	s := &Stage{o: o}
	for range max(1, o.Portals) {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		s.portals = append(s.portals, fmt.Sprintf("127.0.0.1:%d", port))
	}
	for _, p := range []string{"state", "serve", "pool-a", "pool-b", "pool-c"} {
		if err := os.MkdirAll(s.path(p), 0o700); err != nil {
			return nil, err
		}
	}
	s.secret = "stage-secret-" + fmt.Sprint(os.Getpid()) + "-0123"
	if err := os.WriteFile(s.path("chap.secret"), []byte(s.secret+"\n"), 0o600); err != nil {
		return nil, err
	}
	if err := s.StartArray(ctx); err != nil {
		return nil, err
	}
	var err error
	if s.proxy, err = newProxy(s.path("p.sock"), s.path("a.sock")); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	for _, iqn := range []string{Initiator, ProofInitiator} {
		if _, err := s.Cleave(ctx, "initiator", "add", iqn, "--chap-user", "stage", "--chap-secret-file", s.path("chap.secret")); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func (s *Stage) path(name string) string { return filepath.Join(s.o.Dir, name) }

// Portals are where the array serves iSCSI, and Target under which name.
func (s *Stage) Portals() []string { return slices.Clone(s.portals) }
func (s *Stage) Target() string    { return target }

// Account is what the stage's initiators log in with.
func (s *Stage) Account() (user, secret string) { return "stage", s.secret }

// Dir is the stage's directory.
func (s *Stage) Dir() string { return s.o.Dir }

// freePort asks the kernel for a port that nobody uses.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// StartArray starts the data plane, and returns when it answers.
func (s *Stage) StartArray(ctx context.Context) error {
	args := []string{"array", "--state", s.path("state"), "--pool", "a=" + s.path("pool-a"), "--pool", "b=" + s.path("pool-b"),
		"--pool", "c=" + s.path("pool-c"), "--iqn", target, "--array-socket", s.path("a.sock")}
	for _, p := range s.portals {
		args = append(args, "--portal", p)
	}
	p, err := s.start("array", args...)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.array = p
	s.mu.Unlock()
	return s.answers(ctx, p, "volume", "list")
}

// KillArray ends the data plane as a crash would.
func (s *Stage) KillArray() { s.take(&s.array).kill() }

// StartServe starts the control plane over the VMs given, and returns when it
// answers. Without VMs it serves those of the last time.
func (s *Stage) StartServe(ctx context.Context, vms ...*lab.Machine) error {
	if len(vms) > 0 {
		s.vms = vms
	}
	if err := os.WriteFile(s.path("cleave.yaml"), []byte(s.config()), 0o600); err != nil {
		return err
	}
	p, err := s.start("serve", "serve", "--config", s.path("cleave.yaml"), "--socket", s.path("c.sock"))
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.serve = p
	s.mu.Unlock()
	return s.answers(ctx, p, "snapshot", "list")
}

// KillServe ends the control plane as a crash would.
func (s *Stage) KillServe() { s.take(&s.serve).kill() }

// StopServe ends it as an operator would.
func (s *Stage) StopServe() error { return s.take(&s.serve).stop() }

func (s *Stage) take(p **process) *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := *p
	*p = nil
	return x
}

// answers waits until the process answers a command.
func (s *Stage) answers(ctx context.Context, p *process, args ...string) error {
	for {
		_, err := s.Cleave(ctx, args...)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("cleave %s ended: %s", p.name, p.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("cleave %s does not answer: %w", p.name, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Disk makes a volume with one mirror in each pool and exposes it to the VMs.
func (s *Stage) Disk(ctx context.Context, name, size string) (lab.LUN, error) {
	if _, err := s.Cleave(ctx, "volume", "create", name, "--size", size, "--mirrors", "3"); err != nil {
		return lab.LUN{}, err
	}
	out, err := s.Cleave(ctx, "volume", "expose", name, "--to", Initiator, "-o", "json")
	if err != nil {
		return lab.LUN{}, err
	}
	var v struct {
		LUN struct {
			IQN     string   `json:"iqn"`
			LUN     uint64   `json:"lun"`
			Portals []string `json:"portals"`
		} `json:"lun"`
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || len(v.LUN.Portals) == 0 {
		return lab.LUN{}, fmt.Errorf("volume expose %s: no portal in %q: %w", name, out, err)
	}
	return s.lun(Initiator, v.LUN.Portals, v.LUN.IQN, v.LUN.LUN), nil
}

func (s *Stage) lun(initiator string, portals []string, iqn string, n uint64) lab.LUN {
	return lab.LUN{Portal: portals[0], Target: iqn, Number: int(n), Initiator: initiator, User: "stage", Secret: s.secret}
}

// LUN is how the proof reads a LUN of a set.
func (s *Stage) LUN(l orchestrator.LUN) lab.LUN {
	return s.lun(ProofInitiator, l.Portals, l.IQN, l.LUN)
}

// Error is a cleave command that did not exit with 0.
type Error struct {
	Args   []string
	Code   int
	Stderr string
}

func (e *Error) Error() string {
	return fmt.Sprintf("cleave %s: exit status %d: %s", strings.Join(e.Args, " "), e.Code, strings.TrimSpace(e.Stderr))
}

// Command prepares a cleave command that finds the stage's sockets.
func (s *Stage) Command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, s.o.Exe, args...)
	c.Env = append(os.Environ(), "CLEAVE_SOCKET="+s.path("c.sock"), "CLEAVE_ARRAY_SOCKET="+s.path("a.sock"), "NO_COLOR=1")
	return c
}

// Cleave runs a cleave command and returns what it printed. Another exit status
// than 0 is an *Error, beside the output.
func (s *Stage) Cleave(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	c := s.Command(ctx, args...)
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = &Error{Args: args, Code: exit.ExitCode(), Stderr: stderr.String()}
	}
	return stdout.String(), err
}

// Set runs a cleave command that prints a set document.
func (s *Stage) Set(ctx context.Context, args ...string) (orchestrator.Set, error) {
	var set orchestrator.Set
	out, err := s.Cleave(ctx, append(slices.Clone(args), "-o", "json")...)
	if err != nil && out == "" {
		return set, err
	}
	if jerr := json.Unmarshal([]byte(out), &set); jerr != nil {
		return set, errors.Join(err, fmt.Errorf("cleave %s: %w in %.200q", strings.Join(args, " "), jerr, out))
	}
	return set, err
}

// DelaySplit holds every split back for d before the array hears of it.
func (s *Stage) DelaySplit(d time.Duration) { s.proxy.delay.Store(int64(d)) }

// Close ends both planes, in good order, and leaves the directory to the caller.
// VMs are closed by whoever booted them, before.
func (s *Stage) Close() error {
	var errs []error
	if p := s.take(&s.serve); p != nil {
		errs = append(errs, p.stop())
	}
	if s.proxy != nil {
		errs = append(errs, s.proxy.Close())
	}
	if p := s.take(&s.array); p != nil {
		errs = append(errs, p.stop())
	}
	return errors.Join(errs...)
}

// process is a plane that runs.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

func (s *Stage) start(name string, args ...string) (*process, error) {
	p := &process{name: name, log: s.path(name + ".log"), done: make(chan struct{})}
	f, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.cmd = exec.Command(s.o.Exe, args...)
	p.cmd.Stdout, p.cmd.Stderr = f, f
	if s.o.Output != nil {
		p.cmd.Stdout, p.cmd.Stderr = s.o.Output, s.o.Output
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) kill() {
	if p == nil {
		return
	}
	p.cmd.Process.Kill() //nolint:errcheck // it may have ended by itself
	<-p.done
}

// stop asks a process to end, and fails if it does not do so cleanly.
func (p *process) stop() error {
	if p == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.kill()
		return fmt.Errorf("cleave %s did not end within 30 s of SIGTERM", p.name)
	}
	if p.err != nil {
		return fmt.Errorf("cleave %s: %w: %s", p.name, p.err, p.lastWords())
	}
	return nil
}

func (p *process) lastWords() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}
