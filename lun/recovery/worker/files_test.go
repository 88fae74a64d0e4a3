package worker

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/vdisktest"
)

// descriptor is the text of a VMDK of flat extents of a sector each.
func descriptor(files ...string) []byte {
	var b strings.Builder
	b.WriteString("# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"custom\"\n")
	for _, f := range files {
		fmt.Fprintf(&b, "RW 1 FLAT %q 0\n", f)
	}
	return []byte(b.String())
}

// TestFurtherFiles: what a container names is opened by the launcher, if it is
// in the folder, and by nobody otherwise.
func TestFurtherFiles(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "folder")
	if err := os.Mkdir(dir, 0o700); err != nil { // no other user may go there
		t.Fatal(err)
	}
	write := func(path string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "a"), []byte(strings.Repeat("a", 512)))
	write(filepath.Join(dir, "b"), []byte(strings.Repeat("b", 512)))
	write(filepath.Join(top, "secret"), []byte(strings.Repeat("s", 512)))
	if err := os.Symlink("../secret", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	try := func(r vdisk.Resolver, files ...string) (string, error) {
		t.Helper()
		path := filepath.Join(dir, "d.vmdk")
		write(path, descriptor(files...))
		f, err := open.File(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s := spec(t, Source{Name: "d", Device: f, Files: r})
		s.Containers = true
		c, err := Open(t.Context(), s, "disk")
		if err != nil {
			return "", err
		}
		defer c.Close()
		d, err := c.Volumes[0].Open(t.Context())
		if err != nil {
			return "", err
		}
		defer d.Close()
		b := make([]byte, d.Size())
		_, err = d.ReadAt(b, 0)
		return string(b), err
	}
	want := strings.Repeat("a", 512) + strings.Repeat("b", 512)
	folder := vdisk.Folder(dir)
	var closed atomic.Int32
	served := vdisk.ResolverFunc(func(name string, readOnly bool) (lun.Device, error) {
		d, err := folder.Resolve(name, readOnly)
		return &counted{d, &closed}, err
	})
	for name, r := range map[string]vdisk.Resolver{"by descriptor": folder, "over NBD": served} {
		if got, err := try(r, "a", "b"); err != nil || got != want {
			t.Errorf("%s: %.20q…, %v", name, got, err)
		}
	}
	if closed.Load() != 2 {
		t.Errorf("%d devices were closed, want 2", closed.Load())
	}
	for _, name := range []string{"../secret", filepath.Join(top, "secret"), "/etc/passwd", "link", "none", ".", strings.Repeat("x", 64<<10)} {
		if _, err := try(folder, "a", name); !errors.Is(err, vdisk.ErrOtherFile) {
			t.Errorf("%.30q: %v", name, err)
		}
	}
	if _, err := try(nil, "a"); !errors.Is(err, vdisk.ErrOtherFile) {
		t.Errorf("nothing may be opened: %v", err)
	}
	many := make([]string, maxFiles+1)
	for i := range many {
		many[i] = "a"
	}
	if got, err := try(folder, many[1:]...); err != nil || len(got) != maxFiles*512 {
		t.Errorf("%d files: %v", maxFiles, err)
	}
	if _, err := try(folder, many...); !errors.Is(err, vdisk.ErrOtherFile) || !strings.Contains(err.Error(), "more than 1024") {
		t.Errorf("%d files: %v", len(many), err)
	}
}

// counted hides that a device is a file, and counts that it is closed.
type counted struct {
	lun.Device
	closed *atomic.Int32
}

func (c *counted) Close() error {
	c.closed.Add(1)
	return vdisk.Close(c.Device)
}

// TestViewOfAChain: a disk whose volume group is in the base of a chain
// is recovered like any other.
func TestViewOfAChain(t *testing.T) {
	vdisktest.Need(t, "qemu-img")
	base := image(t, "lvm-o1-thick-4k")
	want := reference(t, base)
	dir := filepath.Dir(base.File().Name())
	create := func(arg ...string) {
		t.Helper()
		cmd := exec.Command("qemu-img", append([]string{"create", "-q"}, arg...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
	}
	create("-f", "qcow2", "-F", "raw", "-b", filepath.Base(base.File().Name()), "1.qcow2")
	create("-f", "qcow2", "-F", "qcow2", "-b", "1.qcow2", "3.qcow2")
	f, err := open.File(filepath.Join(dir, "3.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := spec(t, Source{Name: "chain", Device: f, Files: vdisk.Folder(dir)})
	s.Containers = true
	w, err := Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c, err := nbd.Dial(t.Context(), "unix", w.Address(), nbd.ClientOptions{Export: "0"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := sum(t, c); got != want {
		t.Error("the served view is not that of the base")
	}
}
