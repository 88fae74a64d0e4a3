//go:build lab

package initiators

import (
	"strings"
	"testing"
)

// TestTools talks to a LUN by sg3_utils and the block layer's own tools, through
// the kernel's initiator: what administrators use to look at a LUN, and what
// cluster software uses to fence.
func TestTools(t *testing.T) {
	ctx, s := newArray(t, 1)
	if _, err := s.Disk(ctx, "tools", "64MiB"); err != nil {
		t.Fatal(err)
	}
	h := newHost(ctx, t, s)
	h.run("pkill multipathd")
	h.login(s.Portals()[0], 60)
	d := "/dev/" + strings.TrimSpace(h.run("ls /sys/class/scsi_disk/*/device/block | tail -n 1"))
	for _, row := range []struct{ name, script, want string }{
		{"INQUIRY", "sg_inq $D", "CLEAVE"},
		{"designators", "sg_vpd -p di $D", "0x3"},
		{"serial number", "sg_vpd -p sn $D", "Unit serial number"},
		{"extended INQUIRY", "sg_vpd -p ei $D", "extended INQUIRY"},
		{"third party copy", "sg_vpd -p tpc $D", ""},
		{"block limits", "sg_vpd -p bl $D", "Maximum unmap LBA count"},
		{"thin provisioning", "sg_vpd -p lbpv $D", "thin provisioned"},
		{"capacity", "sg_readcap -l $D", "lbpme=1"},
		{"LUNs", "sg_luns $D", "Lun list length"},
		{"operation codes", "sg_opcodes $D", "Extended copy"},
		{"task management functions", "sg_opcodes -t $D", "Abort task"},
		{"mode pages", "sg_modes -a $D", "Caching"},
		{"write cache", "sdparm --get WCE $D 2>/dev/null || sg_modes -p 8 $D", ""},
		{"target port groups", "sg_rtpg -d $D", "active/optimized"},
		{"ready", "sg_turs $D", ""},
		{"sense", "sg_requests $D", ""},
		{"flush", "sg_sync $D", ""},
		{"verify", "sg_verify --lba=0 --count=128 $D", ""},
		{"write same", "sg_write_same --lba=0 --num=64 --in=/dev/urandom --xferlen=512 $D", ""},
		{"compare and write: equal", `dd if=$D bs=512 count=1 of=/run/one status=none iflag=direct
dd if=/dev/urandom bs=512 count=1 of=/run/two status=none
cat /run/one /run/two >/run/both
sg_compare_and_write --in=/run/both --lba=0 --num=1 $D
dd if=$D bs=512 count=1 status=none iflag=direct | cmp - /run/two`, ""},
		{"compare and write: different", "! sg_compare_and_write --in=/run/both --lba=0 --num=1 $D 2>&1", ""},
		{"unmap", "sg_unmap --lba=0 --num=4096 $D && ! dd if=$D bs=2M count=1 iflag=direct status=none | tr -d '\\0' | grep -q .", ""},
		{"LBA status", "sg_get_lba_status --lba=0 $D", "deallocated"},
		{"block discard", "blkdiscard $D", ""},
		{"zeroes", "blkdiscard -z -l 1M $D", ""},
		{"persistent reservations", `sg_persist --out --register --param-sark=0xabc $D
sg_persist --out --reserve --param-rk=0xabc --prout-type=5 $D
sg_persist --in --read-reservation $D
sg_persist --out --release --param-rk=0xabc --prout-type=5 $D
sg_persist --out --clear --param-rk=0xabc $D`, "Write Exclusive, registrants only"},
		{"extended copy", `dd if=/dev/urandom of=$D bs=1M count=1 oflag=direct status=none
sg_xcopy if=$D of=$D skip=0 seek=4096 count=2048 bs=512
dd if=$D bs=1M count=1 iflag=direct status=none >/run/from
dd if=$D bs=1M skip=2 count=1 iflag=direct status=none | cmp - /run/from`, ""},
		{"copy parameters", "sg_copy_results -p $D", "Maximum target descriptor count"},
	} {
		t.Run(row.name, func(t *testing.T) {
			out, err := h.vm.Run(ctx, "set -e\nD="+d+"\n"+row.script)
			if err != nil || !strings.Contains(out.Stdout, row.want) {
				t.Errorf("%v, want %q in:\n%s%s", err, row.want, out.Stdout, out.Stderr)
			}
		})
	}
	h.run("set -e\niscsiadm -m node -u\niscsiadm -m node -o delete")
	h.nothingLeft()
}
