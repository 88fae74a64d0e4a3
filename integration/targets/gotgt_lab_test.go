//go:build lab

package targets

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/initiator"
)

// foreign is a running foreignarray in a network namespace of its own.
type foreign struct {
	pid  int
	urls []iscsi.URL
}

// buildForeign makes the program.
func buildForeign(t *testing.T) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "foreignarray")
	build := exec.CommandContext(t.Context(), "go", "build", "-C", "../foreignarray", "-o", exe, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return exe
}

func newForeign(t *testing.T, volume string, copies int) *foreign {
	t.Helper()
	exe := buildForeign(t)
	var stderr bytes.Buffer
	cmd := exec.Command("unshare", "-n", "sh", "-c", `ip link set lo up && exec "$@"`, "sh", exe,
		"--volume", volume, "--copies", fmt.Sprint(copies))
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Pdeathsig is sent when the thread that started it ends, and dial ends
	// threads: it is started by one that stays.
	started, over := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		<-over
	}()
	t.Cleanup(func() { close(over) })
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("foreignarray: %v\n%.2000s", err, stderr.String())
		}
	})
	f := &foreign{pid: cmd.Process.Pid}
	for lines := bufio.NewScanner(out); len(f.urls) < copies; {
		if !lines.Scan() {
			t.Fatalf("foreignarray says %d of %d URLs", len(f.urls), copies)
		}
		u, err := iscsi.ParseURL(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		f.urls = append(f.urls, u)
	}
	return f
}

// dial makes a connection inside the namespace: a socket stays in the one that its
// thread was in.
func (f *foreign) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	type result struct {
		nc  net.Conn
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", f.pid))
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		var nc net.Conn
		if err == nil {
			nc, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		}
		done <- result{nc, err}
	}()
	r := <-done
	return r.nc, r.err
}

// TestGotgt is our initiator on an array of other hands: plain reads and writes of
// its copies, which are the volume's content and then each its own.
func TestGotgt(t *testing.T) {
	t.Log("PEER gotgt 0.2.2")
	volume := filepath.Join(t.TempDir(), "volume")
	want := noise(16<<20, 3)
	if err := os.WriteFile(volume, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f := newForeign(t, volume, 2)
	var disks []*initiator.Disk
	for _, u := range f.urls {
		d, err := initiator.Open(t.Context(), initiator.Options{
			Portals: []string{u.Portal}, Target: u.Target, LUN: u.LUN, Initiator: host, Dial: f.dial, Recovery: 10 * time.Second,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		t.Logf("%s is %s, %s", d, d.Product(), strings.TrimSpace(d.ID()))
		disks = append(disks, d)
	}
	read := func(d *initiator.Disk) []byte {
		p := make([]byte, d.Size())
		if _, err := d.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, d := range disks {
		if !bytes.Equal(read(d), want) {
			t.Errorf("%s is not the volume's content", d)
		}
	}
	p := noise(3<<20+512, 4)
	if _, err := disks[0].WriteAt(p, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := disks[0].Sync(); err != nil {
		t.Error(err)
	}
	changed := bytes.Clone(want)
	copy(changed[1<<20:], p)
	if !bytes.Equal(read(disks[0]), changed) || !bytes.Equal(read(disks[1]), want) {
		t.Error("the copies are not what was written to the first of them")
	}
}
