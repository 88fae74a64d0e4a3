package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// The test binary is the program that a worker is: as "worker" it works, as
// one of the others it misbehaves.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "worker":
			os.Exit(Main(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
		case "panics":
			panic("index out of range [7] with length 3")
		case "hogs":
			if len(os.Args) > 3 { // to be confined first
				os.Exit(Main(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
			}
			var hog [][]byte
			for {
				hog = append(hog, bytes.Repeat([]byte("x"), 16<<20)) //nolint:staticcheck // to be held, not to be used
			}
		case "hangs":
			time.Sleep(time.Hour)
		case "babbles":
			for {
				if _, err := os.Stdout.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
					os.Exit(1)
				}
			}
		case "lies":
			fmt.Println(`{"view":{"exports":[{"name":"0","size":1}]}}`)
			time.Sleep(time.Hour)
		case "unconfined":
			unconfined()
			os.Exit(0)
		case "landlocked":
			os.Exit(landlockedMain())
		case "launcher":
			launcher(os.Args[2:])
		}
	}
	goleak.VerifyTestMain(m)
}

// image is an image of testdata as a device.
func image(t *testing.T, name string) *open.FileDevice {
	t.Helper()
	path := luntest.File(t, name)
	f, err := open.File(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func spec(t *testing.T, sources ...Source) Spec {
	dir := t.TempDir()
	return Spec{
		Sources: sources, Socket: filepath.Join(dir, "socket"), OverlayDir: dir,
		Limits: Limits{Memory: memory}, Timeout: time.Minute,
	}
}

// noFile hides that a device is a file, so that it is served over NBD.
type noFile struct{ lun.Device }

func TestViewInWorker(t *testing.T) {
	dev := image(t, "lvm-o1-thick-4k")
	want := reference(t, dev)
	for name, d := range map[string]lun.Device{"by descriptor": dev, "over NBD": noFile{dev}} {
		t.Run(name, func(t *testing.T) {
			s := spec(t, Source{Name: "disk", Device: d})
			w, err := Start(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if len(w.Volumes) == 0 || w.Exports[0].Size != dev.Size() {
				t.Fatalf("ready: %+v", w.Ready)
			}
			confined(t, w.Handle.PID)
			left, err := os.ReadDir(s.OverlayDir)
			if err != nil || len(left) != 1 {
				t.Errorf("beside the socket: %v (%v)", left, err)
			}
			c, err := nbd.Dial(t.Context(), "unix", w.Address(), nbd.ClientOptions{Export: "0"})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := sum(t, c); got != want {
				t.Errorf("the served view is not the view")
			}
			if _, err := c.WriteAt(bytes.Repeat([]byte{0xa5}, 4096), 8192); err != nil {
				t.Errorf("write to the overlay: %v", err)
			}
			b := make([]byte, 4096)
			if _, err := c.ReadAt(b, 8192); err != nil || b[77] != 0xa5 {
				t.Errorf("read back: %v, %#x", err, b[77])
			}
			if alive, err := w.Handle.Alive(); !alive || err != nil {
				t.Errorf("alive %v, %v", alive, err)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			if alive, err := w.Handle.Alive(); alive || err != nil {
				t.Errorf("after Close: alive %v, %v", alive, err)
			}
			if _, err := c.ReadAt(b, 0); !errors.Is(err, nbd.ErrLost) {
				t.Errorf("read after Close: %v", err)
			}
			if left, _ := os.ReadDir(s.OverlayDir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// reference is the view's content as this process sees it.
func reference(t *testing.T, d lun.Device) [sha256.Size]byte {
	t.Helper()
	c, err := open.Probe(t.Context(), open.Source{Name: "disk", Device: d})
	if err != nil {
		t.Fatal(err)
	}
	v, err := recovery.OpenView(t.Context(), c, recovery.ViewOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	return sum(t, v.Clean[0])
}

func sum(t *testing.T, d lun.Device) [sha256.Size]byte {
	t.Helper()
	got, err := recovery.Sum(t.Context(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// confined looks at a worker from outside.
func confined(t *testing.T, pid int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		status[k] = strings.TrimSpace(v)
	}
	if status["NoNewPrivs"] != "1" {
		t.Errorf("NoNewPrivs %q", status["NoNewPrivs"])
	}
	if b, err = os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Max core file size        0                    0", "Max open files            256                  256"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("limits lack %q:\n%s", want, b)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	if strings.HasPrefix(status["Uid"], "0") || strings.HasPrefix(status["Gid"], "0") || status["CapEff"] != "0000000000000000" || status["Groups"] != "" {
		t.Errorf("user %q, group %q, groups %q, capabilities %q", status["Uid"], status["Gid"], status["Groups"], status["CapEff"])
	}
	ours, _ := os.Readlink("/proc/self/ns/net")
	if theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && theirs == ours {
		t.Log("the worker shares our network (name spaces may not be made here)")
	}
}

func TestInspectAndCheck(t *testing.T) {
	dev := image(t, "lvm-o1-thick-4k")
	s := spec(t, Source{Name: "disk", Device: dev})
	r, seen, err := Inspect(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	var want []recovery.Expected
	for _, g := range r.Groups {
		for _, v := range g.Volumes {
			for _, sn := range v.Snapshots {
				want = append(want, recovery.Expected{Volume: v.UUID, Snapshot: sn.UUID})
			}
		}
	}
	if len(want) == 0 {
		t.Fatalf("report without snapshots: %+v", r)
	}
	if names := []string{"disk", "vgo1/root", "vgo1/snap"}; !slices.Equal(seen.Names, names) || seen.Damage != nil {
		t.Errorf("seen: %+v, want %q", seen, names)
	}
	bad := recovery.Expected{Volume: want[0].Volume, Snapshot: "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA"}
	got, err := Check(t.Context(), s, append(want, bad))
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		if v.OK != (i < len(want)) {
			t.Errorf("verdict %+v", v)
		}
	}
}

func TestErrorsOfAWorker(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := open.File(empty)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := spec(t, Source{Name: "empty", Device: f})
	if _, err := Start(t.Context(), s); !errors.Is(err, recovery.ErrNoSnapshot) {
		t.Errorf("nothing to recover: %v", err)
	}
	if left, _ := os.ReadDir(s.OverlayDir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	for arg, want := range map[string]string{
		"hogs": "out of memory", "panics": "panic: index out of range [7] with length 3", "hangs": "did not answer", "babbles": "said more", "lies": "bytes, it has",
	} {
		s := spec(t, Source{Name: "empty", Device: f})
		s.Args = []string{arg}
		if arg == "hangs" {
			s.Timeout = 300 * time.Millisecond
		}
		if arg == "hogs" && memory > 1<<40 {
			continue // the race detector can't be limited
		}
		_, err := Start(t.Context(), s)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", arg, err, want)
		}
		if left, _ := os.ReadDir(s.OverlayDir); len(left) != 0 {
			t.Errorf("%s: left behind: %v", arg, left)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// launcher is a launcher that gets killed.
func launcher(args []string) {
	f, err := open.File(args[0])
	if err != nil {
		panic(err)
	}
	w, err := Start(context.Background(), Spec{
		Sources: []Source{{Name: "disk", Device: f}}, Socket: args[1], OverlayDir: filepath.Dir(args[1]),
		Detachable: true, Limits: Limits{Memory: memory},
	})
	if err != nil {
		panic(err)
	}
	if args[2] == "detach" {
		if err := w.Detach(); err != nil {
			panic(err)
		}
	}
	fmt.Println(w.Handle.PID, w.Handle.Start, w.Handle.Boot)
	time.Sleep(time.Hour)
}

func TestLifeAndDeath(t *testing.T) {
	path := luntest.File(t, "lvm-o1-thick-4k")
	for _, how := range []string{"attached", "detach"} {
		t.Run(how, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			cmd := exec.Command("/proc/self/exe", "launcher", path, socket, how)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			h := Handle{Socket: socket}
			_, err = fmt.Fscan(out, &h.PID, &h.Start, &h.Boot)
			cmd.Process.Kill()
			_ = cmd.Wait()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if how == "attached" {
				for alive := true; alive; {
					if alive, err = h.Alive(); err != nil || ctx.Err() != nil {
						t.Fatalf("worker outlived its launcher: %v", err)
					}
					time.Sleep(time.Millisecond) // poll with a deadline
				}
			} else {
				c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{Export: "0"})
				if err != nil {
					t.Fatalf("detached worker does not serve: %v", err)
				}
				if _, err := c.ReadAt(make([]byte, 4096), 0); err != nil {
					t.Errorf("detached worker: %v", err)
				}
				c.Close()
			}
			for range 2 {
				if err := Kill(ctx, h); err != nil {
					t.Error(err)
				}
			}
			if _, err := os.Stat(socket); err == nil {
				t.Error("socket is left")
			}
		})
	}
}

func TestMainIsNotForPeople(t *testing.T) {
	var stderr bytes.Buffer
	if code := Main(nil, strings.NewReader(""), io.Discard, &stderr); code != 1 || !strings.Contains(stderr.String(), "not for people") {
		t.Errorf("%d, %s", code, stderr.String())
	}
}
