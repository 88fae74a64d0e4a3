//go:build lab

package initiators

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/integration/stage"
	"github.com/cleave-san/cleave/integration/toxiproxy"
)

// host is a VM whose kernel is the initiator, and the array that it logs in to.
type host struct {
	*testing.T
	ctx   context.Context
	stage *stage.Stage
	vm    *lab.Machine
}

// modules of the VM: the kernel's initiator, and what multipath stands on.
// With target_core_pscsi and iscsi_target_mod it passes LUNs on (LIO).
var modules = []string{
	"iscsi_tcp", "sg", "dm-multipath", "dm-round-robin", "dm-service-time", "scsi_dh_alua",
	"target_core_pscsi", "iscsi_target_mod",
}

// newArray starts an array with so many portals.
func newArray(t *testing.T, portals int) (context.Context, *stage.Stage) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "cleave-ini-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe := filepath.Join(dir, "cleave")
	build := exec.CommandContext(ctx, "go", "build", "-o", exe, "github.com/cleave-san/cleave/plugin/cmd/cleave")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	s, err := stage.New(ctx, stage.Options{Exe: exe, Dir: dir, Portals: portals})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return ctx, s
}

// newHost boots a VM with udev, iscsid and multipathd, which know nobody yet.
func newHost(ctx context.Context, t *testing.T, s *stage.Stage, disks ...lab.Disk) *host {
	t.Helper()
	vm, err := lab.Boot(ctx, lab.VM{Name: "host", Kind: lab.Proof, Modules: modules, CPUs: 2, Disks: disks, Forward: []int{lioPort, tgtdPort}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := vm.Run(context.Background(), "dmesg | tail -n 60; multipath -ll; tail -n 30 /run/fio.*.log")
			t.Logf("the host's last words:\n%s\n%s", out.Stdout, out.Stderr)
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	h := &host{T: t, ctx: ctx, stage: s, vm: vm}
	t.Logf("PEER linux %s", strings.TrimSpace(h.run("uname -r")))
	user, secret := s.Account()
	h.run(fmt.Sprintf(`set -e
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add
udevadm settle -t 60
echo InitiatorName=%s >/etc/iscsi/initiatorname.iscsi
umask 077
cat >/etc/iscsi/iscsid.conf <<END
node.startup = manual
node.session.auth.authmethod = CHAP
node.session.auth.username = %s
node.session.auth.password = %s
node.conn[0].timeo.login_timeout = 10
node.conn[0].timeo.noop_out_interval = 3
node.conn[0].timeo.noop_out_timeout = 3
node.conn[0].iscsi.HeaderDigest = CRC32C,None
END
mkdir -p /run/lock/iscsi
iscsid
cat >/etc/multipath.conf <<END
defaults {
	user_friendly_names yes
	find_multipaths no
	polling_interval 2
	no_path_retry 60
	path_checker tur
}
blacklist {
	devnode "^vd"
}
END
multipathd`, stage.Initiator, user, secret))
	return h
}

// run runs a script on the host, and wants it to succeed.
func (h *host) run(script string) string {
	h.Helper()
	out, err := h.vm.Run(h.ctx, script)
	if err != nil {
		h.Fatalf("on the host: %v\n%s%s", err, out.Stdout, out.Stderr)
	}
	return out.Stdout
}

// try is run for what may fail.
func (h *host) try(script string) error {
	out, err := h.vm.Run(h.ctx, script)
	if err != nil {
		return fmt.Errorf("%w: %s%s", err, out.Stdout, out.Stderr)
	}
	return nil
}

// cleave runs a command on the array's side.
func (h *host) cleave(args ...string) string {
	h.Helper()
	out, err := h.stage.Cleave(h.ctx, args...)
	if err != nil {
		h.Fatal(err)
	}
	return out
}

// login makes a static record of a portal of the machine that the VM runs on,
// and logs in. Commands wait so many seconds for a connection that is cut.
func (h *host) login(portal string, patience int) {
	h.Helper()
	_, port, err := net.SplitHostPort(portal)
	if err != nil {
		h.Fatal(err)
	}
	h.run(fmt.Sprintf(`set -e
r="iscsiadm -m node -T %[1]s -p 10.0.2.2:%[2]s"
$r -o new
$r -o update -n node.session.timeo.replacement_timeout -v %[3]d
$r -l
udevadm settle -t 60`, h.stage.Target(), port, patience))
}

// paths wants the map's paths to be in a state so many times.
func (h *host) paths(state string, n int) {
	h.Helper()
	eventually(h.T, 2*time.Minute, fmt.Sprintf("%d paths are %s", n, state), func() error {
		return h.try(fmt.Sprintf(`multipathd show paths format "%%d %%t %%o" >/run/paths; [ $(grep -c -w %s /run/paths) = %d ] || { cat /run/paths; false; }`, state, n))
	})
}

// fio is a job that writes and verifies, in the background.
type fio struct {
	*host
	name, device string // below /dev
}

// startFio begins a job on a file or device, until ends; device is where its
// writes show.
func (h *host) startFio(name, target, device string) *fio {
	h.Helper()
	h.run(fmt.Sprintf(`cd /run
fio --name=%[1]s --filename=%[2]s --size=64m --rw=randrw --bsrange=4k-256k --blockalign=4k --ioengine=libaio --iodepth=8 --direct=1 \
	--verify=crc32c --verify_backlog=64 --verify_fatal=1 --time_based --runtime=100000 --randseed=%[3]d >/run/fio.%[1]s.log 2>&1 &
echo $! >/run/fio.%[1]s.pid`, name, target, time.Now().UnixNano()%1e6))
	return &fio{h, name, device}
}

// goesOn wants more to be written.
func (f *fio) goesOn() {
	f.Helper()
	sectors := "awk '{print $7}' /sys/block/" + f.device + "/stat"
	before := f.run(sectors)
	eventually(f.T, 3*time.Minute, "fio goes on", func() error {
		if err := f.alive(); err != nil {
			f.Fatal(err)
		}
		if f.run(sectors) == before {
			return fmt.Errorf("sectors written: %s", before)
		}
		return nil
	})
}

func (f *fio) alive() error {
	return f.try(fmt.Sprintf("kill -0 $(cat /run/fio.%[1]s.pid) || { cat /run/fio.%[1]s.log; false; }", f.name))
}

// ends has the job come to its end, and wants it to be a good one.
func (f *fio) ends() {
	f.Helper()
	f.run(fmt.Sprintf("kill -INT $(cat /run/fio.%s.pid)", f.name))
	eventually(f.T, 20*time.Minute, "fio ends", func() error {
		if f.alive() == nil {
			return fmt.Errorf("%s runs", f.name)
		}
		return nil
	})
	f.run(fmt.Sprintf(`grep -q "err= 0" /run/fio.%[1]s.log || { cat /run/fio.%[1]s.log; false; }`, f.name))
	f.Logf("fio %s: %s", f.name, f.run(fmt.Sprintf("grep -E 'read:|write:' /run/fio.%s.log", f.name)))
}

// nothingLeft wants no SCSI disk, map, session or kernel complaint.
func (h *host) nothingLeft() {
	h.Helper()
	h.run(`set -e
udevadm settle -t 60
[ -z "$(ls /sys/class/iscsi_session 2>/dev/null)" ] || { echo sessions; ls /sys/class/iscsi_session; false; }
[ -z "$(ls /sys/class/scsi_disk 2>/dev/null)" ] || { echo disks; ls /sys/class/scsi_disk; false; }
[ "$(dmsetup ls)" = "No devices found" ] || { dmsetup ls; false; }
! ls /dev/disk/by-id/ 2>/dev/null | grep -i cleave
! dmesg | grep -E 'BUG|Oops|hung task|Buffer I/O error on dev dm'`)
}

// TestKernelMultipath is the life of a LUN on a Linux host: two portals, one
// map; ext4 and fio on it; a path cut and back; the array killed and back; the
// volume grown; everything taken down in order.
func TestKernelMultipath(t *testing.T) {
	ctx, s := newArray(t, 2)
	h := newHost(ctx, t, s)
	tp := toxiproxy.Start(t)
	second := tp.Proxy("second", s.Portals()[1])
	if _, err := s.Disk(ctx, "data", "256MiB"); err != nil {
		t.Fatal(err)
	}
	h.login(s.Portals()[0], 5)
	h.login(second, 5)
	eventually(t, time.Minute, "the map is there", func() error { return h.try("test -b /dev/mapper/mpatha") })
	h.paths("active", 2)
	t.Logf("%s", h.run("multipath -ll"))
	h.run("set -e; mkfs.ext4 -q /dev/mapper/mpatha; mkdir -p /mnt/x; mount /dev/mapper/mpatha /mnt/x")
	dm := strings.TrimSpace(h.run("basename $(readlink -f /dev/mapper/mpatha)"))
	load := h.startFio("map", "/mnt/x/file", dm)
	load.goesOn()

	tp.Enable("second", false)
	h.paths("failed", 1)
	load.goesOn()
	tp.Enable("second", true)
	h.paths("active", 2)

	h.stage.KillArray()
	if err := h.stage.StartArray(h.ctx); err != nil {
		t.Fatal(err)
	}
	h.paths("active", 2)
	load.goesOn()

	h.cleave("volume", "resize", "data", "--size", "320MiB")
	h.run("set -e; iscsiadm -m session --rescan >/dev/null; multipathd resize map mpatha")
	if size := strings.TrimSpace(h.run("blockdev --getsize64 /dev/mapper/mpatha")); size != fmt.Sprint(320<<20) {
		t.Errorf("the map has %s bytes after the volume grew to %d", size, 320<<20)
	}
	h.run("resize2fs /dev/mapper/mpatha")
	load.ends()
	h.run(`set -e
umount /mnt/x
e2fsck -fn /dev/mapper/mpatha
multipath -f mpatha
iscsiadm -m node -u
iscsiadm -m node -o delete`)
	h.nothingLeft()
	h.cleave("volume", "unexpose", "data")
}
