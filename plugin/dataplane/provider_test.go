package dataplane

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
)

// TestProvider is the providers' suite through the control socket, with
// production writing over iSCSI: QEMU's initiator in qemu-nbd, whose NBD server
// our client speaks to.
func TestProvider(t *testing.T) {
	need(t, "qemu-nbd")
	arraytest.Run(t, func(whole *testing.T) *arraytest.Lab {
		t := whole
		cfg := config(t)
		cfg.Portals = []Portal{{Addr: port(t)}}
		c, stop := run(t, cfg)
		l := &arraytest.Lab{Driver: c, Initiator: bob}
		hangUp := map[driver.VolumeID][]func(){}
		l.Attach = func(t *testing.T, v driver.VolumeID) lun.Device {
			p, err := c.ExposeVolume(t.Context(), v, []string{alice}, false)
			if err != nil {
				t.Fatal(err)
			}
			d, end := initiator(whole, p)
			hangUp[v] = append(hangUp[v], end)
			return d
		}
		l.Detach = func(t *testing.T, v driver.VolumeID) {
			for _, end := range hangUp[v] {
				end()
			}
			delete(hangUp, v)
			if err := c.UnexposeVolume(t.Context(), v); err != nil {
				t.Fatal(err)
			}
		}
		for i, name := range []string{"v0", "v1", "v2", "v3"} {
			pools := []string{"a", "b", "c"}[:2]
			if i == 0 {
				pools = pools[:3]
			}
			v, err := c.CreateVolume(t.Context(), remote.CreateVolumeRequest{Name: name, Size: arraytest.MinVolume, Pools: pools})
			if err != nil {
				t.Fatal(err)
			}
			l.Volumes = append(l.Volumes, arraytest.Volume{ID: v.ID, Device: l.Attach(t, v.ID)})
			if i == 0 {
				if v, err = c.Volume(t.Context(), v.ID); err != nil {
					t.Fatal(err)
				}
				l.Disk = driver.Disk{IQN: v.LUN.IQN, LUN: v.LUN.LUN, Portal: v.LUN.Portals[0]}
			}
		}
		// Initiators stay where they are and ride through.
		l.Restart = func(*testing.T) {
			stop()
			_, stop = run(whole, cfg)
		}
		return l
	})
}

// initiator is a LUN as a device of this process, until the test ends or hangUp
// is called.
func initiator(t *testing.T, p driver.Path) (_ lun.Device, hangUp func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cleave-initiator-")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	var log lockedBuffer
	cmd := exec.Command("qemu-nbd", "-t", "-k", socket, "--image-opts", disk(p, alice))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var c *nbd.Client
	hangUp = sync.OnceFunc(func() {
		if c != nil {
			c.Close()
		}
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	})
	t.Cleanup(hangUp)
	eventually(t, func() (err error) {
		c, err = nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
		return err
	})
	return c, hangUp
}
