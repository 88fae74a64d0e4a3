package open_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/vdisktest"
)

// TestContainerSnapshots: they are volumes, and what the disk can be opened as.
// The sums are in lun/testdata/README.md.
func TestContainerSnapshots(t *testing.T) {
	const now, s1, s2 = "41b075a5a6e5180a54ae4f9f94aa0a53e43b02206c77d61a23dc0d89d26b4a17",
		"d0070f7eb52be7e5b2c2987d4dd60799998ad796d497c65ac93515924bd76e08", "6faeb82c516add2ae983488ee5caa1ecac1b4edd3f4a84f879d4af5212895d37"
	f := container(t, "qcow2-isnap.qcow2")
	for _, at := range []struct{ snapshot, sum string }{{"", now}, {"s1", s1}, {"s2", s2}, {"2", s2}} {
		c, err := open.Probe(t.Context(), open.Source{Name: "disk", Device: f, Containers: true, Snapshot: at.snapshot})
		if err != nil {
			t.Fatal(err)
		}
		if got := names(c); got != "disk snapshot:s1 snapshot:s2" {
			t.Errorf("volumes %q", got)
		}
		for name, want := range map[string]string{"disk": at.sum, "snapshot:s1": s1, "snapshot:s2": s2} {
			v, err := c.Volume(name)
			if err != nil {
				t.Fatal(err)
			}
			d, err := v.Open()
			if err != nil {
				t.Fatal(err)
			}
			if got := vdisktest.Sum(t, d); got != want {
				t.Errorf("at %q, %s sums to %s, want %s", at.snapshot, name, got, want)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []open.Source{{Device: f, Snapshot: "none"}, {Device: memory(make([]byte, 4096)), Snapshot: "s1"}, {Device: container(t, "vhdx-fixed.vhdx"), Snapshot: "s1"}} {
		s.Containers = true
		if _, err := open.Probe(t.Context(), s); !errors.Is(err, open.ErrNotFound) || !errors.Is(err, vdisk.ErrNoSnapshot) {
			t.Errorf("a snapshot that is not there: %v", err)
		}
	}
}

// TestCheckWritable: what a container has no block for is counted before
// anything is written.
func TestCheckWritable(t *testing.T) {
	dir := vdisktest.Unpack(t, filepath.Join("..", "testdata"), "qcow2-v3", "qcow2-isnap", "qcow2-overlay.")
	probe := func(name string, writable bool) *open.Disk {
		t.Helper()
		d, err := vdisk.Folder(dir).Resolve(name, !writable)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { vdisk.Close(d) })
		c, err := open.Probe(t.Context(), open.Source{Name: name, Device: d, Containers: true, Files: vdisk.Folder(dir), Writable: writable})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.Disks[0]
	}
	d := probe("qcow2-v3.qcow2", true)
	var there, absent []lun.Extent
	err := d.Device.(lun.Mapper).Extents(0, d.Device.Size(), func(e lun.Extent) error {
		if e.Hole {
			absent = append(absent, e)
		} else {
			there = append(there, e)
		}
		return nil
	})
	if err != nil || len(there) == 0 || len(absent) == 0 {
		t.Fatalf("%v, %v, %v", there, absent, err)
	}
	if err := d.CheckWritable(there); err != nil {
		t.Errorf("blocks of its own: %v", err)
	}
	if _, err := d.Device.WriteAt([]byte{1}, there[0].Off); err != nil {
		t.Errorf("write: %v", err)
	}
	var no *open.NotWritableError
	err = d.CheckWritable(append(there, absent[0]))
	if !errors.As(err, &no) || !errors.Is(err, vdisk.ErrNotAllocated) || no.Extents != len(there)+1 || no.Refused != 1 || no.First != absent[0].Off || no.BytesShort != absent[0].Len {
		t.Errorf("a hole: %v", err)
	}
	for name, want := range map[string]error{"qcow2-isnap.qcow2": vdisk.ErrNotAllocated, "qcow2-overlay.qcow2": vdisk.ErrNotAllocated} {
		whole := []lun.Extent{{Len: 40 << 20}}
		if err := probe(name, true).CheckWritable(whole); !errors.As(err, &no) || !errors.Is(err, want) {
			t.Errorf("%s, shared blocks: %v", name, err)
		}
	}
	if err := probe("qcow2-v3.qcow2", false).CheckWritable(there); !errors.As(err, &no) || !errors.Is(err, lun.ErrReadOnly) || no.Refused != len(there) {
		t.Errorf("opened for reading: %v", err)
	}
	raw := &open.Disk{Source: open.Source{Device: memory(make([]byte, 4096))}}
	if err := raw.CheckWritable(there); err != nil {
		t.Errorf("no container: %v", err)
	}
}

// container is a file of containers.tar.zst.
func container(t *testing.T, name string) lun.Device {
	t.Helper()
	dir := vdisktest.Unpack(t, filepath.Join("..", "testdata"), name)
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return memory(b)
}
