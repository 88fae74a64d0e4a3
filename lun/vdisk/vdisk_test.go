package vdisk_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// TestFolder: which names are opened and which are not.
func TestFolder(t *testing.T) {
	dir := t.TempDir()
	inside := filepath.Join(dir, "folder")
	if err := os.MkdirAll(filepath.Join(inside, "deeper"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(path string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(inside, "base.img"))
	write(filepath.Join(dir, "secret"))
	for link, to := range map[string]string{"in": "base.img", "out": "../secret", "abs": filepath.Join(dir, "secret")} {
		if err := os.Symlink(to, filepath.Join(inside, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(inside, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := vdisk.Folder(inside)
	for _, name := range []string{"base.img", "in"} {
		d, err := r.Resolve(name, true)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		b := make([]byte, d.Size())
		if _, err := d.ReadAt(b, 0); err != nil || string(b) != "content" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if _, err := d.WriteAt(b, 0); !errors.Is(err, lun.ErrReadOnly) {
			t.Errorf("%s: written though read-only: %v", name, err)
		}
		vdisk.Close(d)
	}
	for _, name := range []string{"", ".", "..", "../secret", "out", "abs", filepath.Join(dir, "secret"), "pipe", "deeper",
		"deeper/x", "./base.img", "nbd://127.0.0.1/x", "json:{}", `..\secret`, "base.img\x00", "none"} {
		if d, err := r.Resolve(name, true); err == nil {
			t.Errorf("%q was opened", name)
			vdisk.Close(d)
		}
	}
}

// device is memory.
type device []byte

func (d device) Size() int64 { return int64(len(d)) }
func (d device) Sync() error { return nil }
func (d device) WriteAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	return copy(d[off:], p), nil
}
func (d device) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	return copy(p, d[off:]), nil
}

// selfish is a format whose disks are their own parents.
func selfish(dev lun.Device, o vdisk.Options) (vdisk.Disk, error) {
	return o.Parent("self", "selfish", "selfish", selfish)
}

func TestDepth(t *testing.T) {
	opened := 0
	r := vdisk.ResolverFunc(func(string, bool) (lun.Device, error) { opened++; return device{}, nil })
	for depth, want := range map[int]int{0: vdisk.DefaultDepth, 1: 1, 3: 3, -1: 0} {
		opened = 0
		_, err := selfish(device{}, vdisk.Options{Resolver: r, Depth: depth})
		if !errors.Is(err, vdisk.ErrDepth) || opened != want {
			t.Errorf("depth %d: %d parents opened, want %d; %v", depth, opened, want, err)
		}
	}
	if _, err := selfish(device{}, vdisk.Options{}); !errors.Is(err, vdisk.ErrOtherFile) {
		t.Errorf("without a resolver: %v", err)
	}
	o := vdisk.Options{Resolver: r}
	if _, err := o.Parent("x", "vdi", "", nil); !errors.Is(err, vdisk.ErrOtherFile) {
		t.Errorf("a format nobody reads: %v", err)
	}
}

func TestPages(t *testing.T) {
	d := make(device, 5*4096+100)
	for i := range d {
		d[i] = byte(i / 7)
	}
	c := vdisk.NewPages(d, 2*4096)
	for _, r := range [][2]int{{0, 10}, {4090, 20}, {0, len(d)}, {len(d) - 1, 1}, {len(d), 0}} {
		b := make([]byte, r[1])
		if _, err := c.ReadAt(b, int64(r[0])); err != nil || !bytes.Equal(b, d[r[0]:r[0]+r[1]]) {
			t.Errorf("%v: %v", r, err)
		}
	}
	if _, err := c.ReadAt(make([]byte, 2), int64(len(d)-1)); !errors.Is(err, lun.ErrOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}
}
