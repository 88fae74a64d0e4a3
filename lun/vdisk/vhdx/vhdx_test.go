package vhdx_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/vdisktest"
	"github.com/cleave-san/cleave/lun/vdisk/vhdx"
)

const testdata = "../../testdata"

const (
	base     = "d0070f7eb52be7e5b2c2987d4dd60799998ad796d497c65ac93515924bd76e08"
	replayed = "fa6d7f4682c0c449c4b2f1ee71005b5c1a252469ba12480543789715db791eb3"
)

// The sums are in lun/testdata/README.md. diff-*.vhdx were made by a script, as
// QEMU makes none; libvhdi reads them alike.
func TestImages(t *testing.T) {
	dir := vdisktest.Unpack(t, testdata, "vhdx-", "diff-")
	for name, want := range map[string][2]string{
		"vhdx-dynamic.vhdx":        {"dynamic", base},
		"vhdx-dynamic-1m.vhdx":     {"dynamic", base},
		"vhdx-fixed.vhdx":          {"fixed", base},
		"vhdx-dyn-32m-nozero.vhdx": {"dynamic", base},
		"vhdx-log.vhdx":            {"dynamic", "deb40f47587639a1aaabe2379996edcd1a3111a13817c0add9ee96c7fa7cb66c"},
		"vhdx-needs-replay.vhdx":   {"dynamic", replayed},
		"diff-child-g1.vhdx":       {"differencing", "a79211756ad0a52f068f7db78012078c0972b49ec766a490521686279c9920d0"},
	} {
		t.Run(name, func(t *testing.T) {
			d := vdisktest.Open(t, vhdx.Open, filepath.Join(dir, name), true)
			if got := vdisktest.Sum(t, d); got != want[1] {
				t.Errorf("content sums to %s, want %s", got, want[1])
			}
			vdisktest.Extents(t, d)
			i := d.Info()
			if i.Variant != want[0] || len(i.Warnings) > 0 || i.Dirty != (name == "vhdx-needs-replay.vhdx") {
				t.Errorf("%+v", i)
			}
			if parents := len(i.Parents); (parents == 1) != (want[0] == "differencing") {
				t.Errorf("parents: %+v", i.Parents)
			}
		})
	}
}

// TestQEMU: disks that qemu-io wrote to at random are what qemu-img says, before
// and after we wrote to them in place.
func TestQEMU(t *testing.T) {
	vdisktest.Need(t, "qemu-img")
	for _, o := range []string{"subformat=fixed,block_size=2M", "subformat=dynamic,block_size=1M", "subformat=dynamic,block_size=8M,block_state_zero=off"} {
		t.Run(o, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d.vhdx")
			vdisktest.Run(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", o, path, "21M")
			vdisktest.Run(t, "qemu-io", "-f", "vhdx", "-c", "write -P 17 512 1024", "-c", "write -P 3 5M 3M", "-c", "write -P 99 20000K 7K", path)
			d := vdisktest.Open(t, vhdx.Open, path, false)
			if got, want := vdisktest.Sum(t, d), vdisktest.Convert(t, "vhdx", path); got != want {
				t.Fatalf("content sums to %s, qemu-img says %s", got, want)
			}
			vdisktest.Extents(t, d)
			if vdisktest.Write(t, d, 1, 60) == 0 {
				t.Fatal("nothing could be written")
			}
			if got, want := vdisktest.Sum(t, d), vdisktest.Convert(t, "vhdx", path); got != want {
				t.Fatalf("after writing: content sums to %s, qemu-img says %s", got, want)
			}
			vdisktest.Run(t, "qemu-img", "check", "-q", path)
		})
	}
}

// TestReplay: until it is asked for, nothing is written; then QEMU finds the
// content that we found without it, and the disk can be written to.
func TestReplay(t *testing.T) {
	dir := vdisktest.Unpack(t, testdata, "vhdx-needs-replay")
	path := filepath.Join(dir, "vhdx-needs-replay.vhdx")
	d := vdisktest.Open(t, vhdx.Open, path, false)
	if _, err := d.WriteAt(make([]byte, 512), 0); !errors.Is(err, lun.ErrReadOnly) {
		t.Errorf("a write before the log was applied: %v", err)
	}
	dev, err := vdisk.Folder(dir).Resolve(filepath.Base(path), false)
	if err != nil {
		t.Fatal(err)
	}
	defer vdisk.Close(dev)
	for range 2 { // it may be repeated
		if err := vhdx.Replay(dev); err != nil {
			t.Fatal(err)
		}
		d = vdisktest.Open(t, vhdx.Open, path, false)
		if got := vdisktest.Sum(t, d); got != replayed || d.Info().Dirty {
			t.Errorf("content sums to %s, want %s; %+v", got, replayed, d.Info())
		}
	}
	vdisktest.Need(t, "qemu-img")
	if got := vdisktest.Convert(t, "vhdx", path); got != replayed {
		t.Errorf("qemu-img says %s, want %s", got, replayed)
	}
	if vdisktest.Write(t, d, 3, 20) == 0 {
		t.Error("nothing could be written")
	}
	vdisktest.Run(t, "qemu-img", "check", "-q", path)
}

// TestParent: a parent that was written to is no parent any more.
func TestParent(t *testing.T) {
	dir := vdisktest.Unpack(t, testdata, "diff-")
	child, parent := filepath.Join(dir, "diff-child-g1.vhdx"), filepath.Join(dir, "diff-parent-g1.vhdx")
	c := vdisktest.Open(t, vhdx.Open, child, false)
	vdisktest.Write(t, c, 2, 200)
	if vdisktest.Open(t, vhdx.Open, child, true) == nil {
		t.Fatal("no disk")
	}
	p := vdisktest.Open(t, vhdx.Open, parent, false)
	if vdisktest.Write(t, p, 4, 40) == 0 {
		t.Fatal("nothing could be written")
	}
	if _, err := vdisktest.TryOpen(t, vhdx.Open, child, true); !isField(err, "parent_linkage") {
		t.Errorf("a parent that was written to: %v", err)
	}
	if err := os.Remove(parent); err != nil {
		t.Fatal(err)
	}
	if _, err := vdisktest.TryOpen(t, vhdx.Open, child, true); !errors.Is(err, vdisk.ErrOtherFile) {
		t.Errorf("no parent: %v", err)
	}
}

func isField(err error, field string) bool {
	var fe *lun.FormatError
	return errors.As(err, &fe) && fe.Field == field && fe.Format == "vhdx"
}

func TestConcurrent(t *testing.T) {
	dir := vdisktest.Unpack(t, testdata, "vhdx-dynamic")
	vdisktest.Concurrent(t, vdisktest.Open(t, vhdx.Open, filepath.Join(dir, "vhdx-dynamic-1m.vhdx"), false))
}
