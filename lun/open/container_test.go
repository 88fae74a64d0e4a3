package open_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// TestContainers: the same disk in containers made by qemu-img has the same
// volumes; a disk that is not said to be a file is raw, whatever it begins with.
func TestContainers(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img: make deps")
	}
	dir := t.TempDir()
	raw := image(t, "lvm-o1-thick-4k")
	if err := os.WriteFile(filepath.Join(dir, "raw"), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	qemu := func(arg ...string) {
		t.Helper()
		c := exec.Command("qemu-img", arg...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v\n%s", arg, err, out)
		}
	}
	source := func(name string) open.Source {
		t.Helper()
		f, err := open.File(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return open.Source{Name: name, Device: f, Containers: true}
	}
	for _, format := range []string{"raw", "qcow2", "vhdx", "vpc", "vmdk"} {
		out := "out." + format
		arg := []string{"convert", "-t", "unsafe", "-f", "raw", "-O", format}
		if format == "vpc" {
			arg = append(arg, "-o", "force_size=on")
		}
		qemu(append(arg, "raw", out)...)
		c, err := open.Probe(context.Background(), source(out))
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"vpc": "vhd"}[format]
		if want == "" {
			want = format
		}
		if got := names(c); got != "disk vgo1/root vgo1/snap" || c.Disks[0].Container != want || c.Disks[0].Device.Size() != raw.Size() {
			t.Errorf("%s is a %s of %d bytes with %q, damage %v", out, c.Disks[0].Container, c.Disks[0].Device.Size(), got, c.Damage)
		}
	}

	s := source("out.qcow2")
	s.Containers = false
	c, err := open.Probe(context.Background(), s)
	if err != nil || c.Disks[0].Container != "raw" || names(c) != "disk" {
		t.Errorf("a guest's disk is taken for a container: %v", err)
	}

	qemu("create", "-q", "-f", "qcow2", "-b", "raw", "-F", "raw", "child.qcow2")
	if _, err := open.Probe(context.Background(), source("child.qcow2")); !errors.Is(err, vdisk.ErrOtherFile) {
		t.Errorf("a disk with a backing file: %v", err)
	}
	s = source("child.qcow2")
	s.Files = vdisk.Folder(dir)
	if c, err = open.Probe(context.Background(), s); err != nil || names(c) != "disk vgo1/root vgo1/snap" {
		t.Errorf("a disk with a backing file that may be opened: %v", err)
	} else if err := c.Close(); err != nil {
		t.Error(err)
	}

	b, err := os.ReadFile(filepath.Join(dir, "out.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	b[23] = 99 // cluster_bits
	c, err = open.Probe(context.Background(), open.Source{Name: "bad.qcow2", Device: memory(b), Containers: true})
	var fe *lun.FormatError
	if err != nil || len(c.Damage) != 1 || !errors.As(c.Damage[0], &fe) || fe.Field != "cluster_bits" || c.Disks[0].Container != "damaged" {
		t.Errorf("a damaged container: %v, %v", err, c)
	}
}
