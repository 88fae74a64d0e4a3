//go:build lab

package mainjob

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/cinder/cinderlab"
	"github.com/cleave-san/cleave/arrays/rbd/cephlab"
	"github.com/cleave-san/cleave/integration/cinderarray/lvmtgt"
	"github.com/cleave-san/cleave/integration/lab"
)

// cinderOnCeph is a Cinder whose back end is a small Ceph; VMs reach their disks
// through librbd, as Nova has it.
type cinderOnCeph struct {
	*cinderlab.Cinder
	conf     string
	endpoint string // as the control plane reaches it
	volumes  []string
}

func newCinderOnCeph(t *testing.T) *cinderOnCeph {
	t.Helper()
	conf := cephlab.Start(t)
	c := cinderlab.Start(t, map[string]string{"ceph": "volume_driver = cinder.volume.drivers.rbd.RBDDriver\nrbd_pool = " + cephlab.Pool + "\nrbd_user = admin\nrbd_ceph_conf = " + conf})
	return &cinderOnCeph{Cinder: c, conf: conf, endpoint: c.Endpoint}
}

func (c *cinderOnCeph) arrays() []string {
	return []string{fmt.Sprintf("name: cloud\ntype: cinder\nendpoint: %s\nproject: %s\ninitiator: iqn.2026-01.org.example:reader\nconf: %s", c.endpoint, cinderlab.Project, c.conf)}
}

// disk makes a volume and attaches it to the hypervisor.
func (c *cinderOnCeph) disk(s *scene, _ string, size int64) lab.Disk {
	s.Helper()
	id := c.VolumeOf("ceph", int((size+1<<30-1)>>30))
	c.volumes = append(c.volumes, id)
	var a struct {
		Attachment struct{ ID string }
	}
	connector := map[string]any{"initiator": "iqn.2026-01.org.example:hypervisor", "host": "hypervisor", "ip": "127.0.0.1", "multipath": false, "platform": "x86_64", "os_type": "linux2", "do_local_attach": false}
	c.Do(http.MethodPost, "attachments", map[string]any{"attachment": map[string]any{"volume_uuid": id, "connector": connector, "mode": "rw"}}, &a)
	c.Do(http.MethodPost, "attachments/"+a.Attachment.ID+"/action", map[string]any{"os-complete": map[string]any{}}, nil)
	return lab.Disk{Bus: lab.SCSIHD, Node: map[string]any{"driver": "rbd", "pool": cephlab.Pool, "image": "volume-" + id, "conf": c.conf, "user": "admin"}}
}

func (c *cinderOnCeph) wantNothingLeft(s *scene) {
	s.Helper()
	s.wantOnlyVolumes(c.Cinder, len(c.volumes))
	out, err := exec.Command("rbd", "-c", c.conf, "ls", cephlab.Pool).Output()
	s.check(err)
	var images []string
	for _, id := range c.volumes {
		images = append(images, "volume-"+id)
		snaps, err := exec.Command("rbd", "-c", c.conf, "snap", "ls", "--all", cephlab.Pool+"/volume-"+id).Output()
		s.check(err)
		if len(snaps) > 0 {
			s.Errorf("left on %s: %s", id, snaps)
		}
	}
	slices.Sort(images)
	if got := slices.Sorted(slices.Values(strings.Fields(string(out)))); !slices.Equal(got, images) {
		s.Errorf("images in Ceph: %q, want %q", got, images)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	s.check(err)
	for _, p := range processes {
		b, err := os.ReadFile(p)
		if line := string(b); err == nil && strings.Contains(line, "qemu-storage-daemon") && strings.Contains(line, c.conf) {
			s.Errorf("still running: %q", line)
		}
	}
}

// wantOnlyVolumes fails if there is more in Cinder than the VMs' volumes, each of
// them attached once.
func (s *scene) wantOnlyVolumes(c *cinderlab.Cinder, n int) {
	s.Helper()
	var left struct {
		Snapshots, Volumes []struct{ ID, Name, Status string }
		Attachments        []struct {
			ID     string
			Volume string `json:"volume_id"`
		}
	}
	for _, list := range []string{"snapshots/detail", "volumes/detail", "attachments/detail"} {
		c.Do(http.MethodGet, list, nil, &left)
	}
	if len(left.Snapshots) > 0 || len(left.Volumes) != n || len(left.Attachments) != n {
		s.Errorf("left in Cinder: %+v", left)
	}
}

// cinderOnLVM is a Cinder whose volumes are thin logical volumes of a machine that
// exports them by iSCSI, each with a CHAP secret of its own.
type cinderOnLVM struct {
	*lvmtgt.Storage
	volumes []string
}

func (c *cinderOnLVM) arrays() []string {
	return []string{fmt.Sprintf("name: cloud\ntype: cinder\nendpoint: %s\nproject: %s\ninitiator: iqn.2026-01.org.example:reader", c.Endpoint, c.Project)}
}

func (c *cinderOnLVM) disk(s *scene, _ string, size int64) lab.Disk {
	s.Helper()
	id := c.VolumeOf(lvmtgt.Backend, int((size+1<<30-1)>>30))
	c.volumes = append(c.volumes, id)
	l := c.Attach(id, "iqn.2026-01.org.example:hypervisor")
	return lab.Disk{LUN: &l, Bus: lab.SCSIHD}
}

func (c *cinderOnLVM) wantNothingLeft(s *scene) {
	s.Helper()
	s.wantOnlyVolumes(c.Cinder, len(c.volumes))
	if volumes, targets := c.Left(s.T); len(volumes) != len(c.volumes) || len(targets) != len(c.volumes) {
		s.Errorf("left on the storage: %q, %q", volumes, targets)
	}
}
