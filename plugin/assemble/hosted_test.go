package assemble

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/hostvolume"
)

// mountedAt stands for the kernel of a host that has a LUN mounted.
type mountedAt struct{ at, naa string }

func (m mountedAt) Under(_ context.Context, path string) (hostvolume.Under, error) {
	name, ok := strings.CutPrefix(path, m.at+"/")
	if !ok {
		return hostvolume.Under{}, hostvolume.ErrNone
	}
	return hostvolume.Under{Devices: []hostvolume.Device{{Path: "/dev/sdz", NAA: m.naa}}, Volume: "disk", Path: "/" + name, FS: "ext4", Mount: m.at}, nil
}

func (mountedAt) Flush(context.Context, string) error { return nil }
func (mountedAt) Mounted(string) (bool, error)        { return true, nil }

// TestSetOnAHostVolume: disks in containers on an ext4 that is a volume of a real
// array; real workers find them, look at them, and serve them clean and dirty.
func TestSetOnAHostVolume(t *testing.T) {
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
	s := newArrayScene(t)
	s.volume, s.snapshot, s.sum = "vgo1/root", "vgo1/snap", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f"
	contents := luntest.Image(t, "lvm-o1-thick-4k")
	dirty := sha256.Sum256(contents)
	dir, raw, image := filepath.Join(s.dir, "vms"), filepath.Join(s.dir, "raw"), filepath.Join(s.dir, "host.img")
	s.ok(os.Mkdir(dir, 0o700))
	s.ok(os.WriteFile(raw, contents, 0o600))
	var vms []orchestrator.VM
	for _, x := range []struct{ vm, format string }{{"db", "vhdx"}, {"legacy", "vpc"}, {"other", "qcow2"}} {
		run("qemu-img", "convert", "-f", "raw", "-O", x.format, raw, filepath.Join(dir, x.vm))
		vms = append(vms, orchestrator.VM{Name: x.vm, Power: orchestrator.Running, Guest: orchestrator.Guest{Silence: "none"},
			Disks: []orchestrator.Disk{{Device: "vda", Format: x.format, Cache: "none", Path: "/hv/" + x.vm}}})
	}
	run("truncate", "-s", "256M", image)
	run("mkfs.ext4", "-q", "-d", dir, image)
	host, err := os.ReadFile(image)
	s.ok(err)
	s.fill("host", host)
	v, err := s.client.Volume(t.Context(), s.disks[0].id)
	s.ok(err)
	s.hosts = mountedAt{"/hv", v.Identity.NAAString()}
	s.serve(s.guest(&vms[0], open.Source{Device: luntest.ReadOnly(contents)}), vms...)

	set, err := s.engine.Create(t.Context(), orchestrator.Request{VMs: []string{"db", "legacy"}, AllowUnmirrored: true})
	s.ok(err)
	set, err = s.engine.Wait(t.Context(), set.ID, nil)
	s.ok(err)
	if set.State != orchestrator.StateReady {
		t.Fatalf("set is %s: %s", set.State, set.Reason)
	}
	if got := set.VMs[0].Reached; got != orchestrator.LevelFilesystem {
		t.Errorf("db reached %s: %s", got, set.VMs[0].Why)
	}
	if n := len(set.Splits[0].Disks); n != 3 {
		t.Errorf("%d disks on the split", n)
	}
	for _, d := range set.Splits[0].Disks {
		// A VHD has the size of its geometry.
		if c := d.Host.Container; c == nil || c.Problem != "" || c.Size < int64(len(contents)) {
			t.Errorf("container of %s: %+v", d.VM, c)
		}
	}
	read := func(l orchestrator.LUN) []byte {
		t.Helper()
		d, err := nbd.Dial(t.Context(), "unix", l.Socket, nbd.ClientOptions{Export: l.Export})
		s.ok(err)
		defer d.Close()
		return s.read(d)[:len(contents)]
	}
	served := 0
	for _, l := range set.LUNs {
		switch strings.TrimPrefix(l.Name, string(set.ID)) {
		case "/db/vda":
			served++
			if got := s.sumOf([][]byte{read(l)}); got != s.sum {
				t.Errorf("recovered: %s", got)
			}
		case "/db/vda/split", "/legacy/vda/split":
			served++
			if got := sha256.Sum256(read(l)); got != dirty {
				t.Errorf("%s as it came off: %s", l.Name, hex.EncodeToString(got[:]))
			}
		case fmt.Sprintf("/volume:main/%s", v.ID):
			served++
		}
	}
	if served != 4 {
		t.Errorf("LUNs: %+v", set.LUNs)
	}
	if set, err = s.engine.Release(t.Context(), set.ID); err != nil || set.State != orchestrator.StateReleased {
		t.Errorf("release: %s, %v", set.State, err)
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, "st", "views", "*.json")); err != nil || len(left) > 0 {
		t.Errorf("views left: %q, %v", left, err)
	}
}
