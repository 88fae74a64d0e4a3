package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fuse"
)

// TestMain lets the test program be its own helper, and an attacher that is
// killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Command {
		os.Exit(Main(os.Args[2:], os.Stdin, os.Stdout, os.Stderr, openImage))
	}
	if len(os.Args) > 1 && os.Args[1] == attacher {
		os.Exit(attachAndDetach(os.Args[2], os.Args[3]))
	}
	// With the race detector each process would wait a second at its end.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	goleak.VerifyTestMain(m)
}

// image is what the tests' helper opens.
type image struct {
	Path  string
	Block int // 0: 512
	Error string
}

type fileDevice struct {
	*os.File
	size     int64
	block    int
	writable bool
}

func (d fileDevice) Size() int64                     { return d.size }
func (d fileDevice) Blocks() (logical, physical int) { return d.block, 4096 }
func (d fileDevice) Trim(off, n int64) error         { return d.punch(off, n) }
func (d fileDevice) WriteZeroes(off, n int64) error  { return d.punch(off, n) }
func (d fileDevice) Sync() error                     { return d.File.Sync() }
func (d fileDevice) WriteAt(p []byte, off int64) (int, error) {
	if !d.writable {
		return 0, lun.ErrReadOnly
	}
	return d.File.WriteAt(p, off)
}

func (d fileDevice) punch(off, n int64) error {
	return unix.Fallocate(int(d.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func openImage(_ context.Context, what json.RawMessage, writable bool) (Opened, error) {
	var i image
	if err := json.Unmarshal(what, &i); err != nil {
		return Opened{}, err
	}
	if i.Error != "" {
		return Opened{}, errors.New(i.Error)
	}
	flags := os.O_RDONLY
	if writable {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(i.Path, flags, 0)
	if err != nil {
		return Opened{}, err
	}
	st, err := f.Stat()
	if err != nil {
		return Opened{}, err
	}
	return Opened{fileDevice{f, st.Size(), max(i.Block, 512), writable}, f}, nil
}

// bench is a Host with directories of its own, which are empty in the end.
type bench struct {
	*testing.T
	*Host
	image string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: making block devices needs it")
	}
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("this kernel or container has no %s: %v", path, err)
		}
	}
	dir := t.TempDir()
	h, err := New(Options{State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t, h, filepath.Join(dir, "image")}
	b.fill(8 << 20)
	t.Cleanup(func() {
		all, err := h.List()
		if err != nil {
			t.Error(err)
		}
		for _, a := range all {
			t.Errorf("left: %+v", a)
			if _, err := h.Detach(context.Background(), a.ID); err != nil {
				t.Error(err)
			}
		}
		b.nothingLeft()
	})
	return b
}

func (b *bench) fill(n int) {
	b.Helper()
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i >> 9 * 7)
	}
	if err := os.WriteFile(b.image, data, 0o600); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) request(i image, writable bool) Request {
	b.Helper()
	what, err := json.Marshal(i)
	if err != nil {
		b.Fatal(err)
	}
	return Request{Source: b.image, Open: what, Writable: writable, Method: FUSE}
}

func (b *bench) attach(writable bool) Attachment {
	b.Helper()
	a, err := b.Attach(b.Context(), b.request(image{Path: b.image}, writable))
	if err != nil {
		b.Fatal(err)
	}
	return a
}

func (b *bench) detach(what string) {
	b.Helper()
	if _, err := b.Detach(b.Context(), what); err != nil {
		b.Fatal(err)
	}
}

// nothingLeft wants no trace of any attachment of this bench.
func (b *bench) nothingLeft() {
	b.Helper()
	for _, dir := range []string{b.o.State, b.o.Run} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			b.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	if m, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(m, []byte(b.o.Run)) {
		b.Errorf("left among the mounts: %v", err)
	}
	on, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range on {
		if text, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(text), b.o.Run) {
			b.Errorf("left: %s on %s", f, text)
		}
	}
	soon(b.T, "the helpers and watchers are gone", func() error { return noProcess(b.o.Run) })
}

// noProcess wants no helper whose output goes below run.
func noProcess(run string) error {
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range dirs {
		line, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(line, []byte(Command)) {
			continue
		}
		if to, err := os.Readlink(filepath.Join(filepath.Dir(f), "fd/2")); err == nil && strings.HasPrefix(to, run) {
			return fmt.Errorf("%s: %q", f, line)
		}
	}
	return nil
}

// soon polls until ok has no complaint.
func soon(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within 30 s: %v", what, err)
}

func read(t *testing.T, path string, n int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := io.ReadFull(f, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReadOnly(t *testing.T) {
	b := newBench(t)
	a := b.attach(false)
	want := read(t, b.image, 8<<20)
	if got := read(t, a.Device, 8<<20); !bytes.Equal(got, want) {
		t.Error("the device holds something else than its source")
	}
	if a.Size != 8<<20 || a.Writable || a.State != Attached {
		t.Errorf("%+v", a)
	}
	f, err := os.OpenFile(a.Device, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(make([]byte, 512), 0)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		t.Error("it was written to")
	}
	if all, err := b.List(); err != nil || len(all) != 1 || all[0].State != Attached || all[0].Device != a.Device {
		t.Errorf("list: %+v, %v", all, err)
	}
	if file := read(t, b.runPath(a.ID, ".disk"), 1<<20); !bytes.Equal(file, want[:1<<20]) {
		t.Error("the file holds something else than its source")
	}
	b.detach(a.Device)
	if _, err := b.Detach(t.Context(), a.Device); !errors.Is(err, ErrNotAttached) {
		t.Errorf("detached again: %v", err)
	}
	b.nothingLeft()
}

func TestWritable(t *testing.T) {
	for _, block := range []int{512, 4096} {
		t.Run(fmt.Sprint(block), func(t *testing.T) {
			b := newBench(t)
			a, err := b.Attach(t.Context(), b.request(image{Path: b.image, Block: block}, true))
			if err != nil {
				t.Fatal(err)
			}
			shell(t, "mkfs.ext4", "-q", "-F", a.Device) // discards, too
			dir := t.TempDir()
			shell(t, "mount", a.Device, dir)
			if _, err := b.Detach(t.Context(), a.Device); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), dir) {
				t.Errorf("detached while it was mounted: %v", err)
			}
			if err := os.WriteFile(filepath.Join(dir, "x"), []byte("content"), 0o600); err != nil {
				t.Error(err)
			}
			shell(t, "umount", dir)
			b.detach(b.image) // by its source
			shell(t, "e2fsck", "-fn", b.image)
			if out := shell(t, "debugfs", "-R", "cat /x", b.image); !strings.Contains(out, "content") {
				t.Errorf("the file is not in the image: %q", out)
			}
		})
	}
}

func shell(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

func TestBusy(t *testing.T) {
	b := newBench(t)
	a := b.attach(false)
	c := exec.Command("sleep", "1000")
	f, err := os.Open(a.Device)
	if err != nil {
		t.Fatal(err)
	}
	c.ExtraFiles = []*os.File{f}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	_, err = b.Detach(t.Context(), a.Device)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("process %d (sleep)", c.Process.Pid)) {
		t.Errorf("detached while it was open: %v", err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	b.detach(a.Device)
}

func TestRefused(t *testing.T) {
	b := newBench(t)
	for want, i := range map[string]image{
		"no such file":    {Path: b.image + "x"},
		"said the source": {Error: "said the source"},
		"whole blocks":    {Path: b.image, Block: 3 << 20},
	} {
		if a, err := b.Attach(t.Context(), b.request(i, false)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %+v, %v", i, a, err)
		}
	}
	b.fill(1000)
	if a, err := b.Attach(t.Context(), b.request(image{Path: b.image}, false)); err == nil || !strings.Contains(err.Error(), "whole blocks") {
		t.Errorf("%+v, %v", a, err)
	}
	b.nothingLeft()
}

// TestHelperKilled: I/O errors then, and no hang.
func TestHelperKilled(t *testing.T) {
	b := newBench(t)
	a := b.attach(true)
	shell(t, "mkfs.ext4", "-q", "-F", a.Device)
	dir := t.TempDir()
	shell(t, "mount", a.Device, dir)
	rec, err := b.load(a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(rec.Helper.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(a.Device, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	soon(t, "reads fail", func() error {
		if _, err := f.ReadAt(page, 1<<20); !errors.Is(err, unix.EIO) {
			return fmt.Errorf("read: %w", err)
		}
		return nil
	})
	f.Close()
	if all, err := b.List(); err != nil || len(all) != 1 || all[0].State != Dead {
		t.Errorf("list: %+v, %v", all, err)
	}
	if _, err := b.Detach(t.Context(), a.Device); !errors.Is(err, ErrBusy) {
		t.Errorf("detached while it was mounted: %v", err)
	}
	shell(t, "umount", dir)
	b.detach(a.Device)
	b.nothingLeft()
}

// stuck is a device that leaves reads beyond its first block without an answer.
type stuck struct {
	fileDevice
	asked   chan struct{}
	forever chan struct{}
}

func (d stuck) ReadAt(p []byte, off int64) (int, error) {
	if off >= 1<<20 {
		select {
		case d.asked <- struct{}{}:
		default:
		}
		<-d.forever
		return 0, io.ErrUnexpectedEOF
	}
	return d.fileDevice.ReadAt(p, off)
}

// TestHelperThatCannotDie: a helper that waits for another file system, which
// never answers, does not end by SIGKILL, and with it neither would the
// connection. The watcher ends it.
func TestHelperThatCannotDie(t *testing.T) {
	b := newBench(t)
	outer := filepath.Join(t.TempDir(), "outer")
	if err := os.WriteFile(outer, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := os.Open(b.image)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	m, err := fuse.NewMount(outer, true)
	if err != nil {
		t.Fatal(err)
	}
	dev := stuck{fileDevice{img, 8 << 20, 512, false}, make(chan struct{}, 1), make(chan struct{})}
	served := make(chan error)
	go func() { served <- m.Serve(dev, fuse.Options{Timeout: time.Hour}) }()
	defer func() {
		close(dev.forever)
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		<-served
	}()
	a, err := b.Attach(t.Context(), b.request(image{Path: outer}, false))
	if err != nil {
		t.Fatal(err)
	}
	rec, err := b.load(a.ID)
	if err != nil {
		t.Fatal(err)
	}
	reader := exec.Command("dd", "if="+a.Device, "of=/dev/null", "bs=4096", "skip=512", "count=1", "iflag=direct")
	var said bytes.Buffer
	reader.Stderr = &said
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	<-dev.asked
	if err := unix.Kill(rec.Helper.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := reader.Wait(); err == nil || !strings.Contains(said.String(), "Input/output error") {
		t.Errorf("dd: %v: %s", err, said.Bytes())
	}
	if !uninterruptible(rec.Helper.PID) {
		t.Error("the helper could die, so this says nothing")
	}
	if err := fuse.Abort(m.Connection); err != nil { // lets it go
		t.Error(err)
	}
	b.detach(a.ID)
}

// uninterruptible reports whether a thread of a process can't be ended.
func uninterruptible(pid int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, task := range tasks {
		if b, err := os.ReadFile(task); err == nil && bytes.Contains(b, []byte("State:\tD")) {
			return true
		}
	}
	return false
}
