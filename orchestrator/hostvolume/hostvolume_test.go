package hostvolume

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree makes a sysfs of files, and of links where the content begins with "->".
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(filepath.Join(root, to), path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestDescend: partitions, multipath maps and logical volumes, as sysfs shows
// them, come down to their disks.
func TestDescend(t *testing.T) {
	vg, lv := strings.Repeat("V", 32), "L"+strings.Repeat("v", 31)
	sys := tree(t, map[string]string{
		"devices/sda/device/wwid":     "naa.600140500000000000000000000000aa\n",
		"devices/sda/device/vpd_pg80": "\x00\x80\x00\x04ABCD",
		"devices/sda/sda2/partition":  "2\n",
		"devices/sdb/device/wwid":     "t10.ATA nothing for an array\n",
		"devices/vdb/serial":          "SN-1\n",
		"devices/dm-0/dm/uuid":        "mpath-3600140500000000000000000000000bb\n",
		"devices/dm-1/dm/uuid":        "part3-mpath-3600140500000000000000000000000bb\n",
		"devices/dm-1/slaves/dm-0":    "->devices/dm-0",
		"devices/dm-2/dm/uuid":        "LVM-" + vg + lv + "\n",
		"devices/dm-2/slaves/sda2":    "->devices/sda/sda2",
		"devices/dm-2/slaves/dm-3":    "->devices/dm-3",
		"devices/dm-3/dm/uuid":        "LVM-" + vg + strings.Repeat("h", 32) + "-cow\n",
		"devices/dm-3/slaves/dm-1":    "->devices/dm-1",
		"devices/dm-4/dm/uuid":        "CRYPT-LUKS2-x\n",
		"devices/md0/md/level":        "raid1\n",
		"devices/loop7/loop/backing":  "x\n",
		"dev/block/8:0":               "->devices/sda",
		"dev/block/8:2":               "->devices/sda/sda2",
		"dev/block/252:1":             "->devices/vdb",
		"dev/block/254:0":             "->devices/dm-0",
		"dev/block/254:1":             "->devices/dm-1",
		"dev/block/254:2":             "->devices/dm-2",
		"dev/block/254:3":             "->devices/dm-3",
		"dev/block/254:4":             "->devices/dm-4",
		"dev/block/9:0":               "->devices/md0",
		"dev/block/7:7":               "->devices/loop7",
	})
	a := Device{Path: "/dev/sda", NAA: "naa.600140500000000000000000000000aa", Serial: "ABCD"}
	b := Device{Path: "/dev/dm-0", NAA: "naa.600140500000000000000000000000bb"}
	h := &Host{sys: sys, attached: func(dev string) string {
		if dev == "/dev/loop7" {
			return "naa.3000000000000001"
		}
		return ""
	}}
	for _, x := range []struct {
		major, minor uint32
		volume       string
		devices      []Device
		err          string
	}{
		{8, 0, "disk", []Device{a}, ""},
		{8, 2, "p2", []Device{a}, ""},
		{252, 1, "disk", []Device{{Path: "/dev/vdb", Serial: "SN-1"}}, ""},
		{254, 0, "disk", []Device{b}, ""},
		{254, 1, "p3", []Device{b}, ""},
		{254, 2, lv, []Device{b, a}, ""},
		{7, 7, "disk", []Device{{Path: "/dev/loop7", NAA: "naa.3000000000000001"}}, ""},
		{254, 3, "", nil, "part of a logical volume"},
		{254, 4, "", nil, "not known here"},
		{9, 0, "", nil, "software RAID"},
		{1, 1, "", nil, ErrNone.Error()},
	} {
		var u Under
		err := h.descend(&u, x.major, x.minor)
		switch {
		case x.err != "" && (err == nil || !strings.Contains(err.Error(), x.err)):
			t.Errorf("%d:%d: %v, want %q", x.major, x.minor, err, x.err)
		case x.err == "" && (err != nil || u.Volume != x.volume || !slices.Equal(u.Devices, x.devices)):
			t.Errorf("%d:%d: %+v, %v", x.major, x.minor, u, err)
		}
	}
}

func TestMountOf(t *testing.T) {
	proc := tree(t, map[string]string{"self/mountinfo": `21 1 8:1 / / rw - ext4 /dev/sda1 rw
30 21 8:2 / /srv/my\040vms rw shared:1 - ext4 /dev/sda2 rw
31 21 8:2 /deep/er /srv/bind rw - ext3 /dev/sda2 rw
32 21 0:40 / /tmp rw - tmpfs tmpfs rw
33 21 8:3 / /b rw - btrfs /dev/sda3 rw
34 21 8:4 / /x rw - btrfs /dev/sda4 rw
nonsense
`})
	h := &Host{proc: proc}
	for _, x := range []struct {
		path         string
		major, minor uint64
		at, inside   string
		err          bool
	}{
		{"/a/vm.img", 8, 1, "/", "/a/vm.img", false},
		{"/srv/my vms/x/vm.img", 8, 2, "/srv/my vms", "/x/vm.img", false},
		{"/srv/bind/vm.img", 8, 2, "/srv/bind", "/deep/er/vm.img", false},
		{"/srv/binding/vm.img", 8, 2, "", "", true},
		{"/b/vm.img", 8, 3, "", "", true},
		{"/x/vm.img", 8, 4, "", "", true},
		{"/c/vm.img", 0, 99, "", "", true},
	} {
		m, err := h.mountOf(x.path, x.major<<8|x.minor)
		if (err != nil) != x.err || err == nil && (m.at != x.at || m.inside(x.path) != x.inside) {
			t.Errorf("%s: %+v, %v", x.path, m, err)
		}
	}
}

// TestMounted: a file on a loop device that is really mounted.
func TestMounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "at")
	for _, c := range []string{"truncate -s 64M " + image, "mkfs.ext4 -q " + image, "mkdir " + at, "mount -o loop " + image + " " + at, "mkdir " + at + "/vms"} {
		w := strings.Fields(c)
		if out, err := exec.Command(w[0], w[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%s: %v\n%s", c, err, out)
		}
		if w[0] == "mount" {
			t.Cleanup(func() {
				if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
					t.Errorf("umount: %v\n%s", err, out)
				}
			})
		}
	}
	file := filepath.Join(at, "vms", "vm.img")
	if err := os.WriteFile(file, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	asked := ""
	h := New(func(dev string) string { asked = dev; return "naa.3000000000000002" })
	u, err := h.Under(t.Context(), link)
	if err != nil {
		t.Fatal(err)
	}
	if u.Path != "/vms/vm.img" || u.FS != "ext4" || u.Mount != at || u.Volume != "disk" || len(u.Devices) != 1 ||
		u.Devices[0].NAA != "naa.3000000000000002" || !strings.HasPrefix(asked, "/dev/loop") || asked != u.Devices[0].Path {
		t.Errorf("%+v, asked for %q", u, asked)
	}
	if err := h.Flush(t.Context(), file); err != nil {
		t.Error(err)
	}
	if u, err := h.Under(t.Context(), asked); err != nil || u.Path != "" || u.Volume != "disk" {
		t.Errorf("%s: %+v, %v", asked, u, err)
	}
	for _, p := range []string{"/none/at/all", "relative", "/dev/null"} {
		if _, err := h.Under(t.Context(), p); !errors.Is(err, ErrNone) {
			t.Errorf("%s: %v", p, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Flush(ctx, "/none"); err == nil {
		t.Error("flushing nothing was success")
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw`)
	f.Fuzz(func(t *testing.T, s string) { parseMount(s) })
}
