package recovery_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
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
					if err == nil && err2 == nil && lv.Visible && !bytes.Equal(samples(t, a), samples(t, b)) {
						t.Errorf("%s has another content", lv.Name)
					}
				}
			}
		})
	}
}

// samples are 16 KiB of each MiB.
func samples(t *testing.T, d lun.Device) []byte {
	t.Helper()
	var out []byte
	for off := int64(0); off < d.Size(); off += 1 << 20 {
		b := make([]byte, min(16<<10, d.Size()-off))
		if _, err := d.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

// TestNewIdentityIsListedAsRewritten, all of it.
func TestNewIdentityIsListedAsRewritten(t *testing.T) {
	tc := renewing[2] // GPT
	c := probe(t, images(t, tc.images...)...)
	v := renewedView(t, c, "one", tc.choose...)
	lists, err := v.Rewritten()
	if err != nil {
		t.Fatal(err)
	}
	split, now := content(t, c.Disks[0].Device), content(t, v.Clean[0])
	for _, e := range lists[0] {
		copy(split[e.Off:e.Off+e.Len], now[e.Off:])
	}
	if !bytes.Equal(split, now) {
		t.Error("the disk differs from the split outside of what is listed")
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
// PV that is in none, and of an MBR.
func TestNewIdentityOfSeveralGroups(t *testing.T) {
	free := content(t, images(t, "lvm-o4-b")[0].Device)
	emptied(free)
	path := filepath.Join(t.TempDir(), "free")
	if err := os.WriteFile(path, free, 0o600); err != nil {
		t.Fatal(err)
	}
	mbr := make(luntest.ReadOnly, 8<<20)
	copy(mbr[440:], []byte{0x78, 0x56, 0x34, 0x12})
	copy(mbr[446:], []byte{0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0}) // 1 MiB at 1 MiB
	copy(mbr[510:], []byte{0x55, 0xAA})
	c := probe(t, source(t, compound(t, "lvm-o1-thick-4k", "lvm-o3-thin")), source(t, path), open.Source{Name: "mbr", Device: mbr})
	v := renewedView(t, c, "one", "vgo3/tsnap")
	got := shown(t, v.Devices)
	was, is := identifiers(c), identifiers(got)
	if len(was) != 3+3+4+2 || len(is) != len(was) || was["disk 3:disk"] != "12345678" {
		t.Errorf("identifiers %v, were %v", is, was)
	}
	for what, old := range was {
		if is[what] == old && old != "" { // partitions of an MBR have none
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
