package recovery_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// tool skips the test where a foreign tool is missing; `make deps` installs it.
func tool(t *testing.T, name, debian string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		p = "/usr/sbin/" + name
		if _, err := os.Stat(p); err != nil {
			t.Skipf("needs %s from the Debian package %s", name, debian)
		}
	}
	return p
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		var ee *exec.ExitError
		errors.As(err, &ee)
		msg := ""
		if ee != nil {
			msg = string(ee.Stderr)
		}
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, msg)
	}
	return string(out)
}

// TestHostLVMReadsTheView gives the view, written to files, to LVM's own tools:
// they must find one consistent volume group without snapshots, and where they
// say that the origin's extents are, the snapshot's bytes must be.
func TestHostLVMReadsTheView(t *testing.T) {
	vgs, lvs, losetup := tool(t, "vgs", "lvm2"), tool(t, "lvs", "lvm2"), tool(t, "losetup", "mount")
	for _, tc := range []struct {
		images []string
		pick   []string
		vg     string
		volume string
		sum    string
		lvs    string
	}{
		{[]string{"lvm-o1-thick-4k"}, nil, "vgo1", "root", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f", "root"},
		{[]string{"lvm-o5-wrap"}, nil, "vgo1", "root", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f", "root"},
		{[]string{"lvm-o2-thick-gpt-crash"}, []string{"vgo2/snap2"}, "vgo2", "data", "d85dd205b2e651c526f42e8676d06631f56ca8432a0a561df48dc87bd6554a02", "data gap"},
		{[]string{"lvm-o4-a", "lvm-o4-b"}, []string{"vgo4/good"}, "vgo4", "str", "", "str"},
	} {
		t.Run(tc.images[0], func(t *testing.T) {
			v := openView(t, probe(t, images(t, tc.images...)...), tc.pick...)
			var loops []string
			for _, d := range v.Devices {
				loops = append(loops, loop(t, losetup, materialise(t, d), pvStart[tc.images[0]]))
			}
			config := lvmConfig(loops)
			row := lvmReport(t, "vg", run(t, vgs, "--config", config, "--reportformat", "json", "--units", "b", "--nosuffix",
				"-o", "vg_name,vg_seqno,snap_count,vg_missing_pv_count,vg_free,vg_extent_size,vg_mda_count,vg_mda_used_count", tc.vg))[0]
			if row["snap_count"] != "0" || row["vg_missing_pv_count"] != "0" {
				t.Errorf("vgs: %v", row)
			}
			segs := lvmReport(t, "seg", run(t, lvs, "--config", config, "--reportformat", "json", "--segments", "--all", "--units", "b", "--nosuffix",
				"-o", "lv_name,segtype,seg_start,seg_size,seg_pe_ranges,seg_start_pe,vg_extent_size", tc.vg))
			names := map[string]bool{}
			var listed []string
			h := sha256.New()
			for _, s := range segs {
				if !names[s["lv_name"]] {
					names[s["lv_name"]] = true
					listed = append(listed, s["lv_name"])
				}
				if s["lv_name"] == tc.volume && tc.sum != "" {
					h.Write(extents(t, v.Devices[0], tc.images[0], loops[0], s))
				}
			}
			if got := strings.Join(listed, " "); got != tc.lvs {
				t.Errorf("lvs lists %q, want %q", got, tc.lvs)
			}
			if got := hex.EncodeToString(h.Sum(nil)); tc.sum != "" && got != tc.sum {
				t.Errorf("the extents that lvs names for %s hold %s, want the snapshot %s", tc.volume, got, tc.sum)
			}
		})
	}
}

// lvmConfig has LVM's tools see these devices and nothing else of the host.
func lvmConfig(loops []string) string {
	return `devices { filter=["a|^` + strings.Join(loops, `$|","a|^`) + `$|","r|.*|"] use_devicesfile=0 dir="/dev" scan=["/dev"] obtain_device_list_from_udev=0 scan_lvs=0 hints="none" } global { use_lvmpolld=0 locking_type=1 } backup { backup=0 archive=0 } activation { udev_sync=0 udev_rules=0 monitoring=0 }`
}

// pvStart is where the PV begins on the disk: that of o2 is its second
// partition, for which loop devices have no node in a container.
var pvStart = map[string]int64{"lvm-o2-thick-gpt-crash": 5 << 20}

// peStart is where the first extent of all these PVs begins.
const peStart = 1 << 20

// extents reads a segment where lvs says that it lies: "/dev/loop0:0-39".
func extents(t *testing.T, d lun.Device, image, dev string, seg map[string]string) []byte {
	t.Helper()
	_, ranges, _ := strings.Cut(seg["seg_pe_ranges"], ":")
	from, to, ok := strings.Cut(ranges, "-")
	first, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	size, err3 := strconv.ParseInt(seg["vg_extent_size"], 10, 64)
	if err := errors.Join(err1, err2, err3); !ok || err != nil {
		t.Fatalf("seg_pe_ranges %q of %s: %v", seg["seg_pe_ranges"], dev, err)
	}
	b := make([]byte, (last-first+1)*size)
	if _, err := d.ReadAt(b, pvStart[image]+peStart+first*size); err != nil {
		t.Fatal(err)
	}
	return b
}

func lvmReport(t *testing.T, kind, out string) []map[string]string {
	t.Helper()
	var doc struct {
		Report []map[string][]map[string]string `json:"report"`
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(doc.Report) == 0 || len(doc.Report[0][kind]) == 0 {
		t.Fatalf("LVM reports nothing: %s", out)
	}
	return doc.Report[0][kind]
}

func materialise(t *testing.T, d lun.Device) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "view.img")
	if err := recovery.Copy(context.Background(), d, path, nil); err != nil {
		t.Fatal(err)
	}
	return path
}

// loop attaches a file from byte off on, read-only.
func loop(t *testing.T, losetup, path string, off int64) string {
	t.Helper()
	return attach(t, losetup, "--read-only", "--offset", strconv.FormatInt(off, 10), path)
}

// attach attaches a file as losetup's arguments say, which it ends.
func attach(t *testing.T, losetup string, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to attach loop devices for LVM's tools")
	}
	out, err := exec.Command(losetup, append([]string{"--find", "--show"}, args...)...).CombinedOutput()
	if err != nil {
		t.Skipf("needs loop devices for LVM's tools: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command(losetup, "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// TestPvckFindsNothingWrong lets pvck check labels, headers and checksums of
// the view, as plain files.
func TestPvckFindsNothingWrong(t *testing.T) {
	pvck := tool(t, "pvck", "lvm2")
	for _, image := range []string{"lvm-o1-thick-4k", "lvm-o5-wrap"} {
		v := openView(t, probe(t, images(t, image)...))
		path := materialise(t, v.Devices[0])
		out, err := exec.Command(pvck, "--dump", "headers", path).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("CHECK")) {
			t.Errorf("pvck --dump headers of %s: %v\n%s", image, err, out)
		}
		text := run(t, pvck, "--dump", "metadata", path)
		if !strings.Contains(text, "seqno = 5") || strings.Contains(text, "cow_store") {
			t.Errorf("pvck --dump metadata of %s:\n%s", image, text)
		}
	}
}

// TestFileSystemOfTheViewIsClean: the snapshot was taken of a frozen ext4, so
// e2fsck has nothing to do on the recovered volume, not even a journal to
// replay; the dirty split's has one where the guest was powered off.
func TestFileSystemOfTheViewIsClean(t *testing.T) {
	e2fsck := tool(t, "e2fsck", "e2fsprogs")
	for _, tc := range []struct{ image, pick, volume string }{
		{"lvm-o1-thick-4k", "vgo1/snap", "vgo1/root"}, {"lvm-o3-thin", "vgo3/tsnap", "vgo3/tvol"}, {"lvm-o2-thick-gpt-crash", "vgo2/snap1", "vgo2/data"}, {"lvm-o2-thick-gpt-crash", "vgo2/snap2", "vgo2/data"},
	} {
		v := openView(t, probe(t, images(t, tc.image)...), tc.pick)
		vol, err := probe(t, open.Source{Name: "view", Device: v.Devices[0]}).Volume(tc.volume)
		if err != nil {
			t.Fatal(err)
		}
		d, err := vol.Open()
		if err != nil {
			t.Fatal(err)
		}
		out := run(t, e2fsck, "-fn", materialise(t, d))
		t.Logf("%s: %s", tc.pick, strings.TrimSpace(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]))
	}
}
