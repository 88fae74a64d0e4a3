package cinderlab

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// service is a Python program that runs until its test ends.
type service struct {
	t    testing.TB
	log  string
	done chan struct{} // closed when it has ended
}

// start starts one, with its output in a file. Its parent's death is seen by its
// standard input, which closes: the kernel's own signal goes with the thread that
// forked.
func start(t testing.TB, log string, args ...string) *service {
	t.Helper()
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(python, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &service{t: t, log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // killed: how it ended says nothing
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		<-p.done
	})
	return p
}

// await waits until a service is ready.
func (p *service) await(ready func() bool) {
	p.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(2 * time.Minute); !ready(); {
		select {
		case <-tick.C:
		case <-p.done:
			p.t.Fatalf("%s: it ended: %s", p.log, end(p.log))
		case <-late:
			p.t.Fatalf("%s: it is not ready after two minutes: %s", p.log, end(p.log))
		}
	}
}

// end is the end of a file.
func end(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// directory makes one that goes with the test, in memory where there is such a
// place: databases sync with every change.
func directory(t testing.TB, name string) string {
	t.Helper()
	base := "/dev/shm"
	if i, err := os.Stat(base); err != nil || !i.IsDir() {
		base = ""
	}
	dir, err := os.MkdirTemp(base, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// version is a program's name with the version of its Debian package.
func version(name, pkg string) string {
	out, err := exec.Command("dpkg-query", "-W", "-f", name+" ${Version}", pkg).Output()
	if err != nil {
		return name
	}
	return string(out)
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}
