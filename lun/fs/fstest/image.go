package fstest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/open"
)

// Command runs a program and returns what it printed, and its exit status; a
// program that isn't there skips the test.
func Command(tb testing.TB, name string, arg ...string) (string, int) {
	tb.Helper()
	if _, err := exec.LookPath(name); err != nil {
		tb.Skipf("needs %s: make deps", name)
	}
	c := exec.Command(name, arg...)
	out, err := c.CombinedOutput()
	if err != nil && c.ProcessState == nil {
		tb.Fatal(err)
	}
	return string(out), c.ProcessState.ExitCode()
}

// Run is Command for a program that must succeed.
func Run(tb testing.TB, name string, arg ...string) {
	tb.Helper()
	if out, code := Command(tb, name, arg...); code != 0 {
		tb.Fatalf("%s %q: status %d\n%s", name, arg, code, out)
	}
}

// Image makes a sparse file of size bytes in dir and runs mkfs on it, which gets
// the path as its last argument.
func Image(tb testing.TB, dir string, size int64, mkfs ...string) string {
	tb.Helper()
	f, err := os.CreateTemp(dir, "image-")
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		tb.Fatal(err)
	}
	f.Close()
	Run(tb, mkfs[0], append(mkfs[1:len(mkfs):len(mkfs)], f.Name())...)
	return f.Name()
}

// Mount mounts an image of a kind by way of a loop device and returns where, and
// what unmounts it, at the latest at the test's end. It skips a test that may
// not mount.
func Mount(tb testing.TB, image, kind, options string) (dir string, unmount func()) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root, to mount")
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !bytes.Contains(known, []byte("\t"+kind+"\n")) {
		tb.Skipf("the kernel does not know %s", kind)
	}
	dir = tb.TempDir()
	if options != "" {
		options = "," + options
	}
	Run(tb, "mount", "-t", kind, "-o", "loop"+options, image, dir)
	mounted := true
	unmount = func() {
		if mounted {
			mounted = false
			Run(tb, "umount", dir)
		}
	}
	tb.Cleanup(unmount)
	return dir, unmount
}

// Pool mounts a file system that clones files, for images of which the state at
// one instant is wanted while they are mounted.
func Pool(tb testing.TB, size int64) string {
	tb.Helper()
	image := Image(tb, tb.TempDir(), size, "mkfs.xfs", "-q", "-m", "reflink=1")
	dir, _ := Mount(tb, image, "xfs", "")
	return dir
}

// Clone copies an image in a Pool as it is at one instant: what a power cut
// would have left of it.
func Clone(tb testing.TB, image string) string {
	tb.Helper()
	src, err := os.Open(image)
	if err != nil {
		tb.Fatal(err)
	}
	defer src.Close()
	dst, err := os.CreateTemp(filepath.Dir(image), "clone-")
	if err != nil {
		tb.Fatal(err)
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		tb.Fatalf("cloning %s: %v", image, err)
	}
	return dst.Name()
}

// Device opens an image until the test's end.
func Device(tb testing.TB, image string) *open.FileDevice {
	tb.Helper()
	d, err := open.File(image)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { d.Close() })
	return d
}
