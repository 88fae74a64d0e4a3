//go:build lab

package hostvolumes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/integration/stage"
	"github.com/cleave-san/cleave/orchestrator"
)

// scene is a host with two volumes and three VMs on them.
type scene struct {
	*testing.T
	ctx   context.Context
	stage *stage.Stage
	vms   []*lab.Machine
	proof *lab.Machine
}

func (s *scene) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *scene) check(err error) {
	s.Helper()
	if err != nil {
		s.Error(err)
	}
}

func (s *scene) run(name string, args ...string) string {
	s.Helper()
	out, err := exec.CommandContext(s.ctx, name, args...).CombinedOutput()
	if err != nil {
		s.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (s *scene) cleave(args ...string) string {
	s.Helper()
	out, err := s.stage.Cleave(s.ctx, args...)
	s.ok(err)
	return out
}

func (s *scene) path(parts ...string) string {
	return filepath.Join(append([]string{s.stage.Dir()}, parts...)...)
}

// TestFigure1 is that scene, on file systems of both kinds.
func TestFigure1(t *testing.T)    { figure1(t, "ext4") }
func TestFigure1XFS(t *testing.T) { figure1(t, "xfs") }

func figure1(t *testing.T, kind string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Minute)
	t.Cleanup(cancel)
	s := &scene{T: t, ctx: ctx}
	s.host(kind)
	s.boot()
	set, err := s.stage.Set(ctx, "snapshot", "create", "--vm", "db", "--vm", "spread", "--vm", "legacy", "--to", stage.ProofInitiator, "--allow-unmirrored", "--wait")
	s.ok(err)
	s.documented(set)
	s.devices(set)
	s.containers(set)
	s.recovered(set)
	s.cleave("snapshot", "delete", string(set.ID))
	s.nothingLeft()
}

// host makes two volumes of the array disks of this host with a file system each.
func (s *scene) host(kind string) {
	s.Helper()
	dir, err := os.MkdirTemp("", "cleave-hv-")
	s.ok(err)
	s.Cleanup(func() { s.check(os.RemoveAll(dir)) })
	exe := filepath.Join(dir, "cleave")
	build := exec.CommandContext(s.ctx, "go", "build", "-o", exe, "github.com/cleave-san/cleave/plugin/cmd/cleave")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		s.Fatalf("go build: %v: %s", err, out)
	}
	s.stage, err = stage.New(s.ctx, stage.Options{Exe: exe, Dir: dir})
	s.ok(err)
	s.Cleanup(func() {
		if s.Failed() {
			for _, name := range []string{"array.log", "serve.log"} {
				if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
					s.Logf("%s:\n%s", name, b[max(0, len(b)-4000):])
				}
			}
		}
		s.check(s.stage.Close())
	})
	for _, name := range []string{"hv1", "hv2"} {
		l, err := s.stage.Disk(s.ctx, name, "3GiB")
		s.ok(err)
		url := fmt.Sprintf("iscsi://%s@%s/%s/%d", l.User, l.Portal, l.Target, l.Number)
		dev := strings.TrimSpace(s.cleave("lun", "attach", url, "--src-chap-secret-file", s.path("chap.secret"), "--src-initiator", l.Initiator,
			"--writable", "--raw", "--method", "fuse", "-o", "name"))
		s.Cleanup(func() {
			_, err := s.stage.Cleave(context.Background(), "lun", "detach", dev)
			s.check(err)
		})
		s.run("mkfs."+kind, "-q", dev)
		s.ok(os.Mkdir(s.path(name), 0o700))
		s.run("mount", dev, s.path(name))
		s.Cleanup(func() {
			if out, err := exec.Command("umount", s.path(name)).CombinedOutput(); err != nil {
				s.Errorf("umount %s: %v: %s", name, err, out)
			}
		})
	}
}

// boot starts the VMs, under load, and the control plane.
func (s *scene) boot() {
	s.Helper()
	load, err := lab.GuestLoad(s.ctx)
	s.ok(err)
	file := func(volume, name, format, size string) lab.Disk {
		path := s.path(volume, name)
		options := []string{"create", "-q", "-f", format, path, size}
		if format == "vpc" { // else its geometry makes it a little larger
			options = slices.Insert(options, 4, "-o", "force_size=on")
		}
		s.run("qemu-img", options...)
		return lab.Disk{File: path, Format: format}
	}
	for _, v := range []lab.VM{
		{Name: "db", Kind: lab.DB, Disks: []lab.Disk{file("hv1", "db.vhdx", "vhdx", "1G")}},
		{Name: "legacy", Kind: lab.Legacy, Memory: 256, Disks: []lab.Disk{file("hv1", "legacy.vhd", "vpc", "256M")}},
		{Name: "spread", Kind: lab.DB, Layout: lab.Layout{Data: "400M", WAL: "200M"},
			Disks: []lab.Disk{file("hv1", "data.qcow2", "qcow2", "1G"), file("hv2", "wal.raw", "raw", "1G")}},
	} {
		m, err := lab.Boot(s.ctx, v)
		s.ok(err)
		s.vms = append(s.vms, m)
		s.Cleanup(func() { s.check(m.Close()) })
		if v.Kind == lab.DB {
			s.ok(m.StartInserts(s.ctx, load))
		}
	}
	s.ok(s.stage.StartServe(s.ctx, s.vms...))
}

// documented: what the set says of itself.
func (s *scene) documented(set orchestrator.Set) {
	s.Helper()
	if set.State != orchestrator.StateReady {
		s.Fatalf("set is %s: %s", set.State, set.Reason)
	}
	want := map[string]orchestrator.Level{"db": orchestrator.LevelApplication, "spread": orchestrator.LevelApplication, "legacy": orchestrator.LevelCrash}
	for _, v := range set.VMs {
		s.Logf("%s reached %s %s; %q", v.Name, v.Reached, v.Why, v.Evidence)
		if v.Reached != want[v.Name] {
			s.Errorf("%s reached %s: %s", v.Name, v.Reached, v.Why)
		}
	}
	if len(set.Splits) != 2 || set.Splits[0].Group == "" || set.Splits[0].Group != set.Splits[1].Group {
		s.Errorf("splits: %+v", set.Splits)
	}
	disks := 0
	for _, x := range set.Splits {
		for _, d := range x.Disks {
			disks++
			if c := d.Host.Container; c == nil || c.Problem != "" {
				s.Errorf("container of %s/%s: %+v", d.VM, d.Device, c)
			}
		}
		if x.Held > 0 {
			s.Logf("FIGURE hold of the split: %s", x.Held)
		}
	}
	if disks != 4 {
		s.Errorf("%d disks on the splits, want 4", disks)
	}
}

// devices: each disk is a block device of this host, clean and dirty, and its files
// are listed without one.
func (s *scene) devices(set orchestrator.Set) {
	s.Helper()
	if out := s.cleave("lun", "ls", string(set.ID)+"/db/disk1", "vgdata/pgdata:/main"); !strings.Contains(out, "PG_VERSION") {
		s.Errorf("lun ls: %s", out)
	}
	for _, id := range []string{"/db/disk1", "/db/disk1/split", "/legacy/disk1/split"} {
		dev := strings.TrimSpace(s.cleave("lun", "attach", string(set.ID)+id, "--method", "fuse", "-o", "name"))
		out, err := exec.CommandContext(s.ctx, "blkid", "-p", "-s", "TYPE", "-o", "value", dev).CombinedOutput()
		if err != nil || !strings.Contains(string(out), map[bool]string{true: "LVM2_member", false: "ext4"}[strings.Contains(id, "db")]) {
			s.Errorf("%s at %s: %s, %v", id, dev, out, err)
		}
		s.cleave("lun", "detach", dev)
	}
}

// containers copies the containers out of the dirty splits and has QEMU look at
// them: whole, and of the very content that the dirty LUNs have.
func (s *scene) containers(set orchestrator.Set) {
	s.Helper()
	set, err := s.stage.Set(s.ctx, "snapshot", "expose", string(set.ID), "--dirty", "--to", stage.ProofInitiator)
	s.ok(err)
	for _, x := range set.Splits {
		i := slices.IndexFunc(set.LUNs, func(l orchestrator.LUN) bool { return l.Split == x.ID && !l.Hosted })
		l := s.stage.LUN(set.LUNs[i])
		secret := s.path("proof.secret")
		s.ok(os.WriteFile(secret, []byte(l.Secret), 0o600))
		url := fmt.Sprintf("iscsi://%s@%s/%s/%d", l.User, l.Portal, l.Target, l.Number)
		for _, d := range x.Disks {
			out := s.path("copy-" + d.VM + "-" + d.Device)
			s.cleave("lun", "cp", url, "disk:"+d.Host.Path, out, "--src-chap-secret-file", secret, "--src-initiator", l.Initiator)
			format := map[string]string{"vhd": "vpc"}[d.Host.Format]
			if format == "" {
				format = d.Host.Format
			}
			switch format {
			case "qcow2":
				// A running QEMU's refcounts may be ahead of its tables: leaks, which lose nothing.
				s.run("qemu-img", "check", "-q", "-r", "leaks", "-f", format, out)
				s.run("qemu-img", "check", "-q", "-f", format, out)
			case "vhdx":
				s.run("qemu-img", "check", "-q", "-r", "all", "-f", format, out) // replays its log
				s.run("qemu-img", "check", "-q", "-f", format, out)
			}
			k := slices.IndexFunc(set.LUNs, func(l orchestrator.LUN) bool {
				return l.Name == fmt.Sprintf("%s/%s/%s/split", set.ID, d.VM, d.Device)
			})
			s.run("qemu-img", "compare", "-q", "-f", format, "-F", "raw", out, fmt.Sprintf("nbd+unix:///%s?socket=%s", set.LUNs[k].Export, set.LUNs[k].Socket))
			s.ok(os.Remove(out))
		}
	}
}

// recovered boots a VM on the LUNs: both clusters start with all that was
// committed, and what legacy has holds together.
func (s *scene) recovered(set orchestrator.Set) {
	s.Helper()
	set, err := s.stage.Set(s.ctx, "snapshot", "expose", string(set.ID), "--writable", "--to", stage.ProofInitiator)
	s.ok(err)
	find := func(name string) lab.LUN {
		i := slices.IndexFunc(set.LUNs, func(l orchestrator.LUN) bool { return l.Name == string(set.ID)+name })
		if i < 0 || set.LUNs[i].IQN == "" {
			s.Fatalf("LUN %s is not served: %+v", name, set.LUNs)
		}
		return s.stage.LUN(set.LUNs[i])
	}
	var disks []lab.Disk
	for _, name := range []string{"/db/disk1", "/spread/disk1", "/spread/disk2", "/legacy/disk1/split"} {
		l := find(name)
		disks = append(disks, lab.Disk{LUN: &l, Scratch: strings.HasSuffix(name, "/split")})
	}
	proof, err := lab.Boot(s.ctx, lab.VM{Name: "proof", Kind: lab.Proof, Disks: disks})
	s.ok(err)
	defer func() { s.check(proof.Close()) }()
	for vm, disk := range map[int]string{0: "/dev/vda", 2: "/dev/vd[bc]"} {
		m := s.vms[vm]
		v := set.VMs[slices.IndexFunc(set.VMs, func(v orchestrator.VMResult) bool { return v.Name == m.Name() })]
		label := ""
		for _, w := range v.Writers {
			label = w.Label
		}
		s.ok(proof.StartCluster(s.ctx, disk, label))
		n, err := proof.Numbers(s.ctx)
		s.ok(err)
		record, err := lab.ReadRecord(m.Record())
		s.ok(err)
		began, ended := window(v)
		s.check(n.Check(record, began, ended))
		s.check(proof.CheckCluster(s.ctx))
		s.check(proof.StopCluster(s.ctx, disk))
		s.Logf("FIGURE commits of %s recovered: %d", m.Name(), n.Count)
	}
	out, err := proof.Run(s.ctx, `mkdir -p /mnt/l && mount -t ext4 /dev/vdd /mnt/l && awk '$1 != NR { exit 1 } END { print NR }' /mnt/l/lines && umount /mnt/l && e2fsck -fn /dev/vdd >/dev/null 2>&1`)
	s.ok(err)
	s.Logf("FIGURE lines of legacy: %s", strings.TrimSpace(out.Stdout))
}

// window is from when the first of a VM's snapshots was asked for to when the last
// was complete.
func window(v orchestrator.VMResult) (began, ended time.Time) {
	for _, x := range v.Volumes {
		if x.Snapshot == "" {
			continue
		}
		if began.IsZero() || x.Began.Before(began) {
			began = x.Began
		}
		if x.Ended.After(ended) {
			ended = x.Ended
		}
	}
	return began, ended
}

// nothingLeft: in the guests, on the array, at the target, among the processes; and
// the VMs saw no error.
func (s *scene) nothingLeft() {
	s.Helper()
	volumes, err := s.stage.Volumes(s.ctx)
	s.ok(err)
	for _, v := range volumes {
		if len(v.Snapshots) > 0 {
			s.Errorf("volume %s still has splits %q", v.Name, v.Snapshots)
		}
	}
	seen, err := s.stage.Seen(s.ctx, stage.ProofInitiator)
	if err != nil || len(seen) > 0 {
		s.Errorf("still exposed: %q, %v", seen, err)
	}
	if p := s.stage.Workers(); len(p) > 0 {
		s.Errorf("still running: %q", p)
	}
	for _, m := range s.vms {
		out, err := m.Run(s.ctx, `dmesg | grep -iE 'I/O error|aborted journal|remount.*read-only' || :; lvs --noheadings -o lv_name -S 'lv_name=~^cleave-' 2>/dev/null || :`)
		if err != nil || strings.TrimSpace(out.Stdout) != "" {
			s.Errorf("%s: %q, %v", m.Name(), out.Stdout, err)
		}
	}
}
