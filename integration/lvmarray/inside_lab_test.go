//go:build lab

package lvmarray

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/lvm"
	"github.com/cleave-san/cleave/lun"
)

// TestInside is the providers' suite, in the VM.
func TestInside(t *testing.T) {
	i := slices.IndexFunc(scenes, func(s scene) bool { return s.name == os.Getenv(inside) })
	if i < 0 {
		return // TestLVM runs it
	}
	s := scenes[i]
	version, err := exec.Command("lvm", "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, v, _ := strings.Cut(string(version), "LVM version:")
	t.Logf("PEER lvm2 %s", strings.Fields(v)[0])
	arraytest.Run(t, s.lab)
}

// only hides the options that a method doesn't have, as arrays.New does for the
// engine.
type (
	base interface {
		driver.Driver
		driver.Opener
		driver.Describer
		driver.Checker
	}
	withResync struct {
		base
		driver.Resyncer
	}
	withRewrite struct {
		base
		driver.Rewriter
	}
)

func only(d *lvm.Driver) driver.Driver {
	if slices.Contains(d.Without(), arrays.Resync) {
		return withRewrite{d, d}
	}
	return withResync{d, d}
}

func (s scene) lab(t *testing.T) *arraytest.Lab {
	t.Helper()
	sh(t, "vgchange -an vg0 && lvremove -y vg0 && [ -z \"$(lvs --noheadings vg0)\" ]")
	open := func() driver.Driver {
		d, err := lvm.New(lvm.Options{Group: "vg0", Method: s.method, Room: 100})
		if err != nil {
			t.Fatal(err)
		}
		return only(d)
	}
	l := &arraytest.Lab{Driver: open()}
	l.Restart = func(*testing.T) { l.Driver = open() }
	for i := range 2 {
		name := fmt.Sprintf("v%d", i)
		sh(t, "set -- "+name+"; "+s.create)
		uuid := strings.TrimSpace(sh(t, "lvs --noheadings -o lv_uuid vg0/"+name))
		// As QEMU does without a cache: what is acknowledged is in the volume.
		f, err := os.OpenFile("/dev/vg0/"+name, os.O_RDWR|syscall.O_DSYNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		l.Volumes = append(l.Volumes, arraytest.Volume{ID: driver.VolumeID(uuid), Device: volume{f, size}})
	}
	l.Disk = driver.Disk{Path: "/dev/vg0/v0"}
	return l
}

// volume is how production writes.
type volume struct {
	*os.File
	size int64
}

func (v volume) Size() int64 { return v.size }

var _ lun.Device = volume{}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}
