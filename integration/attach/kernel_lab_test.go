//go:build lab

package attach

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/integration/stage"
)

// machine is a VM with a full kernel, udev, iscsid and multipathd, LVM that takes
// volume groups up when their disks come, and an array that it may log in to.
type machine struct {
	*testing.T
	ctx   context.Context
	stage *stage.Stage
	vm    *lab.Machine
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	t.Cleanup(cancel)
	dir, exe := build(t)
	s, err := stage.New(ctx, stage.Options{Exe: exe, Dir: dir, Portals: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	vm, err := lab.Boot(ctx, lab.VM{Name: "attach", Kind: lab.Proof, CPUs: 2, Modules: []string{
		"iscsi_tcp", "sg", "dm-multipath", "dm-round-robin", "dm-service-time", "scsi_dh_alua", "nbd", "loop", "fuse",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := vm.Run(context.Background(), "dmesg | tail -n 40; multipath -ll; cat /run/cleave/attach/*.log; ls -lR /run/cleave /var/lib/cleave/attach")
			t.Logf("the machine's last words:\n%s\n%s", out.Stdout, out.Stderr)
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	m := &machine{t, ctx, s, vm}
	t.Logf("PEER linux %s", strings.TrimSpace(m.run("uname -r")))
	_, secret := s.Account()
	m.run(fmt.Sprintf(`set -e
ls -l %[1]s
ln -s %[1]s /usr/bin/cleave
cat >/etc/lvm/lvm.conf <<END
devices { use_devicesfile = 0 }
global { event_activation = 1 }
END
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add
udevadm settle -t 60
echo InitiatorName=%[2]s >/etc/iscsi/initiatorname.iscsi
umask 077
printf %%s %[3]s >/run/secret
cat >/etc/iscsi/iscsid.conf <<END
node.startup = manual
node.conn[0].timeo.login_timeout = 10
node.session.timeo.replacement_timeout = 5
END
mkdir -p /run/lock/iscsi
iscsid
cat >/etc/multipath.conf <<END
defaults {
	user_friendly_names yes
	find_multipaths yes
	polling_interval 2
	path_checker tur
}
blacklist {
	devnode "^vd"
}
END
multipathd
# Whoever looks at the arguments of iscsiadm.
mv /usr/sbin/iscsiadm /usr/sbin/iscsiadm.real
cat >/usr/sbin/iscsiadm <<'END'
#!/bin/sh
echo "$@" >>/run/iscsiadm.args
exec /usr/sbin/iscsiadm.real "$@"
END
chmod 755 /usr/sbin/iscsiadm`, exe, stage.Initiator, secret))
	return m
}

func (m *machine) try(script string) (string, error) {
	out, err := m.vm.Run(m.ctx, script)
	if err != nil {
		return out.Stdout, fmt.Errorf("%w: %s%s", err, out.Stdout, out.Stderr)
	}
	return strings.TrimSpace(out.Stdout), nil
}

func (m *machine) run(script string) string {
	m.Helper()
	out, err := m.try(script)
	if err != nil {
		m.Fatalf("in the machine: %v", err)
	}
	return out
}

// fails wants a script to fail, and to say something.
func (m *machine) fails(script, says string) {
	m.Helper()
	if _, err := m.try(script); err == nil || !strings.Contains(err.Error(), says) {
		m.Errorf("%s: %v, want %q", script, err, says)
	}
}

// nothingLeft wants no trace of an attachment.
func (m *machine) nothingLeft() {
	m.Helper()
	m.run(`set -e
udevadm settle -t 60
[ -z "$(ls /sys/class/iscsi_session 2>/dev/null)" ] || { echo sessions; ls /sys/class/iscsi_session; false; }
[ -z "$(ls /sys/class/scsi_disk 2>/dev/null)" ] || { echo disks; ls /sys/class/scsi_disk; false; }
[ "$(dmsetup ls)" = "No devices found" ] || { dmsetup ls; false; }
[ -z "$(ls /sys/block/nbd*/pid 2>/dev/null)" ] || { echo nbd; false; }
[ -z "$(losetup -a)" ] || { losetup -a; false; }
[ -z "$(find /etc/iscsi/nodes -type f 2>/dev/null)" ] || { find /etc/iscsi/nodes; false; }
[ -z "$(ls /run/cleave/attach/luns 2>/dev/null)" ] || { ls /run/cleave/attach/luns; false; }
! grep fuse.cleave /proc/mounts
! ls /dev/disk/by-id/ 2>/dev/null | grep -i cleave
[ -z "$(ls /var/lib/cleave/attach)" ] || { ls -R /var/lib/cleave/attach; false; }
! dmesg | grep -E 'BUG|Oops|hung task'`)
	eventually(m.T, time.Minute, "no process is left", func() error {
		_, err := m.try("! pgrep -a -f attach-helper")
		return err
	})
}

// usable makes a volume group and a file system on a device, has it verified, and
// leaves the volume group there to be taken up by whoever looks.
func (m *machine) usable(dev string) {
	m.Helper()
	m.run(fmt.Sprintf(`set -e
mkfs.ext4 -q -F %[1]s
mkdir -p /mnt/x
mount %[1]s /mnt/x
fio --name=v --filename=/mnt/x/file --size=16m --rw=randrw --bsrange=4k-64k --blockalign=4k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --verify_backlog=64 --verify_fatal=1 >/run/fio.log 2>&1 || { cat /run/fio.log; false; }`, dev))
	m.fails("cleave lun detach "+dev, "/mnt/x")
	m.run(fmt.Sprintf(`set -e
umount /mnt/x
e2fsck -fn %[1]s
wipefs -q -a %[1]s
only="devices { global_filter=[\"a|^%[1]s\$|\",\"r|.*|\"] }"
pvcreate -q --config "$only" -y %[1]s
vgcreate -q --config "$only" vgx %[1]s
lvcreate -q --config "$only" -y -an -Zn -L 8M -n lvx vgx
udevadm settle -t 60`, dev))
}

// leftAlone wants nobody to have taken a device up.
func (m *machine) leftAlone(dev string) {
	m.Helper()
	m.run(fmt.Sprintf(`set -e
udevadm settle -t 60
udevadm info -q property %[1]s >/run/props
grep UDISKS_IGNORE=1 /run/props
! dmsetup ls | grep vg
b=$(basename $(readlink -f %[1]s))
[ -z "$(ls /sys/block/$b/holders)" ] || { ls /sys/block/$b/holders; false; }`, dev))
}

// rules installs our rules for udev. Before that, the host takes up what is on
// an attached device: so leftAlone can fail.
func (m *machine) rules() {
	m.Helper()
	m.run("truncate -s 128M /run/taken.img")
	attach := "cleave lun attach /run/taken.img --writable --method fuse -o name"
	dev := m.run(attach)
	m.run("set -e; pvcreate -q -y " + dev + "; vgcreate -q vgtaken " + dev + "; lvcreate -q -y -Wn -L 8M -n lv vgtaken; vgchange -an vgtaken; cleave lun detach " + dev)
	dev = m.run(attach)
	eventually(m.T, time.Minute, "LVM takes its volume group up where our rules are missing", func() error {
		_, err := m.try("dmsetup ls | grep vgtaken")
		return err
	})
	m.fails("cleave lun detach "+dev, "vgtaken")
	m.run(`set -e
vgchange -an vgtaken
cleave lun detach ` + dev + `
cleave lun udev-rules >/etc/udev/rules.d/59-cleave-attach.rules
udevadm control --reload`)
	dev = m.run(attach)
	m.leftAlone(dev)
	m.run("cleave lun detach " + dev)
	m.nothingLeft()
}

// TestMethods is each method's life on a full kernel.
func TestMethods(t *testing.T) {
	m := newMachine(t)
	m.rules()
	m.fails("cleave doctor | grep 'udev rules'; false", "udev rules")
	lun, err := m.stage.Disk(m.ctx, "data", "128MiB")
	if err != nil {
		t.Fatal(err)
	}
	var portals []string
	for _, p := range m.stage.Portals() {
		_, port, err := net.SplitHostPort(p)
		if err != nil {
			t.Fatal(err)
		}
		portals = append(portals, "10.0.2.2:"+port)
	}
	user, _ := m.stage.Account()
	url := fmt.Sprintf("iscsi://%s@%s/%s/%d", user, portals[0], lun.Target, lun.Number)
	const secret = " --src-chap-secret-file /run/secret"

	for _, method := range []string{"nbd", "fuse"} {
		t.Logf("by %s", method)
		m.run("truncate -s 128M /run/disk.img")
		dev := m.run("cleave lun attach /run/disk.img --writable -o name --method " + method)
		m.usable(dev)
		m.leftAlone(dev)
		m.run("cleave lun detach " + dev)
		m.nothingLeft()
		dev = m.run("cleave lun attach /run/disk.img -o name --method " + method)
		m.leftAlone(dev)
		m.fails("dd if=/dev/zero of="+dev+" bs=4096 count=1 conv=fdatasync", "")
		// PF_MEMALLOC_NOIO, proc_pid_stat(5) field 9: PR_SET_IO_FLUSHER holds.
		m.run(`for t in /proc/$(pgrep -f '[a]ttach-helper$')/task/*; do [ $(( $(awk '{print $9}' $t/stat) & 0x80000 )) -ne 0 ] || { cat $t/stat; exit 1; }; done`)
		m.run(`kill -9 $(pgrep -f '[a]ttach-helper$')`)
		eventually(t, time.Minute, "reads fail", func() error {
			if _, err := m.try("dd if=" + dev + " of=/dev/null bs=4096 count=1 iflag=direct"); err == nil {
				return fmt.Errorf("it is read")
			}
			return nil
		})
		m.run("cleave lun attached | grep dead")
		m.run("cleave lun detach " + dev)
		m.nothingLeft()
	}

	t.Log("by iscsi, one path")
	dev := m.run("cleave lun attach " + url + secret + " --writable -o name")
	m.run("cleave lun attached | grep iscsi")
	m.usable(dev)
	m.leftAlone(dev)
	m.run("cleave lun detach " + dev)
	m.nothingLeft()

	t.Log("by iscsi, two paths")
	two := "cleave lun attach " + url + secret + " --portal " + portals[1]
	dev = m.run(two + " --writable -o name")
	if !strings.HasPrefix(dev, "/dev/mapper/") {
		t.Errorf("no map, but %s", dev)
	}
	t.Logf("%s", m.run("multipath -ll"))
	m.leftAlone(dev)
	m.usable(dev)
	m.run("cleave lun detach '" + url + "'")
	m.nothingLeft()
	dev = m.run(two + " -o name")
	m.leftAlone(dev)
	m.fails("dd if=/dev/zero of="+dev+" bs=4096 count=1 conv=fdatasync", "")
	m.run("cleave lun detach " + dev)
	m.nothingLeft()

	t.Log("killed on the way")
	for _, after := range []string{"0.3", "0.8", "1.5", "2.5", "4"} {
		t.Logf("after %s s: %s", after, m.run("timeout -s KILL "+after+" "+two+" -o name || true; cleave lun attached"))
		m.run("for id in $(cleave lun attached -o name); do cleave lun detach $id || exit 1; done")
		m.nothingLeft()
	}
	_, word := m.stage.Account()
	m.run("[ -s /run/iscsiadm.args ] && ! grep -F -e '" + word + "' /run/iscsiadm.args")
	m.run("! grep -r -F -e '" + word + "' /var/lib/cleave /run/cleave /etc/iscsi")

	t.Log("a LUN that is not there any more")
	if _, err := m.stage.Cleave(m.ctx, "volume", "unexpose", "data"); err != nil {
		t.Fatal(err)
	}
	m.fails(two, "authentication failed") // it shows nothing to us any more, so we are nobody
	m.nothingLeft()
}
