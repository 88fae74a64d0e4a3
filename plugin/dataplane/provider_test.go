package dataplane

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
)

// TestProvider is the providers' suite through the control socket, with
// production writing over iSCSI: QEMU's initiator in qemu-nbd, whose NBD server
// our client speaks to.
func TestProvider(t *testing.T) {
	need(t, "qemu-nbd")
	arraytest.Run(t, func(t *testing.T) *arraytest.Lab {
		cfg := config(t)
		cfg.Portals = []netip.AddrPort{port(t)}
		c, stop := run(t, cfg)
		l := &arraytest.Lab{Driver: c, Initiator: bob}
		for _, name := range []string{"v0", "v1", "v2", "v3"} {
			v := volume(t, c, name, arraytest.MinVolume)
			p, err := c.ExposeVolume(t.Context(), v.ID, []string{alice}, false)
			if err != nil {
				t.Fatal(err)
			}
			if l.Disk.IQN == "" {
				l.Disk = driver.Disk{IQN: p.IQN, LUN: p.LUN, Portal: p.Portals[0]}
			}
			l.Volumes = append(l.Volumes, arraytest.Volume{ID: v.ID, Device: initiator(t, p)})
		}
		l.Restart = func(t *testing.T) {
			stop()
			_, stop = run(t, cfg)
			for i, v := range l.Volumes {
				info, err := c.Volume(t.Context(), v.ID)
				if err != nil || info.LUN == nil {
					t.Fatalf("volume %s after the restart: %+v, %v", v.ID, info, err)
				}
				l.Volumes[i].Device = initiator(t, info.LUN.Path)
			}
		}
		return l
	})
}

// initiator is a LUN as a device of this process.
func initiator(t *testing.T, p driver.Path) lun.Device {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	var log lockedBuffer
	cmd := exec.Command("qemu-nbd", "-t", "-k", socket, "--image-opts", disk(p, alice))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	var c *nbd.Client
	eventually(t, func() (err error) {
		c, err = nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}
