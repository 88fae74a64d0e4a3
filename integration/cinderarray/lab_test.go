//go:build lab

package cinderarray

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/cinder"
	"github.com/cleave-san/cleave/arrays/cinder/cinderlab"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/rbd"
	"github.com/cleave-san/cleave/arrays/rbd/cephlab"
	"github.com/cleave-san/cleave/lun"
)

// alone is the driver as callers hold it: Cinder's RBD back end reports no
// consistent groups, and no initiator sees its volumes.
type alone struct {
	driver.Driver
	driver.Opener
	driver.Describer
}

func TestOnCeph(t *testing.T) {
	conf := cephlab.Start(t)
	c := cinderlab.Start(t, map[string]string{"ceph": "volume_driver = cinder.volume.drivers.rbd.RBDDriver\nrbd_pool = " + cephlab.Pool + "\nrbd_user = admin\nrbd_ceph_conf = " + conf})
	images, err := rbd.New(rbd.Options{Conf: conf, Pools: []string{cephlab.Pool}})
	if err != nil {
		t.Fatal(err)
	}
	open := func(t *testing.T, image string) lun.Device {
		d, err := images.OpenImage(context.Background(), driver.VolumeID(image))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.(io.Closer).Close() })
		return d
	}
	var vs []arraytest.Volume
	for range 2 {
		id := c.Volume("ceph")
		vs = append(vs, arraytest.Volume{ID: driver.VolumeID(id), Device: open(t, cephlab.Pool+"/volume-"+id)})
	}
	arraytest.Run(t, func(t *testing.T) *arraytest.Lab {
		l := &arraytest.Lab{Volumes: vs, Disk: driver.Disk{Serial: string(vs[0].ID)}}
		l.Restart = func(t *testing.T) {
			d, err := cinder.New(cinder.Options{
				Endpoint: c.Endpoint, Project: cinderlab.Project, Limit: time.Minute, Initiator: "iqn.2026-01.org.example:reader",
				Connect: func(ctx context.Context, x cinder.Connection) (lun.Device, error) {
					return images.OpenImage(ctx, driver.VolumeID(x.Image))
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			l.Driver = alone{d, d, d}
		}
		l.Restart(t)
		return l
	})
	if t.Failed() {
		t.Log(c.Log())
	}
}
