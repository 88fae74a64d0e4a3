package cinder

import (
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/cinder/cinderlab"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// nothing is a device for what has no data.
type nothing struct{}

func (nothing) ReadAt(p []byte, _ int64) (int, error)  { clear(p); return len(p), nil }
func (nothing) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (nothing) Size() int64                            { return gib }
func (nothing) Sync() error                            { return nil }

var _ lun.Device = nothing{}

// alone is a driver whose back end splits no groups, as callers hold it.
type alone struct {
	driver.Driver
	driver.Exposer
	driver.Describer
}

// together is one whose back end does.
type together struct {
	alone
	driver.GroupSplitter
}

func newDriver(t *testing.T, endpoint string) *Driver {
	t.Helper()
	d, err := New(Options{Endpoint: endpoint, Project: cinderlab.Project, GroupType: cinderlab.GroupType, Limit: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func laboratory(t *testing.T, c *cinderlab.Cinder, backend string, n int) func(*testing.T) *arraytest.Lab {
	var vs []arraytest.Volume
	for range n {
		vs = append(vs, arraytest.Volume{ID: driver.VolumeID(c.Volume(backend)), Device: nothing{}})
	}
	return func(t *testing.T) *arraytest.Lab {
		l := &arraytest.Lab{Volumes: vs, Disk: driver.Disk{Serial: string(vs[0].ID)}, Initiator: "iqn.1993-08.org.debian:01:backup"}
		l.Restart = func(t *testing.T) {
			d := newDriver(t, c.Endpoint)
			if l.Driver = (alone{d, d, d}); backend == "consistent" {
				l.Driver = together{alone{d, d, d}, d}
			}
		}
		l.Restart(t)
		return l
	}
}

// TestProvider runs the suite on a real Cinder with back ends that have no data.
func TestProvider(t *testing.T) {
	c := cinderlab.Start(t, map[string]string{"plain": cinderlab.Plain, "consistent": cinderlab.Consistent})
	t.Run("plain", func(t *testing.T) { arraytest.Run(t, laboratory(t, c, "plain", 2)) })
	t.Run("consistent", func(t *testing.T) { arraytest.Run(t, laboratory(t, c, "consistent", 3)) })
	if t.Failed() {
		t.Log(c.Log())
	}
}
