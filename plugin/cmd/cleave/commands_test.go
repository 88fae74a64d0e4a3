package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/luntest"
)

// patience bounds each wait of a script; reaching it is a failure.
const patience = time.Minute

// commands of the scripts, besides testscript's own:
//
//	cleave ARGS…       runs the program to its end
//	status N           the exit status of the last cleave
//	keep NAME…         sets each NAME to one of the words that the last command said on stdout, in order
//	lun NAME           sets NAME to the LUN number in the JSON that it said there
//	port NAME          sets NAME to an address of this host with a port that is free
//	listen ADDR        listens there until the script's end
//	up NAME ARGS…      starts `cleave ARGS…` and waits until it has said a line on stdout, which becomes NAME.out
//	daemon NAME ARGS…  starts `cleave ARGS…` and waits for nothing
//	hear NAME TEXT     waits until it has said TEXT, on stdout or stderr
//	ask ARGS…          runs `cleave ARGS…` until it succeeds
//	down NAME [N]      sends it SIGTERM and waits; its exit status is N, or 0; what it said on stderr becomes NAME.err
//	crash NAME         sends it SIGKILL and waits
//	kill-worker NAME   kills the processes that it started, and no other
//	ended NAME N       waits until it has ended by itself, with exit status N; stderr becomes NAME.err
//	unpack NAME FILE   writes an image of lun/testdata
//	poke FILE OFF HEX  overwrites bytes
//	kill-later FILE    kills the process whose number is in FILE at the script's end
//	certificates DIR   makes ca-, server- and client-cert.pem and -key.pem
//	small DIR SIZE     mounts a file system of SIZE bytes on DIR until the script's end
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"cleave": func(ts *testscript.TestScript, neg bool, args []string) {
		code := runCleave(ts, args)
		ts.Setenv("status", strconv.Itoa(code))
		if (code != 0) != neg {
			ts.Fatalf("cleave %v: exit status %d", args, code)
		}
	},
	"status": func(ts *testscript.TestScript, _ bool, args []string) {
		if got := ts.Getenv("status"); len(args) != 1 || got != args[0] {
			ts.Fatalf("exit status %s, want %v", got, args)
		}
	},
	"keep": func(ts *testscript.TestScript, _ bool, args []string) {
		lines := strings.Fields(ts.ReadFile("stdout"))
		if len(lines) != len(args) {
			ts.Fatalf("stdout has %d words, want %d", len(lines), len(args))
		}
		for i, name := range args {
			ts.Setenv(name, lines[i])
		}
	},
	"lun": func(ts *testscript.TestScript, _ bool, args []string) {
		var v struct {
			LUN struct{ LUN *uint64 }
		}
		ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
		if v.LUN.LUN == nil {
			ts.Fatalf("no LUN in what was said")
		}
		ts.Setenv(args[0], strconv.FormatUint(*v.LUN.LUN, 10))
	},
	"port": func(ts *testscript.TestScript, _ bool, args []string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		ts.Setenv(args[0], l.Addr().String())
		l.Close()
	},
	"listen": func(ts *testscript.TestScript, _ bool, args []string) {
		l, err := net.Listen("tcp", args[0])
		ts.Check(err)
		ts.Defer(func() { l.Close() })
	},
	"up": func(ts *testscript.TestScript, _ bool, args []string) {
		d := begin(ts, args)
		wait(ts, args[0]+" says nothing", func() bool {
			select {
			case <-d.over:
				ts.Fatalf("%v ended: %v\n%s", args, d.err, d.errs.String())
			default:
			}
			return strings.HasSuffix(d.out.String(), "\n")
		})
		ts.Check(os.WriteFile(ts.MkAbs(args[0]+".out"), []byte(d.out.String()), 0o600))
	},
	"daemon": func(ts *testscript.TestScript, _ bool, args []string) { begin(ts, args) },
	"hear": func(ts *testscript.TestScript, _ bool, args []string) {
		d := named(ts, args[0])
		wait(ts, fmt.Sprintf("%s does not say %q", args[0], args[1]), func() bool { return strings.Contains(d.out.String()+d.errs.String(), args[1]) })
	},
	"ask": func(ts *testscript.TestScript, _ bool, args []string) {
		wait(ts, fmt.Sprintf("cleave %v fails", args), func() bool { return runCleave(ts, args) == 0 })
	},
	"down": func(ts *testscript.TestScript, _ bool, args []string) {
		d, want := named(ts, args[0]), 0
		if len(args) > 1 {
			want, _ = strconv.Atoi(args[1])
		}
		_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		d.wait(ts, args[0])
		if got := d.cmd.ProcessState.ExitCode(); got != want {
			ts.Fatalf("%s: exit status %d, want %d\n%s", args[0], got, want, d.errs.String())
		}
		ts.Check(os.WriteFile(ts.MkAbs(args[0]+".err"), []byte(d.errs.String()), 0o600))
	},
	"crash": func(ts *testscript.TestScript, _ bool, args []string) {
		d := named(ts, args[0])
		ts.Check(d.cmd.Process.Kill())
		d.wait(ts, args[0])
	},
	"kill-worker": func(ts *testscript.TestScript, _ bool, args []string) {
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", named(ts, args[0]).cmd.Process.Pid))
		ts.Check(err)
		killed := 0
		for _, list := range lists {
			b, err := os.ReadFile(list)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue // the thread has ended
			}
			ts.Check(err)
			for _, child := range strings.Fields(string(b)) {
				pid, err := strconv.Atoi(child)
				ts.Check(err)
				ts.Check(syscall.Kill(pid, syscall.SIGKILL))
				killed++
			}
		}
		if killed != 1 {
			ts.Fatalf("%s has %d processes, want 1", args[0], killed)
		}
	},
	"ended": func(ts *testscript.TestScript, _ bool, args []string) {
		d := named(ts, args[0])
		d.wait(ts, args[0])
		if got := strconv.Itoa(d.cmd.ProcessState.ExitCode()); got != args[1] {
			ts.Fatalf("%s: exit status %s, want %s\n%s", args[0], got, args[1], d.errs.String())
		}
		ts.Check(os.WriteFile(ts.MkAbs(args[0]+".err"), []byte(d.errs.String()), 0o600))
	},
	"unpack": func(ts *testscript.TestScript, _ bool, args []string) {
		ts.Check(luntest.Unpack(args[0], ts.MkAbs(args[1])))
	},
	"poke": func(ts *testscript.TestScript, _ bool, args []string) {
		ts.Check(poke(ts.MkAbs(args[0]), args[1], args[2]))
	},
	"kill-later": func(ts *testscript.TestScript, _ bool, args []string) {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		ts.Check(err)
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		ts.Check(err)
		ts.Defer(func() { ts.Check(syscall.Kill(pid, syscall.SIGKILL)) })
	},
	"certificates": makeCertificates,
	"small": func(ts *testscript.TestScript, _ bool, args []string) {
		dir := ts.MkAbs(args[0])
		ts.Check(os.Mkdir(dir, 0o700))
		ts.Check(unix.Mount("none", dir, "tmpfs", 0, "size="+args[1]))
		ts.Defer(func() { ts.Check(unix.Unmount(dir, unix.MNT_DETACH)) })
	},
}

// world is what one script has running.
type world struct{ daemons map[string]*daemon }

type worldKey struct{}

// end kills what a script that failed left running.
func (w *world) end() {
	for _, d := range w.daemons {
		_ = d.cmd.Process.Kill() // most have ended
		<-d.over
	}
}

// daemon is a running program.
type daemon struct {
	cmd       *exec.Cmd
	out, errs said
	over      chan struct{} // closed when it has ended …
	err       error         // … with this
}

func command(ts *testscript.TestScript, args []string) *exec.Cmd {
	self, err := os.Executable()
	ts.Check(err)
	cmd := exec.Command(self, args...)
	cmd.Env = []string{asProgram + "=1"}
	cmd.Dir = ts.MkAbs(".")
	for _, k := range []string{"PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "CLEAVE_CONFIG", "CLEAVE_ARRAY_SOCKET"} {
		cmd.Env = append(cmd.Env, k+"="+ts.Getenv(k))
	}
	return cmd
}

func runCleave(ts *testscript.TestScript, args []string) int {
	cmd := command(ts, args)
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	err := cmd.Run()
	if ee := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ee) {
		ts.Fatalf("%v", err)
	}
	return cmd.ProcessState.ExitCode()
}

// begin starts args[1:] under the name args[0].
func begin(ts *testscript.TestScript, args []string) *daemon {
	d := &daemon{cmd: command(ts, args[1:]), over: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.errs
	ts.Check(d.cmd.Start())
	go func() {
		d.err = d.cmd.Wait()
		close(d.over)
	}()
	ts.Value(worldKey{}).(*world).daemons[args[0]] = d
	return d
}

func named(ts *testscript.TestScript, name string) *daemon {
	d := ts.Value(worldKey{}).(*world).daemons[name]
	if d == nil {
		ts.Fatalf("nothing was started as %q", name)
	}
	return d
}

func (d *daemon) wait(ts *testscript.TestScript, name string) {
	select {
	case <-d.over:
	case <-time.After(patience):
		ts.Fatalf("%s does not end\n%s", name, d.errs.String())
	}
}

// wait asks until f is true.
func wait(ts *testscript.TestScript, otherwise string, f func() bool) {
	late := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-late:
			ts.Fatalf("%s", otherwise)
		}
	}
}

// said is what a running program wrote.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func poke(path, off, hex string) error {
	at, err := strconv.ParseInt(off, 0, 64)
	if err != nil {
		return err
	}
	var b []byte
	if _, err := fmt.Sscanf(hex, "%x", &b); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Close())
}
