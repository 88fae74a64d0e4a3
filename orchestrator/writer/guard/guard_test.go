package guard

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/writer"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/qemutest"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/qmp"
)

// The test binary is its own guard, and its own launcher that gets killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		os.Exit(Main(os.Args[2:], os.Stdin, os.Stdout))
	}
	if path := os.Getenv("GUARD_TEST_LAUNCHER"); path != "" {
		p, err := Pause(context.Background(), os.Args[0], path, time.Hour)
		if err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Stdout.WriteString("paused\n")
		<-p.Done()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// machine is a real QEMU that runs its firmware, and nothing else.
func machine(t *testing.T) string {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed (Debian: qemu-system-x86)")
	}
	dir, err := os.MkdirTemp("", "guard")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "qmp")
	cmd := exec.Command(qemu, "-M", "q35", "-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults",
		"-qmp", "unix:"+path+",server=on,wait=off")
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
		if t.Failed() {
			t.Log(log.String())
		}
	})
	waitFor(t, path, true)
	return path
}

// waitFor polls QMP until the VM runs, or does not.
func waitFor(t *testing.T, path string, running bool) {
	t.Helper()
	var last error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var s qmp.Status
		if s, last = status(t, path); last == nil && s.Running == running {
			return
		}
	}
	t.Fatalf("the VM did not get to running=%v: %v", running, last)
}

func status(t *testing.T, path string) (qmp.Status, error) {
	c, err := qmp.Dial(t.Context(), path, nil)
	if err != nil {
		return qmp.Status{}, err
	}
	defer c.Close()
	return c.QueryStatus(t.Context())
}

func TestPauseAndResume(t *testing.T) {
	path := machine(t)
	p, err := Pause(t.Context(), os.Args[0], path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if p.Was() != orchestrator.Running {
		t.Errorf("was %v", p.Was())
	}
	if _, err := Pause(t.Context(), os.Args[0], path, time.Minute); !errors.Is(err, orchestrator.ErrBusy) {
		t.Errorf("a second guard: %v", err)
	}
	out, err := p.Resume(t.Context())
	if err != nil || out.ByGuard || out.For <= 0 || out.From.IsZero() || out.WasState != orchestrator.Running {
		t.Fatalf("%+v, %v", out, err)
	}
	t.Logf("paused for %v", out.For)
	again, err := p.Resume(t.Context())
	if err != nil || again != out {
		t.Errorf("called again: %+v, %v", again, err)
	}
	if s, err := status(t, path); err != nil || !s.Running {
		t.Fatalf("%+v, %v", s, err)
	}
}

func TestLauncherIsKilled(t *testing.T) {
	path := machine(t)
	launcher := exec.Command(os.Args[0])
	launcher.Env = append(os.Environ(), "GUARD_TEST_LAUNCHER="+path)
	launcher.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := launcher.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := launcher.Start(); err != nil {
		t.Fatal(err)
	}
	word, _ := bufio.NewReader(out).ReadString('\n')
	if word != "paused\n" {
		launcher.Process.Kill()
		t.Fatalf("launcher said %q", word)
	}
	syscall.Kill(-launcher.Process.Pid, syscall.SIGTERM) // the whole group: the guard is not in it
	launcher.Process.Kill()
	launcher.Wait()
	waitFor(t, path, true)
}

func TestDeadlinePasses(t *testing.T) {
	path := machine(t)
	p, err := Pause(t.Context(), os.Args[0], path, 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	waitFor(t, path, true)
	out, err := p.Resume(t.Context())
	if err != nil || !out.ByGuard || out.For < 200*time.Millisecond {
		t.Fatalf("%+v, %v", out, err)
	}
}

func TestSignalsDoNotEndTheGuard(t *testing.T) {
	path := machine(t)
	cmd := exec.Command(os.Args[0], Command, "--qmp", path, "--limit", "1m")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	records := json.NewDecoder(out)
	var r record
	for r.Paused == nil {
		if err := records.Decode(&r); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM} {
		cmd.Process.Signal(s)
	}
	io.WriteString(in, resumeWord+"\n")
	if err := records.Decode(&r); err != nil || r.Resumed == nil || r.Resumed.By != byLauncher {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, path, true)
}

func TestGuardIsKilled(t *testing.T) {
	path := machine(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	exe := filepath.Join(t.TempDir(), "guard.sh")
	script := "#!/bin/sh\necho $$ >" + pidFile + "\nexec " + os.Args[0] + ` "$@"` + "\n"
	if err := os.WriteFile(exe, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := Pause(t.Context(), exe, path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("kill", "-KILL", strings.TrimSpace(string(b))).Run(); err != nil {
		t.Fatal(err)
	}
	out, err := p.Resume(t.Context())
	if err == nil || !out.ByGuard {
		t.Fatalf("a pause whose guard died counts as one that held: %+v", out)
	}
	waitFor(t, path, true)
}

func TestStoppedMachineIsLeftAlone(t *testing.T) {
	path := machine(t)
	c, err := qmp.Dial(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Stop(t.Context())
	c.Close()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Pause(t.Context(), os.Args[0], path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.Resume(t.Context())
	if err != nil || out.WasState != orchestrator.Paused || out.For != 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	if s, err := status(t, path); err != nil || s.Running {
		t.Fatalf("a machine that somebody else paused runs: %+v, %v", s, err)
	}
}

func TestNoMachine(t *testing.T) {
	_, err := Pause(t.Context(), os.Args[0], filepath.Join(t.TempDir(), "none"), time.Minute)
	if !errors.Is(err, writer.ErrGone) {
		t.Fatalf("%v", err)
	}
	if _, err := Pause(t.Context(), "/bin/true", "x", time.Minute); err == nil {
		t.Fatal("a guard that says nothing was believed")
	}
}

// fakeMachine runs the guard in this process, against a QEMU with faults.
func fakeMachine(t *testing.T, fault func(state *atomic.Bool, c qemutest.Command) (qemutest.Answer, bool)) (running *atomic.Bool, path string) {
	running = new(atomic.Bool)
	running.Store(true)
	return running, qemutest.QMP(t, func(c qemutest.Command) qemutest.Answer {
		if a, ok := fault(running, c); ok {
			return a
		}
		switch c.Execute {
		case "stop":
			running.Store(false)
		case "cont":
			running.Store(true)
		case "query-status":
			s := qmp.Status{Status: "paused"}
			if running.Load() {
				s = qmp.Status{Status: "running", Running: true}
			}
			return qemutest.Answer{Return: s}
		}
		return qemutest.Answer{}
	})
}

func TestQEMURefusesToContinue(t *testing.T) {
	var refusals atomic.Int32
	running, path := fakeMachine(t, func(_ *atomic.Bool, c qemutest.Command) (qemutest.Answer, bool) {
		if c.Execute != "cont" || refusals.Add(1) > 5 {
			return qemutest.Answer{}, false
		}
		switch refusals.Load() {
		case 2:
			return qemutest.Answer{Hangup: true}, true
		case 3:
			return qemutest.Answer{Raw: "rubbish\n"}, true
		}
		return qemutest.Answer{Error: "not now"}, true
	})
	var out bytes.Buffer
	if err := run(path, time.Minute, strings.NewReader(""), &out); err != nil {
		t.Fatal(err)
	}
	if !running.Load() || refusals.Load() <= 5 {
		t.Fatalf("running %v after %d", running.Load(), refusals.Load())
	}
	if !strings.Contains(out.String(), string(byOrphaned)) {
		t.Errorf("said %s", out.String())
	}
}

func TestStopWithoutAnswer(t *testing.T) {
	running, path := fakeMachine(t, func(s *atomic.Bool, c qemutest.Command) (qemutest.Answer, bool) {
		if c.Execute == "stop" {
			s.Store(false)
			return qemutest.Answer{Silent: true}, true
		}
		return qemutest.Answer{}, false
	})
	in, w := io.Pipe()
	defer w.Close()
	var out bytes.Buffer
	if err := run(path, 100*time.Millisecond, in, &out); err == nil {
		t.Fatal("a stop without an answer counts as a pause")
	}
	if !running.Load() {
		t.Fatal("left paused")
	}
}

func TestSomebodyElseResumes(t *testing.T) {
	var told atomic.Bool
	running, path := fakeMachine(t, func(s *atomic.Bool, c qemutest.Command) (qemutest.Answer, bool) {
		// After the guard has seen "paused", another client says cont.
		if c.Execute == "query-status" && !s.Load() && told.CompareAndSwap(false, true) {
			return qemutest.Answer{Return: qmp.Status{Status: "paused"}}, true
		}
		if told.Load() {
			s.Store(true)
		}
		return qemutest.Answer{}, false
	})
	var out bytes.Buffer
	if err := run(path, time.Minute, strings.NewReader(resumeWord+"\n"), &out); err != nil {
		t.Fatal(err)
	}
	if !running.Load() || !strings.Contains(out.String(), string(byOther)) {
		t.Fatalf("said %s", out.String())
	}
}
