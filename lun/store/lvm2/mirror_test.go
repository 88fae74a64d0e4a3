package lvm2_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// Groups of which no image at hand has the like: their disks are described
// here, and what real guests make of mirrors is compared in
// integration/guestvolumes.

const (
	extent = 4096
	pvSize = 64 * extent
)

// filled is a PV in which every byte of extent e is letter+e, but for what was
// written over it.
func filled(letter byte) []byte {
	b := make([]byte, pvSize)
	for i := range b {
		b[i] = letter + byte(i/extent)
	}
	return b
}

type disk = luntest.ReadOnly

func id(n int) string { return fmt.Sprintf("%06d-0000-0000-0000-0000-0000-000000", n) }

// text is a group of PVs pv0, pv1, … and these volumes, "name: segment".
func text(pvs int, volumes ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "vg {\nid = \"%s\"\nseqno = 3\nextent_size = %d\nphysical_volumes {\n", id(999), extent/512)
	for i := range pvs {
		fmt.Fprintf(&b, "pv%d {\nid = \"%s\"\npe_start = 0\npe_count = %d\n}\n", i, id(900+i), pvSize/extent)
	}
	b.WriteString("}\nlogical_volumes {\n")
	for i, v := range volumes {
		name, rest, _ := strings.Cut(v, ": ")
		status := `"READ", "WRITE"`
		if !strings.Contains(name, "_") {
			status += `, "VISIBLE", "NOTSYNCED"`
		}
		fmt.Fprintf(&b, "%s {\nid = \"%s\"\nstatus = [%s]\n", name, id(i), status)
		segments := strings.Split(rest, " + ")
		fmt.Fprintf(&b, "segment_count = %d\n", len(segments))
		for j, s := range segments {
			fmt.Fprintf(&b, "segment%d {\n%s\n}\n", j+1, strings.ReplaceAll(s, "; ", "\n"))
		}
		b.WriteString("}\n")
	}
	b.WriteString("}\n}\n")
	return b.String()
}

func linear(start, count int, pv string, at int) string {
	return fmt.Sprintf(`start_extent = %d; extent_count = %d; type = "striped"; stripe_count = 1; stripes = ["%s", %d]`, start, count, pv, at)
}

// group assembles a text with its PVs; a nil one is missing.
func group(t *testing.T, text string, pvs ...[]byte) *lvm2.Group {
	t.Helper()
	var list []*lvm2.PV
	for i, b := range pvs {
		if b == nil {
			continue
		}
		list = append(list, &lvm2.PV{Dev: disk(b), Len: pvSize, UUID: id(900 + i), MDAs: []lvm2.MDA{{Text: []byte(text)}}})
	}
	groups, damage := lvm2.Assemble(list)
	if len(groups) != 1 || len(damage) > 0 {
		t.Fatalf("%d groups, damage %v", len(groups), damage)
	}
	return groups[0]
}

// reads returns the first byte of each extent of a volume.
func reads(t *testing.T, g *lvm2.Group, name string) (string, error) {
	t.Helper()
	d, err := g.Open(g.LV(name))
	if err != nil {
		var fe *lun.FormatError
		if !errors.As(err, &fe) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v is no FormatError of one line", err)
		}
		return "", err
	}
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	var out []byte
	for i := 0; i < len(b); i += extent {
		out = append(out, b[i])
	}
	return string(out), nil
}

// super is a raid superblock at extent 0.
func super(b []byte, position int, events, failed, recovery uint64) {
	le := binary.LittleEndian
	clear(b[:extent])
	le.PutUint32(b, 0x64526D44)
	le.PutUint32(b[4:], 1)
	le.PutUint32(b[8:], 2)
	le.PutUint32(b[12:], uint32(position))
	le.PutUint64(b[16:], events)
	le.PutUint64(b[24:], failed)
	le.PutUint64(b[32:], recovery)
	le.PutUint64(b[40:], ^uint64(0))
	le.PutUint32(b[48:], 1)
}

var raid1 = text(2, `r: start_extent = 0; extent_count = 3; type = "raid1"; device_count = 2; region_size = 8; raids = ["r_rmeta_0", "r_rimage_0", "r_rmeta_1", "r_rimage_1"]`,
	"r_rmeta_0: "+linear(0, 1, "pv0", 0), "r_rimage_0: "+linear(0, 1, "pv0", 1)+" + "+linear(1, 2, "pv0", 5),
	"r_rmeta_1: "+linear(0, 1, "pv1", 0), "r_rimage_1: "+linear(0, 3, "pv1", 2), "other: "+linear(0, 1, "pv0", 9))

func TestRaid1IsReadFromALegInSync(t *testing.T) {
	const whole = ^uint64(0)
	le := binary.LittleEndian
	for _, tc := range []struct {
		name string
		make func(a, b []byte) ([]byte, []byte)
		want string // "" is refused
		says string
	}{
		{"both", func(a, b []byte) ([]byte, []byte) { return a, b }, "BFG", ""},
		{"never activated", func(a, b []byte) ([]byte, []byte) { clear(a[:512]); clear(b[:512]); return a, b }, "BFG", ""},
		{"first is new", func(a, b []byte) ([]byte, []byte) { clear(a[:512]); return a, b }, "cde", ""},
		{"first is stale", func(a, b []byte) ([]byte, []byte) { super(a, 0, 6, 0, whole); return a, b }, "cde", ""},
		{"first is known as failed", func(a, b []byte) ([]byte, []byte) { super(b, 1, 8, 1, whole); return a, b }, "cde", ""},
		{"first is rebuilt", func(a, b []byte) ([]byte, []byte) { super(a, 0, 7, 0, 100); return a, b }, "cde", ""},
		{"second failed and is missing", func(a, b []byte) ([]byte, []byte) { super(a, 0, 9, 2, whole); return a, nil }, "BFG", ""},
		{"first failed and is missing", func(a, b []byte) ([]byte, []byte) { super(b, 1, 9, 1, whole); return nil, b }, "cde", ""},
		{"second is missing", func(a, b []byte) ([]byte, []byte) { return a, nil }, "", "can't be told which leg"},
		{"second is damaged", func(a, b []byte) ([]byte, []byte) { b[0]++; return a, b }, "", "r_rmeta_1/magic"},
		{"second belongs elsewhere", func(a, b []byte) ([]byte, []byte) { super(b, 0, 7, 0, whole); return a, b }, "", "array_position"},
		{"another level", func(a, b []byte) ([]byte, []byte) { le.PutUint32(b[48:], 5); return a, b }, "", "level"},
		{"reshaped", func(a, b []byte) ([]byte, []byte) { le.PutUint32(b[60:], 1); return a, b }, "", "reshaped"},
		{"none is whole", func(a, b []byte) ([]byte, []byte) { super(a, 0, 7, 0, 1); super(b, 1, 7, 0, 1); return a, b }, "", "no leg is in sync"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := filled('A'), filled('a')
			super(a, 0, 7, 0, whole)
			super(b, 1, 7, 0, whole)
			a, b = tc.make(a, b)
			g := group(t, raid1, a, b)
			got, err := reads(t, g, "r")
			if got != tc.want || tc.want == "" && (!strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "vg/r")) {
				t.Errorf("read %q, %v; want %q or %q", got, err, tc.want, tc.says)
			}
			if a != nil {
				if got, err := reads(t, g, "other"); got != "J" {
					t.Errorf("its neighbour: %q, %v", got, err)
				}
			}
			if tc.want == "" {
				return
			}
			areas, err := g.Map(g.LV("r"))
			if err != nil {
				t.Fatal(err)
			}
			mapped := ""
			for _, a := range areas {
				for at := a.Off; at < a.Off+a.Len; at += extent {
					mapped += string(a.PV.PV.Dev.(disk)[at])
				}
			}
			if mapped != tc.want {
				t.Errorf("mapped %q, want %q", mapped, tc.want)
			}
		})
	}
}

func TestMirrorIsReadFromItsFirstLeg(t *testing.T) {
	mirror := func(log string) string {
		return text(3, `m: start_extent = 0; extent_count = 3; type = "mirror"; mirror_count = 2; region_size = 8; `+log+`mirrors = ["m_mimage_0", 0, "m_mimage_1", 0]`,
			"m_mimage_0: "+linear(0, 3, "pv0", 1), "m_mimage_1: "+linear(0, 3, "pv1", 2), "m_mlog: "+linear(0, 1, "pv2", 0))
	}
	const onDisk = `mirror_log = "m_mlog"; `
	log := func(bits ...byte) []byte {
		b := make([]byte, pvSize)
		le := binary.LittleEndian
		le.PutUint32(b, 0x4D695272)
		le.PutUint32(b[4:], 2)
		le.PutUint64(b[8:], 12)
		copy(b[1024:], bits)
		return b
	}
	huge := log(0xff, 0x0f)
	binary.LittleEndian.PutUint64(huge[8:], 1<<63)
	for _, tc := range []struct {
		name    string
		text    string
		a, l    []byte
		want    string
		refused string
	}{
		{"whole", mirror(onDisk), filled('A'), log(0, 0), "BCD", ""},
		{"log in memory", mirror(""), filled('A'), log(), "BCD", ""},
		{"first missing, in sync", mirror(onDisk), nil, log(0xff, 0x0f), "cde", ""},
		{"first missing, a region differs", mirror(onDisk), nil, log(0xff, 0x07), "", "= 11:"},
		{"first missing, log in memory", mirror(""), nil, log(), "", "memory"},
		{"first missing, no log", mirror(onDisk), nil, filled('x'), "", "mirror_log/magic"},
		{"first missing, huge log", mirror(onDisk), nil, huge, "", "nr_regions"},
		{"first and log missing", mirror(onDisk), nil, nil, "", id(902)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := reads(t, group(t, tc.text, tc.a, filled('a'), tc.l), "m")
			if got != tc.want || tc.want == "" && !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("read %q, %v; want %q or %q", got, err, tc.want, tc.refused)
			}
		})
	}
}

// TestPVThatWasMissing: LVM wrote on without it, so it may be old.
func TestPVThatWasMissing(t *testing.T) {
	marked := strings.Replace(raid1, "pe_start = 0", "flags = [\"MISSING\"]\npe_start = 0", 1)
	a, b := filled('A'), filled('a')
	super(a, 0, 7, 0, ^uint64(0))
	super(b, 1, 9, 1, ^uint64(0))
	g := group(t, marked, a, b)
	if got, err := reads(t, g, "r"); got != "cde" {
		t.Errorf("the raid: %q, %v; want the other leg", got, err)
	}
	if _, err := reads(t, g, "other"); err == nil || !strings.Contains(err.Error(), "vgextend --restoremissing") {
		t.Errorf("a volume on it: %v", err)
	}
}

// TestStackedVolumes: what a pvmove leaves in the middle, a stripe over
// volumes, pieces of others.
func TestStackedVolumes(t *testing.T) {
	g := group(t, text(2,
		`pvmove_0: start_extent = 0; extent_count = 4; type = "mirror"; mirror_count = 2; mirrors = ["pv0", 10, "pv1", 20]`,
		"moved: "+linear(0, 1, "pv0", 3)+" + "+linear(1, 2, "pvmove_0", 1),
		`wide: start_extent = 0; extent_count = 4; type = "striped"; stripe_count = 2; stripe_size = 8; stripes = ["pv0", 30, "pv1", 30]`,
		"piece: "+linear(0, 4, "wide", 0), "middle: "+linear(0, 2, "wide", 1),
		`over: start_extent = 0; extent_count = 2; type = "striped"; stripe_count = 2; stripe_size = 8; stripes = ["moved", 0, "moved", 1]`,
		"short: "+linear(0, 5, "wide", 0),
	), filled('A'), filled('a'))
	for name, want := range map[string]string{"moved": "DLM", "wide": "_\x7f`\x80", "piece": "_\x7f`\x80", "middle": "\x7f`", "over": "DL"} {
		if got, err := reads(t, g, name); got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	if _, err := reads(t, g, "short"); err == nil || !strings.Contains(err.Error(), "too small") {
		t.Errorf("a volume that is larger than what it lies on: %v", err)
	}
	areas, err := g.Map(g.LV("moved"))
	if err != nil || len(areas) != 2 || areas[1].LV != extent || areas[1].Off != 11*extent || areas[1].Len != 2*extent {
		t.Errorf("areas %+v, %v", areas, err)
	}
	for _, name := range []string{"middle", "over"} {
		if _, err := g.Map(g.LV(name)); err == nil {
			t.Errorf("%s has a simple place", name)
		}
	}
	if _, err := g.Map(g.LV("piece")); err != nil {
		t.Error(err)
	}
}

// TestVolumesThatFanOut: each volume lies on the next one twice. Without a bound
// on all steps together this is 2^40 of them.
func TestVolumesThatFanOut(t *testing.T) {
	var volumes []string
	for i := range 40 {
		volumes = append(volumes, fmt.Sprintf(`v%d: start_extent = 0; extent_count = 2; type = "striped"; stripe_count = 2; stripe_size = 8; stripes = ["v%d", 0, "v%d", 0]`, i, i+1, i+1))
	}
	volumes = append(volumes, "v40: "+linear(0, 2, "pv0", 0))
	g := group(t, text(1, volumes...), filled('A'))
	for _, name := range []string{"v0", "v20"} {
		if _, err := reads(t, g, name); err == nil || !strings.Contains(err.Error(), "lie on one another") {
			t.Errorf("%s: %v", name, err)
		}
	}
	var legs []string
	for i := range 40 {
		legs = append(legs, fmt.Sprintf(`m%d: start_extent = 0; extent_count = 2; type = "raid1"; device_count = 2; raids = ["m%d", "m%d", "m%d", "m%d"]`, i, i+1, i+1, i+1, i+1))
	}
	legs = append(legs, "m40: "+linear(0, 2, "pv0", 0))
	if _, err := reads(t, group(t, text(1, legs...), filled('A')), "m0"); err == nil {
		t.Error("a raid of raids opened")
	}
}

// TestRevertOfAMirrorIsLinear: the origin has the leg's segments, and the
// mirror's parts are gone; the rest is as it was.
func TestRevertOfAMirrorIsLinear(t *testing.T) {
	with := strings.Replace(raid1, "other {", fmt.Sprintf(`snap {
id = "%s"
status = ["READ", "WRITE"]
segment_count = 1
segment1 {
%s
}
}
snapshot0 {
id = "%s"
status = ["READ", "WRITE", "VISIBLE"]
segment_count = 1
segment1 {
start_extent = 0
extent_count = 3
type = "snapshot"
chunk_size = 8
origin = "r"
cow_store = "snap"
}
}
other {`, id(50), strings.ReplaceAll(linear(0, 2, "pv1", 40), "; ", "\n"), id(51)), 1)
	a, b := filled('A'), filled('a')
	super(a, 0, 7, 0, 5)
	super(b, 1, 7, 0, ^uint64(0))
	g := group(t, with, a, b)
	if len(g.Snapshots) != 1 {
		t.Fatalf("snapshots %+v", g.Snapshots)
	}
	e := g.Edit()
	if err := e.Revert(g.Snapshots[0]); err != nil {
		t.Fatal(err)
	}
	after := e.Text("test")
	g = group(t, string(after), a, b)
	var names []string
	for _, lv := range g.LVs {
		names = append(names, lv.Name)
	}
	if got := strings.Join(names, " "); got != "r other" {
		t.Errorf("volumes %q", got)
	}
	if got, err := reads(t, g, "r"); got != "cde" || !g.LV("r").Visible || g.LV("r").Role != "" {
		t.Errorf("r = %q, %v: %+v", got, err, g.LV("r"))
	}
	if strings.Contains(string(after), "r_r") || strings.Count(string(after), "NOTSYNCED") != strings.Count(with, "NOTSYNCED")-1 {
		t.Errorf("the text still speaks of the mirror:\n%s", after)
	}
}
