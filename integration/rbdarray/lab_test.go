//go:build lab

package rbdarray

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"testing"

	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/rbd"
	"github.com/cleave-san/cleave/arrays/rbd/cephlab"
	"github.com/cleave-san/cleave/lun"
)

// TestProvider runs the suite on a small Ceph, with production that writes
// through librbd.
func TestProvider(t *testing.T) { testProvider(t, rbd.StorageDaemon) }

// TestProviderByTGT is the same where images are read, and written, by tgt.
func TestProviderByTGT(t *testing.T) { testProvider(t, rbd.TGT) }

func testProvider(t *testing.T, w rbd.Way) {
	conf := cephlab.Start(t)
	n := 0
	arraytest.Run(t, func(t *testing.T) *arraytest.Lab {
		d := by(t, conf, w, new(driver.Path))
		l := &arraytest.Lab{Driver: d}
		open := map[driver.VolumeID]io.Closer{}
		l.Attach = func(t *testing.T, v driver.VolumeID) lun.Device {
			x, err := d.OpenImage(context.Background(), v)
			if err != nil {
				t.Fatal(err)
			}
			open[v] = x.(io.Closer)
			return x
		}
		l.Detach = func(t *testing.T, v driver.VolumeID) {
			if x := open[v]; x != nil {
				x.Close()
				delete(open, v)
			}
		}
		t.Cleanup(func() {
			for _, x := range open {
				x.Close()
			}
		})
		for range 2 {
			n++
			v := driver.VolumeID(fmt.Sprintf("%s/v%d", cephlab.Pool, n))
			if out, err := exec.Command("rbd", "-c", conf, "create", "--size=4M", string(v)).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			l.Volumes = append(l.Volumes, arraytest.Volume{ID: v, Device: l.Attach(t, v)})
		}
		l.Disk = driver.Disk{Path: "rbd:" + string(l.Volumes[0].ID)}
		return l
	})
}
