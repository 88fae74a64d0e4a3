package recovery_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// renewing are all kinds of disks with what is put back in them; sums are the
// oracles of the volumes in their places.
var renewing = []struct {
	images []string
	choose []string
	volume string // without its group
	sum    string
}{
	{[]string{"lvm-o1-thick-4k"}, nil, "root", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f"},
	{[]string{"lvm-o5-wrap"}, nil, "root", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f"},
	{[]string{"lvm-o2-thick-gpt-crash"}, []string{"vgo2/snap2"}, "data", "d85dd205b2e651c526f42e8676d06631f56ca8432a0a561df48dc87bd6554a02"},
	{[]string{"lvm-o3-thin"}, nil, "tvol", "d827e7b2a10cdbe4c7c45bcd133c91a2efdc4f1ffeb4dee82f12cac22f8524c7"},
	{[]string{"lvm-o4-a", "lvm-o4-b"}, []string{"vgo4/good"}, "str", "d5b583b019a19187dd4aa6a1b6b42055552eeb29900dbf73ade4ee54ba2bf522"},
	{[]string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, []string{"vgt/s1"}, "vol", "a4f6478dfec8e1a3481629c0cff8201168a5279ee1cfe19fc1d914431fb59bbd"},
	{[]string{"lvm-g2-mirrors-a", "lvm-g2-mirrors-b", "lvm-g2-mirrors-c"}, []string{"vgm/r1", "vgm/m1"}, "r", "4c5edc731d972a631fd01792ba20e089a23c4b714cfae859f74d857d2333af88"},
}

func renewedView(t *testing.T, c *open.Contents, seed string, choose ...string) *recovery.View {
	t.Helper()
	v, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{Snapshots: choose, Dir: t.TempDir(), NewIdentity: seed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// shown is what the view's devices hold, probed.
func shown(t *testing.T, devices []lun.Device) *open.Contents {
	t.Helper()
	var s []open.Source
	for _, d := range devices {
		s = append(s, open.Source{Name: "view", Device: d})
	}
	return probe(t, s...)
}

// identifiers are all that there are on disks, by what they are of.
func identifiers(c *open.Contents) map[string]string {
	out := make(map[string]string)
	for i, d := range c.Disks {
		if d.Table != nil {
			out["disk "+c.DiskName(i)] = d.Table.UUID
			for _, p := range d.Table.Partitions {
				out["partition "+c.PartitionName(i, p.Number)] = p.UUID
			}
		}
		for k, pv := range d.PVs {
			out[fmt.Sprintf("pv %s %d", c.DiskName(i), k)] = pv.UUID
		}
	}
	for i, g := range c.Groups {
		out[fmt.Sprintf("vg %d", i)], out[fmt.Sprintf("vg-name %d", i)] = g.UUID, g.Name
	}
	return out
}

// TestNewIdentity: everything is called otherwise, and is otherwise what the view
// without a new identity is.
func TestNewIdentity(t *testing.T) {
	for _, tc := range renewing {
		t.Run(tc.images[0], func(t *testing.T) {
			c := probe(t, images(t, tc.images...)...)
			v := renewedView(t, c, "one", tc.choose...)
			got, plain := shown(t, v.Devices), shown(t, openView(t, c, tc.choose...).Devices)

			was, is := identifiers(c), identifiers(got)
			told := make(map[string]string)
			for _, id := range v.Identity {
				told[id.Old] = id.New
			}
			if len(was) != len(is) || len(told) != len(was) {
				t.Errorf("%d identifiers, were %d; %d are told", len(is), len(was), len(told))
			}
			for what, old := range was {
				if is[what] == old || is[what] == "" || told[old] != is[what] {
					t.Errorf("%s was %q, is %q, told is %q", what, old, is[what], told[old])
				}
			}
			for i, g := range got.Groups {
				if len(g.Damage) > 0 || !strings.HasPrefix(g.Name, c.Groups[i].Name+"_") || g.Seqno != c.Groups[i].Seqno+1 {
					t.Errorf("group %s of seqno %d: %v", g.Name, g.Seqno, g.Damage)
				}
			}
			if s := sum(t, got, got.Groups[0].Name+"/"+tc.volume); s != tc.sum {
				t.Errorf("%s = %s, want the snapshot %s", tc.volume, s, tc.sum)
			}
			// Volume for volume it is the other view.
			for i, g := range plain.Groups {
				for k, lv := range g.LVs {
					n := got.Groups[i].LVs[k]
					if n.Name != lv.Name || n.UUID != lv.UUID || n.Size != lv.Size || n.Role != lv.Role || n.Visible != lv.Visible {
						t.Errorf("%s is %+v, want %+v", lv.Name, n, lv)
					}
					a, err := g.Open(lv)
					b, err2 := got.Groups[i].Open(n)
					if (err == nil) != (err2 == nil) {
						t.Errorf("%s: %v, without a new identity %v", lv.Name, err2, err)
					}
					if err == nil && err2 == nil && lv.Visible && !bytes.Equal(content(t, a), content(t, b)) {
						t.Errorf("%s has another content", lv.Name)
					}
				}
			}
			// Listed as rewritten, all of it.
			lists, err := v.Rewritten()
			if err != nil {
				t.Fatal(err)
			}
			for i, d := range v.Clean {
				split, now := content(t, c.Disks[i].Device), content(t, d)
				for _, e := range lists[i] {
					copy(split[e.Off:e.Off+e.Len], now[e.Off:])
				}
				if !bytes.Equal(split, now) {
					t.Errorf("disk %d differs from the split outside of what is listed as rewritten", i+1)
				}
			}
		})
	}
}

// TestNewIdentityIsThatOfItsSeed: opened again with the same seed, a view is the
// same to the byte; with another it shares no identifier with it.
func TestNewIdentityIsThatOfItsSeed(t *testing.T) {
	tc := renewing[2] // GPT
	first := renewedView(t, probe(t, images(t, tc.images...)...), "one", tc.choose...)
	again := renewedView(t, probe(t, images(t, tc.images...)...), "one", tc.choose...)
	third := renewedView(t, probe(t, images(t, tc.images...)...), "two", tc.choose...)
	if !bytes.Equal(content(t, first.Clean[0]), content(t, again.Clean[0])) || !slices.Equal(first.Identity, again.Identity) {
		t.Error("the same seed gave another identity")
	}
	for i, id := range first.Identity {
		if other := third.Identity[i]; other.Old != id.Old || other.New == id.New {
			t.Errorf("%+v, and with another seed %+v", id, other)
		}
	}
	// A copy of the copy is a third one.
	c := shown(t, first.Devices)
	v, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{NewIdentity: "one", Dir: t.TempDir()})
	if !errors.Is(err, recovery.ErrNoSnapshot) {
		t.Errorf("a view without snapshots: %v, %v", v, err)
	}
}

// compound is one disk with the PVs of several images, each in a partition of
// its own.
func compound(t *testing.T, names ...string) string {
	t.Helper()
	sfdisk := tool(t, "sfdisk", "fdisk")
	script, size := "label: gpt\n", int64(4<<20)
	var parts [][]byte
	for i, d := range images(t, names...) {
		parts = append(parts, content(t, d.Device))
		script += fmt.Sprintf("start=%d, size=%d, type=lvm, name=pv%d\n", size/512, len(parts[i])/512, i+1)
		size += int64(len(parts[i]))
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size+4<<20)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sfdisk, "--quiet", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	off := int64(4 << 20)
	for _, p := range parts {
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		off += int64(len(p))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestNewIdentityOfSeveralGroups: of a group that is not put back, too, and of a
// PV that is in none.
func TestNewIdentityOfSeveralGroups(t *testing.T) {
	free := content(t, images(t, "lvm-o4-b")[0].Device)
	emptied(free)
	path := filepath.Join(t.TempDir(), "free")
	if err := os.WriteFile(path, free, 0o600); err != nil {
		t.Fatal(err)
	}
	c := probe(t, source(t, compound(t, "lvm-o1-thick-4k", "lvm-o3-thin")), source(t, path))
	v := renewedView(t, c, "one", "vgo3/tsnap")
	got := shown(t, v.Devices)
	was, is := identifiers(c), identifiers(got)
	if len(was) != 3+3+4 || len(is) != len(was) {
		t.Errorf("identifiers %v, were %v", is, was)
	}
	for what, old := range was {
		if is[what] == old {
			t.Errorf("%s is still %s", what, old)
		}
	}
	for _, want := range []struct{ volume, sum string }{
		{"vgo1/snap", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f"},
		{"vgo1/root", "73c24e9123a4f52696c099f70d6865013bcf465d0f373891fe32dbe041542464"},
		{"vgo3/tvol", "d827e7b2a10cdbe4c7c45bcd133c91a2efdc4f1ffeb4dee82f12cac22f8524c7"},
	} {
		group, lv, _ := strings.Cut(want.volume, "/")
		for _, id := range v.Identity {
			if id.Kind == recovery.VGName && id.Old == group {
				group = id.New
			}
		}
		if s := sum(t, got, group+"/"+lv); s != want.sum {
			t.Errorf("%s/%s = %s, want %s", group, lv, s, want.sum)
		}
	}
}

// emptied takes the group from a PV, as vgremove does.
func emptied(b []byte) {
	crc := func(b []byte) uint32 { return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b) }
	le := binary.LittleEndian
	le.PutUint32(b[652:], 0) // flags of the PV header's extension
	le.PutUint32(b[512+16:], crc(b[512+20:1024]))
	clear(b[4096+40 : 4096+64]) // the text's place
	le.PutUint32(b[4096:], crc(b[4096+4:4096+512]))
}

// TestNewIdentityRepairsNothing: half of a GPT that is damaged stays it, and is
// told.
func TestNewIdentityRepairsNothing(t *testing.T) {
	b := content(t, images(t, "lvm-o2-thick-gpt-crash")[0].Device)
	b[512+60] ^= 1
	path := filepath.Join(t.TempDir(), "damaged")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	c := probe(t, source(t, path))
	v := renewedView(t, c, "one", "vgo2/snap1")
	if len(v.Warnings) != 1 || !strings.Contains(v.Warnings[0].Error(), "no new identity") {
		t.Errorf("warnings %v", v.Warnings)
	}
	got := shown(t, v.Devices)
	if is := got.Disks[0].Table; len(is.Damage) != 1 || is.UUID == c.Disks[0].Table.UUID {
		t.Errorf("%s with damage %v", is.UUID, is.Damage)
	}
	if now := content(t, v.Clean[0]); !bytes.Equal(now[:34*512], b[:34*512]) {
		t.Error("the damaged half was written to")
	}
}

func TestNewIdentityIsRefused(t *testing.T) {
	lone := content(t, images(t, "lvm-o4-b")[0].Device)
	emptied(lone)
	binary.LittleEndian.PutUint32(lone[652:], 1) // in use, it says
	binary.LittleEndian.PutUint32(lone[512+16:], ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, lone[512+20:1024]))
	path := filepath.Join(t.TempDir(), "lone")
	if err := os.WriteFile(path, lone, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		sources []open.Source
		choose  string
		says    string
	}{
		{"a group that is not whole", images(t, "lvm-o1-thick-4k", "lvm-o4-a"), "vgo1/snap", "27iBRZ-b6Yy-XaSC-7hah-Ep49-LrFw-QqoFuv"},
		{"the same PV twice", images(t, "lvm-o1-thick-4k", "lvm-o5-wrap"), "vgo1/snap", "given twice"},
		{"a PV of an unknown group", append(images(t, "lvm-o1-thick-4k"), source(t, path)), "vgo1/snap", "in use by a volume group"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := open.Probe(context.Background(), tc.sources...)
			if err != nil {
				t.Fatal(err)
			}
			// Without a new identity, it is a view.
			if v, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{Snapshots: []string{tc.choose}, Dir: t.TempDir()}); err != nil {
				t.Error(err)
			} else {
				v.Close()
			}
			v, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{Snapshots: []string{tc.choose}, Dir: t.TempDir(), NewIdentity: "one"})
			if err == nil {
				v.Close()
				t.Fatal("the view opened")
			}
			var fe *lun.FormatError
			if !errors.As(err, &fe) || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want a FormatError in one line with %q", err, tc.says)
			}
		})
	}
}

// TestHostLVMSeesTheOriginalAndTheCopy gives both to LVM's own tools at once:
// two groups, whole, and no word of duplicates.
func TestHostLVMSeesTheOriginalAndTheCopy(t *testing.T) {
	vgs, pvs, losetup, pvck := tool(t, "vgs", "lvm2"), tool(t, "pvs", "lvm2"), tool(t, "losetup", "mount"), tool(t, "pvck", "lvm2")
	for _, tc := range renewing {
		t.Run(tc.images[0], func(t *testing.T) {
			c := probe(t, images(t, tc.images...)...)
			v := renewedView(t, c, "one", tc.choose...)
			var both, loops []string
			for i, name := range tc.images {
				path := materialise(t, v.Clean[i])
				both = append(both, unpack(t, name), path)
				if pvStart[name] == 0 {
					out, err := exec.Command(pvck, "--dump", "headers", path).CombinedOutput()
					if err != nil || bytes.Contains(out, []byte("CHECK")) {
						t.Errorf("pvck --dump headers: %v\n%s", err, out)
					}
				} else {
					tablesVerify(t, path)
				}
			}
			for i, path := range both {
				loops = append(loops, loop(t, losetup, path, pvStart[tc.images[i/2]]))
			}
			args := []string{"--config", lvmConfig(loops), "--reportformat", "json", "-o"}
			groups := lvmReport(t, "vg", quiet(t, vgs, append(args, "vg_name,vg_uuid,pv_count,vg_missing_pv_count")...))
			names := map[string]string{}
			for _, g := range groups {
				names[g["vg_name"]] = g["vg_uuid"]
				if g["pv_count"] != fmt.Sprint(len(tc.images)) || g["vg_missing_pv_count"] != "0" {
					t.Errorf("%v", g)
				}
			}
			g := shown(t, v.Clean).Groups[0]
			if len(groups) != 2 || names[c.Groups[0].Name] != c.Groups[0].UUID || names[g.Name] != g.UUID {
				t.Errorf("vgs lists %v, want %s and %s", groups, c.Groups[0].Name, g.Name)
			}
			seen := map[string]bool{}
			for _, p := range lvmReport(t, "pv", quiet(t, pvs, append(args, "pv_uuid,pv_name,vg_name")...)) {
				seen[p["pv_uuid"]] = true
			}
			if len(seen) != len(loops) {
				t.Errorf("pvs lists %d of %d", len(seen), len(loops))
			}
		})
	}
}

// quiet runs a tool that must have nothing to complain of.
func quiet(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LVM_SUPPRESS_FD_WARNINGS=1")
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil || errs.Len() > 0 {
		t.Fatalf("%s: %v\n%s", name, err, errs.Bytes())
	}
	return out.String()
}

// tablesVerify has partitioning tools check a disk.
func tablesVerify(t *testing.T, path string) {
	t.Helper()
	quiet(t, tool(t, "sfdisk", "fdisk"), "--verify", path)
	if out := quiet(t, tool(t, "sgdisk", "gdisk"), "-v", path); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v:\n%s", out)
	}
}

// TestFileSystemsOfTheCopyAreClean: e2fsck has nothing to do in it.
func TestFileSystemsOfTheCopyAreClean(t *testing.T) {
	e2fsck := tool(t, "e2fsck", "e2fsprogs")
	for _, tc := range renewing {
		if tc.volume == "str" {
			continue // holds no file system
		}
		v := renewedView(t, probe(t, images(t, tc.images...)...), "one", tc.choose...)
		c := shown(t, v.Devices)
		vol, err := c.Volume(c.Groups[0].Name + "/" + tc.volume)
		if err != nil {
			t.Fatal(err)
		}
		d, err := vol.Open()
		if err != nil {
			t.Fatal(err)
		}
		run(t, e2fsck, "-fn", materialise(t, d))
	}
}
