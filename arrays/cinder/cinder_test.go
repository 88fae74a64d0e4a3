package cinder

import (
	"net/http"
	"os"
	"strings"
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

// TestProvider runs the suite on a real Cinder, with back ends that have no data:
// whatever a group needs, and, with CLEAVE_CINDER=all, one that splits no groups
// too, which takes another minute.
func TestProvider(t *testing.T) {
	c := cinderlab.Start(t, map[string]string{"plain": cinderlab.Plain, "consistent": cinderlab.Consistent})
	t.Run("rights", func(t *testing.T) { rights(t, c) })
	t.Run("refused", func(t *testing.T) { refused(t, c) })
	t.Run("unheard", func(t *testing.T) { unheard(t, c) })
	t.Run("consistent", func(t *testing.T) { arraytest.Run(t, laboratory(t, c, "consistent", 3)) })
	if os.Getenv("CLEAVE_CINDER") == "all" {
		t.Run("plain", func(t *testing.T) { arraytest.Run(t, laboratory(t, c, "plain", 2)) })
	}
	var left struct {
		Snapshots, Volumes []struct{ Name string }
		Groups             []struct{ Name string }
	}
	c.Do(http.MethodGet, "snapshots", nil, &left)
	c.Do(http.MethodGet, "volumes", nil, &left)
	c.Do(http.MethodGet, "groups", nil, &left)
	for _, v := range append(left.Volumes, left.Groups...) {
		if strings.HasPrefix(v.Name, prefix) {
			t.Errorf("%s is left behind", v.Name)
		}
	}
	if t.Failed() {
		t.Log(c.Log())
	}
}

// refused is about groups that Cinder would take one by one without a word.
func refused(t *testing.T, c *cinderlab.Cinder) {
	d := newDriver(t, c.Endpoint)
	vs := []driver.VolumeID{driver.VolumeID(c.Volume("plain")), driver.VolumeID(c.Volume("consistent"))}
	_, err := d.SplitGroup(t.Context(), "one-by-one", vs)
	if d.Kind(err) != driver.NotSupported || !strings.Contains(err.Error(), "consistent_group_snapshot_enabled") {
		t.Errorf("a group over a pool that isn't consistent: %v", err)
	}
	if ss, err := d.Lookup(t.Context(), "one-by-one"); err != nil || len(ss) != 0 {
		t.Errorf("it left %v, %v", ss, err)
	}
}
