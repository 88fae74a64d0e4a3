package worker

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// hosted makes an ext4 image that holds a disk in several containers, one of them
// damaged.
func hosted(t *testing.T, disk *open.FileDevice) *open.FileDevice {
	t.Helper()
	for _, tool := range []string{"qemu-img", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: make deps", tool)
		}
	}
	run := func(name string, arg ...string) {
		t.Helper()
		if out, err := exec.Command(name, arg...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, arg, err, out)
		}
	}
	dir := t.TempDir()
	for name, format := range map[string]string{"a.vhdx": "vhdx", "b.qcow2": "qcow2", "bad.vhdx": "vhdx"} {
		run("qemu-img", "convert", "-f", "raw", "-O", format, disk.File().Name(), filepath.Join(dir, name))
	}
	f, err := os.OpenFile(filepath.Join(dir, "bad.vhdx"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, table := range []int64{192 << 10, 256 << 10} { // both region tables, MS-VHDX 2.2
		if _, err := f.WriteAt(make([]byte, 64), table); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(t.TempDir(), "host.img")
	run("truncate", "-s", "256M", image)
	run("mkfs.ext4", "-q", "-d", dir, image)
	d, err := open.File(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestPlaces: a worker recovers disks that are files on a host's volume, serves
// each clean and dirty, and looks at containers one by one.
func TestPlaces(t *testing.T) {
	disk := image(t, "lvm-o1-thick-4k")
	host := hosted(t, disk)
	place := func(file, format string) open.Place {
		return open.Place{Name: file, On: []int{0}, Volume: "disk", Path: file, Format: format}
	}
	s := spec(t, Source{Name: "host", Device: host})
	s.Places = []open.Place{place("a.vhdx", "vhdx"), place("b.qcow2", "qcow2"), place("bad.vhdx", "vhdx"), place("none", "raw")}
	found, err := Containers(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range found {
		if bad := i >= 2; bad != (c.Problem != nil) || !bad && c.Size != disk.Size() {
			t.Errorf("container %d: %+v", i, c)
		}
	}

	for _, p := range s.Places[:2] {
		s.Places = []open.Place{p}
		w, err := Start(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		for export, want := range map[string][32]byte{"0": reference(t, disk), DirtyPrefix + "0": sum(t, disk)} {
			c, err := nbd.Dial(t.Context(), "unix", w.Address(), nbd.ClientOptions{Export: export})
			if err != nil {
				t.Fatal(err)
			}
			if sum(t, c) != want {
				t.Errorf("%s: export %s is something else", p.Name, export)
			}
			c.Close()
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}

	s.Places = []open.Place{place("bad.vhdx", "vhdx")}
	if w, err := Start(t.Context(), s); err == nil {
		w.Close()
		t.Error("a view of a damaged container was served")
	}
	s.Places, s.NoRecovery = []open.Place{place("a.vhdx", "vhdx")}, true
	w, err := Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if len(w.Volumes) != 0 {
		t.Errorf("recovered without being asked: %+v", w.Volumes)
	}
	s = spec(t, Source{Name: "host", Device: host})
	s.Places = []open.Place{place("a.vhdx", "vhdx")}
	if _, err := Check(t.Context(), s, []recovery.Expected{{Volume: "none", Snapshot: "none"}}); err != nil {
		t.Error(err)
	}
}
