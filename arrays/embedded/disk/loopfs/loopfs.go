// Package loopfs mounts file systems of their own for tests, each on a loop
// device over a sparse image: XFS, which has reflinks, and ext4, which has
// none. It needs root. It is for tests only.
package loopfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Kind is a kind of file system.
type Kind string

const (
	XFS  Kind = "xfs" // with reflinks
	Ext4 Kind = "ext4"
)

var mkfs = map[Kind][]string{
	XFS:  {"mkfs.xfs", "-q", "-m", "reflink=1"},
	Ext4: {"mkfs.ext4", "-q", "-F"},
}

// FS is a file system that lasts as long as its test.
type FS struct {
	// Dir is where it is mounted.
	Dir   string
	image string
}

// Mount makes a file system of size bytes, 300 MiB or more for XFS, and mounts
// it. A test on a host where that can't be done is skipped, and says why. It is
// unmounted when the test ends, whatever came of it, after all that the test
// cleans up later than it called Mount.
func Mount(t testing.TB, k Kind, size int64) *FS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("no %s is tested: mounting an image needs root", k)
	}
	for _, tool := range []string{mkfs[k][0], "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s is tested: %v (`make deps` installs it)", k, err)
		}
	}
	base := t.TempDir()
	f := &FS{Dir: filepath.Join(base, "mnt"), image: filepath.Join(base, "image")}
	if err := os.Mkdir(f.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	img, err := os.Create(f.image)
	if err == nil {
		err = img.Truncate(size)
		img.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run(mkfs[k][0], append(mkfs[k][1:], f.image)...); err != nil {
		t.Fatalf("%s: %v\n%s", mkfs[k][0], err, out)
	}
	if out, err := f.mount(); err != nil {
		t.Skipf("no %s is tested: its image can't be mounted here: %v: %s", k, err, out)
	}
	mourn := f.outlive(t)
	t.Cleanup(func() {
		f.unmount(t)
		mourn()
	})
	return f
}

// outlive has a shell wait for the end of this process, however that comes, and
// take the file system away then: a test that panics or is killed cleans nothing
// up. mourn ends the shell.
func (f *FS) outlive(t testing.TB) (mourn func()) {
	t.Helper()
	cmd := exec.Command("sh", "-c", `cat >/dev/null; umount -l "$1" 2>/dev/null`, "sh", f.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the test
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		f.unmount(t)
		t.Fatal(err)
	}
	return func() {
		in.Close()
		_ = cmd.Wait() // what it would unmount is gone
	}
}

// Stop stops an XFS at once, as a power cut does: what it has not yet written to
// its log is lost. All it does from then on is an error, until Cut.
func (f *FS) Stop() error {
	out, err := run("xfs_io", "-x", "-c", "shutdown", f.Dir)
	if err != nil && !strings.Contains(out, "Input/output error") { // it is stopped already
		return fmt.Errorf("xfs_io: %w: %s", err, out)
	}
	return nil
}

// Cut is Stop, if that was not called before, and a new start. In between it
// calls quiet, which has to close all files that are open on the file system.
func (f *FS) Cut(t testing.TB, quiet func()) {
	t.Helper()
	if err := f.Stop(); err != nil {
		t.Fatal(err)
	}
	quiet()
	f.unmount(t)
	if out, err := f.mount(); err != nil {
		t.Fatalf("mounting after a power cut: %v\n%s", err, out)
	}
}

// Fail has an ext4 find an error in itself: it can be read and not written to
// any more ("errors=remount-ro", as the root of most hosts is mounted), whatever
// is open, until Mend.
func (f *FS) Fail(t testing.TB) {
	t.Helper()
	loop, err := f.loop()
	if err != nil || loop == "" {
		t.Fatalf("the loop device of %s: %q, %v", f.image, loop, err)
	}
	if out, err := run("mount", "-o", "remount,errors=remount-ro", f.Dir); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	switch err := os.WriteFile(filepath.Join("/sys/fs/ext4", loop, "trigger_fs_error"), []byte("by a test"), 0); {
	case errors.Is(err, os.ErrNotExist):
		t.Skipf("this kernel's ext4 can't be made to fail: %v", err)
	case err != nil:
		t.Fatal(err)
	}
}

// Leave takes the file system from its directory. It lives on for those who have
// files open on it.
func (f *FS) Leave(t testing.TB) {
	t.Helper()
	if out, err := run("umount", "-l", f.Dir); err != nil {
		t.Fatalf("umount: %v\n%s", err, out)
	}
}

// Mend checks and mounts the file system after Leave, as soon as nobody has a
// file open on it any more.
func (f *FS) Mend(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		loop, err := f.loop()
		if err == nil && loop == "" {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("somebody still has a file open on %s (%s): %v", f.Dir, loop, err)
		}
	}
	if out, err := run("e2fsck", "-fy", f.image); err != nil && !strings.Contains(out, "FILE SYSTEM WAS MODIFIED") {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	if out, err := f.mount(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
}

// loop is the name of the image's loop device, empty if it has none.
func (f *FS) loop() (string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(b)) == f.image {
			return filepath.Base(filepath.Dir(filepath.Dir(file))), nil
		}
	}
	return "", nil
}

// mount has the kernel detach the loop device with the file system.
func (f *FS) mount() (string, error) { return run("mount", "-o", "loop", f.image, f.Dir) }

// unmount leaves nothing behind: what stays busy is taken away lazily, and the
// test fails.
func (f *FS) unmount(t testing.TB) {
	t.Helper()
	var out string
	var err error
	// A process that was killed may take a moment to let go.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if out, err = run("umount", f.Dir); err == nil {
			return
		}
		if !strings.Contains(out, "busy") || time.Now().After(end) {
			break
		}
	}
	lazy, _ := run("umount", "-l", f.Dir)
	t.Errorf("umount %s: %v\n%s%s", f.Dir, err, out, lazy)
}

// run runs a tool to its end, also when the test's own context has ended.
func run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}
