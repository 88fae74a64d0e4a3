package open_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// folderOfDisks fills a directory with one disk in several containers, made by
// qemu-img.
func folderOfDisks(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "vms"), 0o755); err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(dir, "vms", "raw.img")
	if err := os.WriteFile(raw, image(t, "lvm-o1-thick-4k"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"qcow2", "vhdx", "vpc"} {
		arg := []string{"convert", "-t", "unsafe", "-f", "raw", "-O", format}
		if format == "vpc" {
			arg = append(arg, "-o", "force_size=on")
		}
		fstest.Run(t, "qemu-img", append(arg, raw, filepath.Join(dir, "vms", "disk."+format))...)
	}
	for child, base := range map[string]string{"child.qcow2": "disk.qcow2", "stray.qcow2": "../other.img"} {
		fstest.Run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2", filepath.Join(dir, "vms", child), "72M")
	}
}

// place opens one disk in a host's file system and probes it.
func place(t *testing.T, host lun.Device, p open.Place) (*open.Contents, error) {
	t.Helper()
	p.Name, p.On, p.Volume = "disk", []int{0}, "disk"
	h := open.NewHost(open.Source{Name: "host", Device: host})
	t.Cleanup(func() { h.Close() })
	disks, err := h.Disks(context.Background(), []open.Place{p})
	if err != nil {
		return nil, err
	}
	return open.Probe(context.Background(), disks...)
}

// TestPlaces: disks that are files in a host's ext4 are found and opened by the
// format that is said, with further files of the same folder only.
func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	folderOfDisks(t, dir)
	host := fstest.Device(t, fstest.Image(t, t.TempDir(), 256<<20, "mkfs.ext4", "-q", "-d", dir))
	for file, format := range map[string]string{"raw.img": "raw", "disk.qcow2": "qcow2", "disk.vhdx": "vhdx", "disk.vpc": "vhd", "child.qcow2": "qcow2"} {
		c, err := place(t, host, open.Place{Path: "vms/" + file, Format: format})
		if err != nil {
			t.Fatal(err)
		}
		if got := names(c); got != "disk vgo1/root vgo1/snap" || c.Disks[0].Info.Format != format || len(c.Damage) > 0 {
			t.Errorf("%s is a %s with %q, damage %v", file, c.Disks[0].Info.Format, got, c.Damage)
		}
	}
	for what, p := range map[string]open.Place{
		"no signature":           {Path: "vms/raw.img", Format: "qcow2"},
		"another format":         {Path: "vms/disk.vhdx", Format: "qcow2"},
		"parent in other folder": {Path: "vms/stray.qcow2", Format: "qcow2"},
	} {
		c, err := place(t, host, p)
		if err == nil && len(c.Damage) == 0 {
			t.Errorf("%s: was opened", what)
		}
		if what == "parent in other folder" && !errors.Is(err, vdisk.ErrOtherFile) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A guest that writes a container's header into its raw disk gains nothing.
	if c, err := place(t, host, open.Place{Path: "vms/disk.qcow2", Format: "raw"}); err != nil || c.Disks[0].Container != "raw" {
		t.Errorf("said to be raw: %v", err)
	}
	for _, path := range []string{"vms/none", "../vms/raw.img", "vms", "raw.img"} {
		if _, err := place(t, host, open.Place{Path: path, Format: "raw"}); err == nil {
			t.Errorf("%s was opened", path)
		}
	}
}

// TestPlacesDirty: what a file grew by and was made stable is there although only
// the journal of the host's file system says so.
func TestPlacesDirty(t *testing.T) {
	pool := fstest.Pool(t, 1<<30)
	image := fstest.Image(t, pool, 256<<20, "mkfs.ext4", "-q")
	dir, _ := fstest.Mount(t, image, "ext4", "")
	f, err := os.Create(filepath.Join(dir, "grown"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := bytes.Repeat([]byte("grown and stable"), 1<<16)
	if _, err := f.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	c, err := place(t, fstest.Device(t, fstest.Clone(t, image)), open.Place{Path: "grown", Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, c.Disks[0].Device.Size())
	if _, err := c.Disks[0].Device.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, equal %v: %v", len(got), len(want), bytes.Equal(got, want), err)
	}
}

// TestPlacesOnLogicalVolume: a logical volume of the host is a disk, raw or with a
// container in it, whatever its first bytes look like.
func TestPlacesOnLogicalVolume(t *testing.T) {
	dir := t.TempDir()
	raw, cow := filepath.Join(dir, "raw"), filepath.Join(dir, "cow")
	want := bytes.Repeat([]byte("in a container on a volume. "), 4<<20/28)
	want = append(want, make([]byte, 8<<20-len(want))...)
	if err := os.WriteFile(raw, want, 0o600); err != nil {
		t.Fatal(err)
	}
	fstest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, cow)
	container, err := os.ReadFile(cow)
	if err != nil {
		t.Fatal(err)
	}
	host := bytes.Clone(image(t, "lvm-o1-thick-4k"))
	c, err := open.Probe(t.Context(), open.Source{Device: luntest.ReadOnly(host)})
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.Volume("vgo1/root")
	if err != nil {
		t.Fatal(err)
	}
	areas, err := v.Group.Map(v.LV)
	if err != nil || len(areas) != 1 || areas[0].Len < int64(len(container)) {
		t.Fatalf("%+v, %v", areas, err)
	}
	copy(host[areas[0].Off:], container)
	for format, size := range map[string]int64{"qcow2": int64(len(want)), "raw": v.Size} {
		h := open.NewHost(open.Source{Name: "host", Device: luntest.ReadOnly(host)})
		disk, err := h.Disk(t.Context(), open.Place{Name: "vda", On: []int{0}, Volume: v.UUID, Format: format})
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		in, err := open.Probe(t.Context(), disk)
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		d := in.Disks[0].Device
		first := container
		if format == "qcow2" {
			first = want
		}
		got := make([]byte, min(d.Size(), int64(len(first))))
		if _, err := d.ReadAt(got, 0); err != nil || d.Size() != size || !bytes.Equal(got, first[:len(got)]) {
			t.Errorf("%s: %d bytes, want %d; %v", format, d.Size(), size, err)
		}
		if err := errors.Join(in.Close(), h.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestPlacesWrite: writes in place go into blocks that a file has, into no hole,
// and into nothing where the host's volume may not be written.
func TestPlacesWrite(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{1}, 64<<10), 1<<20)
	if err = errors.Join(err, f.Truncate(4<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	path := fstest.Image(t, t.TempDir(), 64<<20, "mkfs.ext4", "-q", "-d", dir)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	host := &rw{file, 64 << 20}
	p := open.Place{Name: "disk", On: []int{0}, Volume: "disk", Path: "sparse", Format: "raw"}
	for _, writable := range []bool{true, false} {
		h := open.NewHost(open.Source{Name: "host", Device: host, Writable: writable})
		disks, err := h.Disks(t.Context(), []open.Place{p})
		if err != nil {
			t.Fatal(err)
		}
		c, err := open.Probe(t.Context(), disks...)
		if err != nil {
			t.Fatal(err)
		}
		d := c.Disks[0]
		var refused *open.NotWritableError
		if !writable {
			if err := d.CheckWritable([]lun.Extent{{Off: 1 << 20, Len: 512}}); !errors.Is(err, lun.ErrReadOnly) {
				t.Errorf("a host's volume that is read-only: %v", err)
			}
		} else {
			if err := d.CheckWritable([]lun.Extent{{Off: 1 << 20, Len: 64 << 10}}); err != nil {
				t.Error(err)
			}
			if _, err := d.Device.WriteAt(bytes.Repeat([]byte{2}, 4096), 1<<20+8192); err != nil {
				t.Error(err)
			}
			err := d.CheckWritable([]lun.Extent{{Off: 1 << 20, Len: 512}, {Off: 1<<20 - 512, Len: 1024}})
			if !errors.As(err, &refused) || refused.Refused != 1 || !errors.Is(err, vdisk.ErrNotAllocated) {
				t.Errorf("a hole: %v", err)
			}
			if _, err := d.Device.WriteAt(make([]byte, 1024), 1<<20-512); !errors.Is(err, vdisk.ErrNotAllocated) {
				t.Errorf("a write into a hole: %v", err)
			}
		}
		if err := errors.Join(c.Close(), h.Close()); err != nil {
			t.Error(err)
		}
	}
	out := filepath.Join(t.TempDir(), "out")
	fstest.Run(t, "debugfs", "-R", "dump sparse "+out, path)
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4<<20)
	copy(want[1<<20:], bytes.Repeat([]byte{1}, 64<<10))
	copy(want[1<<20+8192:], bytes.Repeat([]byte{2}, 4096))
	if !bytes.Equal(got, want) {
		t.Error("debugfs reads something else")
	}
	fstest.Run(t, "e2fsck", "-fn", path)
}

// rw is a file as a device that may be written to.
type rw struct {
	*os.File
	size int64
}

func (d *rw) Size() int64 { return d.size }
