package open_test

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/vdisktest"
)

// live is what the heap holds that is in use.
func live() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestHuge: the largest disks that qemu-img makes, and the longest chain that is
// read, take no more memory to open than small ones, nor once they have been
// read all over.
func TestHuge(t *testing.T) {
	vdisktest.Need(t, "qemu-img")
	dir := t.TempDir()
	create := func(name string, arg ...string) {
		t.Helper()
		cmd := exec.Command("qemu-img", append([]string{"create", "-q"}, arg...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v: %s", arg, err, out)
		}
	}
	for name, arg := range map[string][]string{
		"small.qcow2": {"-f", "qcow2", "-o", "cluster_size=512", "small.qcow2", "16G"},
		"large.qcow2": {"-f", "qcow2", "-o", "cluster_size=2M", "large.qcow2", "1P"},
		"sub.qcow2":   {"-f", "qcow2", "-o", "extended_l2=on,cluster_size=2M", "sub.qcow2", "64T"},
		"large.vhdx":  {"-f", "vhdx", "large.vhdx", "64T"},
		"large.vhd":   {"-f", "vpc", "-o", "force_size=on", "large.vhd", "2040G"},
		"large.vmdk":  {"-f", "vmdk", "large.vmdk", "2T"},
		"split.vmdk":  {"-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "split.vmdk", "500G"},
	} {
		create(name, arg...)
	}
	create("chain", "-f", "qcow2", "-o", "cluster_size=512", "0.qcow2", "8G")
	for i := range vdisk.DefaultDepth {
		create("chain", "-f", "qcow2", "-F", "qcow2", "-o", "cluster_size=512", "-b", fmt.Sprintf("%d.qcow2", i), fmt.Sprintf("%d.qcow2", i+1))
	}
	folder := vdisk.Folder(dir)
	for _, name := range []string{"small.qcow2", "large.qcow2", "sub.qcow2", "large.vhdx", "large.vhd", "large.vmdk", "split.vmdk", fmt.Sprintf("%d.qcow2", vdisk.DefaultDepth)} {
		t.Run(filepath.Ext(name)[1:]+" "+name, func(t *testing.T) {
			f, err := folder.Resolve(name, true)
			if err != nil {
				t.Fatal(err)
			}
			defer vdisk.Close(f)
			held, before := live(), allocated()
			c, err := open.Probe(t.Context(), open.Source{Name: name, Device: f, Containers: true, Files: folder})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			opening := allocated() - before
			d := c.Disks[0]
			if d.Container == "raw" || len(c.Damage) > 0 {
				t.Fatalf("%s is %s: %v", name, d.Container, c.Damage)
			}
			r := rand.New(rand.NewPCG(1, 2))
			p := make([]byte, 4096)
			for range 5000 {
				if _, err := d.Device.ReadAt(p, r.Int64N(d.Device.Size()-4096)); err != nil {
					t.Fatal(err)
				}
			}
			calls := 0
			if err := d.Device.(lun.Mapper).Extents(0, d.Device.Size()/64, func(lun.Extent) error { calls++; return nil }); err != nil {
				t.Fatal(err)
			}
			held = live() - held
			runtime.KeepAlive(c)
			t.Logf("%d bytes: opening allocates %.1f MiB, then it holds %.1f MiB", d.Device.Size(), float64(opening)/(1<<20), float64(held)/(1<<20))
			if opening > maxMemory || held > maxMemory {
				t.Errorf("it allocates %d bytes to open, and holds %d", opening, held)
			}
		})
	}
}
