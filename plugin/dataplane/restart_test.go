package dataplane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/recovery/worker"
)

func sprint(format string, args ...any) string { return fmt.Sprintf(format, args...) }

// spawn runs the daemon as a process and waits until it is ready.
func spawn(t *testing.T, c Config) *exec.Cmd {
	t.Helper()
	b, err := json.Marshal(struct {
		StateDir, Socket string
		Pools            map[string]string
		Portals          []Portal
		IQN              string
	}{c.StateDir, c.Socket, c.Pools, c.Portals, string(c.IQN)})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "daemon", path)
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("daemon: %q, %v\n%s", line, err, log.String())
	}
	return cmd
}

// port finds a port that is free now: a restarted daemon must get it again.
func port(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestKillTheDaemon: an initiator rides through kill -9 and restart, and finds
// the same LUNs, volume and split alike.
func TestKillTheDaemon(t *testing.T) {
	need(t, "qemu-io")
	cfg := config(t)
	cfg.Portals = []Portal{{Addr: port(t)}}
	first := spawn(t, cfg)
	c := remote.New(cfg.Socket)
	v := volume(t, c, "db", 64<<20)
	p, err := c.ExposeVolume(t.Context(), v.ID, []string{alice}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := qemuIO(t, disk(p, alice), nil, "write -P 1 0 1M"); err != nil {
		t.Fatal(err)
	}
	if err := c.Prepare(t.Context(), []driver.VolumeID{v.ID}, driver.PrepareOptions{Tag: "s", AllowUnmirrored: true}); err != nil {
		t.Fatal(err)
	}
	s, err := c.Split(t.Context(), "s", v.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Expose(t.Context(), s.ID, driver.ExposeOptions{Initiators: []string{bob}}); err != nil {
		t.Fatal(err)
	}
	before, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	// An initiator that stays logged in, spoken to through a pipe.
	q := exec.Command("qemu-io", "--image-opts", disk(p, alice))
	in, _ := q.StdinPipe()
	var out lockedBuffer
	q.Stdout, q.Stderr = &out, &out
	if err := q.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { q.Process.Kill(); q.Wait() }()
	say := func(cmd, want string) {
		t.Helper()
		had := out.Count(want)
		io.WriteString(in, cmd+"\n")
		for end := time.Now().Add(60 * time.Second); out.Count(want) == had; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: no %q in time:\n%s", cmd, want, out.String())
			}
		}
	}
	say("write -P 2 1M 64k", "wrote 65536/65536")
	first.Process.Kill()
	first.Wait()
	if _, err := c.Status(t.Context()); kindOf(err) != driver.Unreachable {
		t.Errorf("asking a dead daemon: %v", err)
	}
	io.WriteString(in, "write -P 3 2M 64k\n") // while nobody is there
	second := spawn(t, cfg)
	for end := time.Now().Add(60 * time.Second); out.Count("wrote 65536/65536") < 2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the initiator did not ride through:\n%s", out.String())
		}
	}
	say("read -P 3 2M 64k", "read 65536/65536")
	if out.Count("rror") != 0 || out.Count("failed") != 0 {
		t.Errorf("the initiator saw errors:\n%s", out.String())
	}
	after, err := c.Status(t.Context())
	if err != nil || !reflect.DeepEqual(before.LUNs, after.LUNs) {
		t.Errorf("LUNs before: %+v\nafter: %+v (%v)", before.LUNs, after.LUNs, err)
	}
	if err := qemuIO(t, disk(after.LUNs[1].Path, bob), nil, "read -P 1 0 1M", "read -P 0 1M 64k"); err != nil {
		t.Errorf("the split after the restart: %v", err)
	}
	if err := second.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "quit\n")
}

// TestView goes all the way of a recovered LUN: image on a volume, split,
// descriptor, worker, publication, initiator; then the worker is killed.
func TestView(t *testing.T) {
	need(t, "qemu-io", "qemu-img")
	cfg := config(t)
	cfg.ViewTimeout = 20 * time.Second
	c, stop := run(t, cfg)
	path := luntest.File(t, "lvm-o1-thick-4k")
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	v := volume(t, c, "db", fi.Size())
	p, err := c.ExposeVolume(t.Context(), v.ID, []string{alice}, false)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-n", "-f", "raw", path, "--target-image-opts", disk(p, alice)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := c.Prepare(t.Context(), []driver.VolumeID{v.ID}, driver.PrepareOptions{Tag: "s", AllowUnmirrored: true}); err != nil {
		t.Fatal(err)
	}
	s, err := c.Split(t.Context(), "s", v.ID)
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.Open(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer d.(io.Closer).Close()
	dir := t.TempDir()
	spec := worker.Spec{
		Sources: []worker.Source{{Name: "db", Device: d}}, Socket: filepath.Join(dir, "s"), OverlayDir: dir,
		Limits: worker.Limits{Memory: memory},
	}
	w, err := worker.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	pub := remote.Publication{Name: "set/vm/disk", Socket: w.Address(), Export: "0", Identity: lun.NewIdentity(), Initiators: []string{bob}, Writable: true}
	lp, err := c.Publish(t.Context(), pub)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Publish(t.Context(), pub); err != nil || again.LUN != lp.LUN {
		t.Errorf("published again: %+v, %v", again, err)
	}

	got := filepath.Join(dir, "got")
	if out, err := exec.Command("qemu-img", "convert", "-O", "raw", "--image-opts", disk(lp, bob), got).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !bytes.Equal(sumFile(t, got), wantView(t, path)) {
		t.Error("what an initiator reads is not the recovered view")
	}
	if err := qemuIO(t, disk(lp, bob), nil, "write -P 9 64k 64k", "read -P 9 64k 64k"); err != nil {
		t.Error(err)
	}

	// A worker that is gone is an I/O error on its LUN alone.
	if err := worker.Kill(t.Context(), worker.Handle{Process: w.Handle.Process}); err != nil {
		t.Fatal(err)
	}
	if err := qemuIO(t, disk(lp, bob), nil, "read 0 4k"); err == nil {
		t.Error("a view without its worker was read")
	}
	if err := qemuIO(t, disk(p, alice), nil, "write -P 4 0 64k", "read -P 4 0 64k"); err != nil {
		t.Errorf("the volume beside it: %v", err)
	}
	st, err := c.Status(t.Context())
	if err != nil || len(st.Problems) == 0 {
		t.Errorf("status hides the dead worker: %+v, %v", st, err)
	}

	// The LUN survives a restart, too, and comes back with a worker.
	stop()
	c, _ = run(t, cfg)
	st, err = c.Status(t.Context())
	if err != nil || len(st.LUNs) != 2 || st.LUNs[1].LUN != lp.LUN || st.LUNs[1].Identity != pub.Identity {
		t.Fatalf("after the restart: %+v, %v", st.LUNs, err)
	}
	d2, err := c.Open(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer d2.(io.Closer).Close()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	spec.Sources[0].Device = d2
	w2, err := worker.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer w2.Close()
	lp.Portals = st.Portals
	eventually(t, func() error { return qemuIO(t, disk(lp, bob), nil, "read 0 64k") })
	for range 2 {
		if err := c.Withdraw(t.Context(), pub.Name); err != nil {
			t.Error(err)
		}
	}
	if err := qemuIO(t, disk(lp, bob), nil, "read 0 4k"); err == nil {
		t.Error("a withdrawn view was read")
	}
}

// eventually repeats f until it succeeds, for a bounded time.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	end := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func wantView(t *testing.T, path string) []byte {
	t.Helper()
	f, err := open.File(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := open.Probe(t.Context(), open.Source{Name: "disk", Device: f})
	if err != nil {
		t.Fatal(err)
	}
	v, err := recovery.OpenView(t.Context(), c, recovery.ViewOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	sum, err := recovery.Sum(context.Background(), v.Clean[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	return sum[:]
}

func sumFile(t *testing.T, path string) []byte {
	t.Helper()
	f, err := open.File(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum, err := recovery.Sum(context.Background(), f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sum[:]
}

// TestHungWorker: a worker that takes requests and never answers is given up
// after the limit, while everybody else goes on.
func TestHungWorker(t *testing.T) {
	need(t, "qemu-io")
	cfg := config(t)
	cfg.ViewTimeout = 2 * time.Second
	c, _ := run(t, cfg)
	v := volume(t, c, "db", 8<<20)
	p, err := c.ExposeVolume(t.Context(), v.ID, []string{alice}, false)
	if err != nil {
		t.Fatal(err)
	}
	hang := &hanging{size: 8 << 20, release: make(chan struct{})}
	server, err := nbd.NewServer(nbd.ServerOptions{}, nbd.Export{Name: "0", Device: hang})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(ctx, l) }()
	defer func() { cancel(); close(hang.release); <-done }()

	lp, err := c.Publish(t.Context(), remote.Publication{Name: "v", Socket: socket, Export: "0", Identity: lun.NewIdentity(), Initiators: []string{alice}})
	if err != nil {
		t.Fatal(err)
	}
	stuck := make(chan error, 1)
	go func() { stuck <- qemuIO(t, disk(lp, alice), nil, "read 0 4k") }()
	if err := qemuIO(t, disk(p, alice), nil, "write -P 4 0 64k", "read -P 4 0 64k"); err != nil {
		t.Errorf("the volume beside it: %v", err)
	}
	if err := <-stuck; err == nil {
		t.Error("a hung view was read")
	}
	if err := c.Withdraw(t.Context(), "v"); err != nil {
		t.Errorf("withdrawing a hung view: %v", err)
	}
}

type hanging struct {
	size    int64
	release chan struct{}
}

var errHung = errors.New("hung")

func (h *hanging) Size() int64                        { return h.size }
func (h *hanging) Sync() error                        { <-h.release; return errHung }
func (h *hanging) ReadAt([]byte, int64) (int, error)  { <-h.release; return 0, errHung }
func (h *hanging) WriteAt([]byte, int64) (int, error) { <-h.release; return 0, errHung }
