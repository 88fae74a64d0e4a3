//go:build lab

package initiators

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Ports of the VM on which LIO and tgtd serve what they relay.
const (
	lioPort  = 3260
	tgtdPort = 3261
)

// TestRelays has the two other targets of Linux stand on a LUN of ours and pass
// its commands through: LIO by pscsi, tgtd by sg. Both ask a disk more than a
// file system does (its identity, its mode pages, its sense data), and hand what
// it says to their own initiators. What is written through one is read through
// the other, and from the array.
func TestRelays(t *testing.T) {
	ctx, s := newArray(t, 1)
	if _, err := s.Disk(ctx, "relay", "64MiB"); err != nil {
		t.Fatal(err)
	}
	h := newHost(ctx, t, s)
	h.run("pkill multipathd")
	h.login(s.Portals()[0], 60)
	at := strings.TrimSpace(h.run("ls -d /sys/class/scsi_disk/* | sed 's#.*/##' | tail -n 1"))
	var host, channel, target, lun int
	if _, err := fmt.Sscanf(at, "%d:%d:%d:%d", &host, &channel, &target, &lun); err != nil {
		t.Fatalf("%q: %v", at, err)
	}
	const lioIQN, tgtdIQN = "iqn.2026-01.org.example:lio", "iqn.2026-01.org.example:tgtd"
	h.run(fmt.Sprintf(`set -e
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
core=/sys/kernel/config/target/core/pscsi_0/relay
mkdir -p $core
echo "scsi_host_id=%d,scsi_channel_id=%d,scsi_target_id=%d,scsi_lun_id=%d" >$core/control
echo /dev/$(ls /sys/class/scsi_disk/%s/device/block) >$core/udev_path
echo 1 >$core/enable
tpg=/sys/kernel/config/target/iscsi/%s/tpgt_1
mkdir -p $tpg/np/0.0.0.0:%d $tpg/lun/lun_0
ln -s $core $tpg/lun/lun_0/relay
echo 0 >$tpg/attrib/authentication
echo 1 >$tpg/attrib/generate_node_acls
echo 1 >$tpg/attrib/cache_dynamic_acls
echo 0 >$tpg/attrib/demo_mode_write_protect
echo 1 >$tpg/enable`, host, channel, target, lun, at, lioIQN, lioPort))
	h.run(fmt.Sprintf(`tgtd -C 1 --iscsi portal=0.0.0.0:%d
for i in $(seq 50); do tgtadm -C 1 --lld iscsi --mode sys --op show >/dev/null 2>&1 && break; sleep 0.2; done
set -e
a="tgtadm -C 1 --lld iscsi"
$a --mode target --op new --tid 1 --targetname %s
$a --mode logicalunit --op new --tid 1 --lun 1 --bstype sg --device-type pt --backing-store /dev/$(ls /sys/class/scsi_disk/%s/device/scsi_generic)
$a --mode target --op bind --tid 1 --initiator-address ALL`, tgtdPort, tgtdIQN, at))

	lio := fmt.Sprintf("iscsi://%s/%s/0", h.vm.Addr(lioPort), lioIQN)
	tgtd := fmt.Sprintf("iscsi://%s/%s/1", h.vm.Addr(tgtdPort), tgtdIQN)
	for name, url := range map[string]string{"LIO": lio, "tgtd": tgtd} {
		out := command(t, "iscsi-inq", url)
		if !strings.Contains(out, "CLEAVE") {
			t.Errorf("through %s the disk is:\n%s", name, out)
		}
	}
	half := int64(32 << 20)
	for name, w := range map[string]struct {
		url string
		off int64
	}{"LIO": {lio, 0}, "tgtd": {tgtd, half}} {
		t.Log("PEER " + name)
		command(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P %d %d 8M", w.off>>20+1, w.off), "-c", "flush", w.url)
	}
	for name, url := range map[string]string{"LIO": lio, "tgtd": tgtd} {
		out := command(t, "qemu-io", "-f", "raw", "-r", "-c", "read -P 1 0 8M", "-c", fmt.Sprintf("read -P %d %d 8M", half>>20+1, half), url)
		if strings.Contains(out, "verification failed") {
			t.Errorf("through %s: %s", name, out)
		}
	}
	file, err := filepath.Glob(filepath.Join(s.Dir(), "pool-a", "relay", "*.raw"))
	if err != nil || len(file) != 1 {
		t.Fatalf("the volume's file: %v, %v", file, err)
	}
	raw, err := os.ReadFile(file[0])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw[:8<<20], bytes.Repeat([]byte{1}, 8<<20)) ||
		!bytes.Equal(raw[half:half+8<<20], bytes.Repeat([]byte{byte(half>>20 + 1)}, 8<<20)) {
		t.Error("the array has something else than was written through LIO and tgtd")
	}
	h.run(fmt.Sprintf(`pkill -9 tgtd
tpg=/sys/kernel/config/target/iscsi/%s/tpgt_1
set -e
echo 0 >$tpg/enable
rm $tpg/lun/lun_0/relay
rmdir $tpg/lun/lun_0 $tpg/np/* $tpg /sys/kernel/config/target/iscsi/%[1]s /sys/kernel/config/target/core/pscsi_0/relay`, lioIQN))
	eventually(t, time.Minute, "the session ends", func() error { return h.try("iscsiadm -m node -u && iscsiadm -m node -o delete") })
	h.nothingLeft()
}

// command runs a program of the host that the lab runs on.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
