package lvm2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/store/dmthin"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// What thin volumes of whole groups hold is compared with the guest's kernel in
// lun/recovery and integration/guestvolumes; here is what may be wrong with
// them, and what becomes of the text.

const poolMeta = 43 << 20 // pool_tmeta of lvm-o3-thin, on the disk

// thinDisk is the whole of lvm-o3-thin.
func thinDisk(t *testing.T) disk { return bytes.Clone(luntest.Image(t, "lvm-o3-thin")) }

// thinGroup is that of the disk, with its text changed.
func thinGroup(t *testing.T, d disk, oldnew ...string) *lvm2.Group {
	t.Helper()
	pv, err := lvm2.ReadPV(d, 0, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	text := string(pv.MDAs[0].Text)
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(text, oldnew[i]) {
			t.Fatalf("the text has no %q", oldnew[i])
		}
		text = strings.Replace(text, oldnew[i], oldnew[i+1], 1)
	}
	pv.MDAs[0].Text = []byte(text)
	groups, damage := lvm2.Assemble([]*lvm2.PV{pv})
	if len(groups) != 1 || len(damage) > 0 {
		t.Fatalf("%d groups, damage %v", len(groups), damage)
	}
	return groups[0]
}

func TestThinPoolsThatAreRefused(t *testing.T) {
	d := thinDisk(t)
	le := binary.LittleEndian
	for _, tc := range []struct {
		name    string
		change  func(d disk)
		oldnew  []string
		says    string
		is      error
		snapToo bool // the other volume of the pool can be read
	}{
		{"another time", nil, []string{"transaction_id = 2\nchunk", "transaction_id = 9\nchunk"}, "vgo3/pool/segment1/transaction_id = 9", nil, false},
		{"another chunk size", nil, []string{"chunk_size = 128", "chunk_size = 256"}, "vgo3/pool/segment1/chunk_size = 256", nil, false},
		{"no metadata volume", nil, []string{`metadata = "pool_tmeta"`, `metadata = "gone"`}, "gone", nil, false},
		{"no pool", nil, []string{`thin_pool = "pool"`, `thin_pool = "tsnap"`}, "no thin pool", nil, true},
		{"no such device", nil, []string{"device_id = 1", "device_id = 9"}, "no device of this id", nil, true},
		{"no device", nil, []string{"device_id = 1", ""}, "vgo3/tvol/segment1/device_id", nil, true},
		{"needs check", func(d disk) { d[poolMeta+4] |= 1 }, nil, "lvconvert --repair", dmthin.ErrNeedsCheck, false},
		{"unknown version", func(d disk) { d[poolMeta+40] = 3 }, nil, "version", nil, false},
		{"cached data", nil, []string{"extent_count = 40\n\ntype = \"striped\"", "extent_count = 40\n\ntype = \"cache\""}, "lvconvert --uncache", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := d
			if tc.change != nil {
				d = bytes.Clone(d)
				tc.change(d)
				sb := d[poolMeta : poolMeta+4096]
				le.PutUint32(sb, ^crc32.Checksum(sb[4:], crc32.MakeTable(crc32.Castagnoli))^160774)
			}
			g := thinGroup(t, d, tc.oldnew...)
			_, err := g.Open(g.LV("tvol"))
			var fe *lun.FormatError
			if !errors.As(err, &fe) || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") || tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error %v, want %q", err, tc.says)
			}
			if _, err := g.Open(g.LV("tsnap")); (err == nil) != tc.snapToo {
				t.Errorf("tsnap: %v", err)
			}
			if _, err := g.Open(g.LV("lvol0_pmspare")); err != nil {
				t.Errorf("a volume that has nothing to do with the pool: %v", err)
			}
		})
	}
}

func TestThinExternalOrigin(t *testing.T) {
	d := thinDisk(t)
	g := thinGroup(t, d, "device_id = 2\n", "device_id = 2\nexternal_origin = \"pool_tdata\"\n")
	with, err := g.Open(g.LV("tsnap"))
	if err != nil {
		t.Fatal(err)
	}
	plain, _, err := g.Thin(thinGroup(t, d).LV("tsnap"))
	if err != nil {
		t.Fatal(err)
	}
	below, err := g.Open(g.LV("pool_tdata"))
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, with.Size()) // 64 MiB over 40 MiB
	if _, err := below.ReadAt(want[:below.Size()], 0); err != nil {
		t.Fatal(err)
	}
	err = plain.Ranges(0, plain.Size(), func(r dmthin.Range) error {
		_, err := plain.ReadAt(want[r.Off:r.Off+r.Len], r.Off)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, with.Size())
	if _, err := with.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the volume is not what is mapped over its external origin (%v)", err)
	}
}

// TestRevertOfAThinSnapshot: names, origins, merges that wait, and what the pool
// is told.
func TestRevertOfAThinSnapshot(t *testing.T) {
	d := thinDisk(t)
	const (
		pool    = "transaction_id = 2\nchunk"
		waits   = "transaction_id = 3\nchunk"
		create  = "zero_new_blocks = 1\nmessage1 {\ncreate = \"tsnap\"\n}\n"
		deletes = "delete = 1\n}\n"
	)
	for _, tc := range []struct {
		name    string
		oldnew  []string
		want    []string
		not     []string
		refused string
	}{
		{"plain", nil, []string{"transaction_id = 3\nchunk", "message1 {\n" + deletes}, []string{"message2", "tsnap", "origin ="}, ""},
		{"a change is not told yet", []string{pool, waits, "zero_new_blocks = 1\n", create}, []string{"transaction_id = 3\nchunk", "message1 {\ncreate", "message2 {\n" + deletes}, nil, ""},
		{"a change was told", []string{"zero_new_blocks = 1\n", create}, []string{"transaction_id = 3\nchunk", "message1 {\n" + deletes}, []string{"create =", "message2"}, ""},
		{"a merge waits", []string{"origin = \"tvol\"\n", "origin = \"tvol\"\nmerge = \"tvol\"\n"}, []string{"message1 {\n" + deletes}, []string{"merge ="}, ""},
		{"the origin is a snapshot too", []string{"device_id = 1\n", "device_id = 1\norigin = \"tvol2\"\n"}, []string{"origin = \"tvol2\""}, []string{"origin = \"tvol\""}, ""},
		{"LVM would refuse the pool", []string{pool, waits}, nil, nil, "transaction_id = 3"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := thinGroup(t, d, tc.oldnew...)
			if len(g.Snapshots) != 1 || !g.Snapshots[0].Thin || g.Snapshots[0].Origin.Name != "tvol" || g.Snapshots[0].Merging != strings.Contains(tc.name, "merge") {
				t.Fatalf("snapshots %+v", g.Snapshots)
			}
			e := g.Edit()
			err := e.Revert(g.Snapshots[0])
			if tc.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("error %v, want %q", err, tc.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			text := string(e.Text("test"))
			for _, w := range tc.want {
				if !strings.Contains(text, w) {
					t.Errorf("the text has no %q:\n%s", w, text)
				}
			}
			for _, n := range tc.not {
				if strings.Contains(strings.ReplaceAll(text, `create = "tsnap"`, "create"), n) && n != "create =" || n == "create =" && strings.Contains(text, n) {
					t.Errorf("the text has %q:\n%s", n, text)
				}
			}
			after, err := lvm2.ParseGroup([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			tvol := after.LV("tvol")
			if tvol.UUID != g.LV("tvol").UUID || after.LV("tsnap") != nil || fmt.Sprint(tvol.Size) != fmt.Sprint(g.LV("tsnap").Size) {
				t.Errorf("tvol %+v", tvol)
			}
		})
	}
}

// TestSnapshotsOfAThinSnapshot become snapshots of what it became.
func TestSnapshotsOfAThinSnapshot(t *testing.T) {
	d := thinDisk(t)
	g := thinGroup(t, d, "lvol0_pmspare {", `tsnap2 {
id = "cLPhoi-EsqN-qdTv-Bc9l-S5A8-eZul-2u1hu6"
status = ["READ", "WRITE", "VISIBLE"]
segment_count = 1
segment1 {
start_extent = 0
extent_count = 64
type = "thin"
thin_pool = "pool"
transaction_id = 1
device_id = 2
origin = "tsnap"
}
}
lvol0_pmspare {`)
	if len(g.SnapshotsOf(g.LV("tvol"))) != 1 || len(g.SnapshotsOf(g.LV("tsnap"))) != 1 {
		t.Fatalf("snapshots %+v", g.Snapshots)
	}
	e := g.Edit()
	if err := e.Revert(g.SnapshotsOf(g.LV("tvol"))[0]); err != nil {
		t.Fatal(err)
	}
	after, err := lvm2.ParseGroup(e.Text("test"))
	if err != nil {
		t.Fatal(err)
	}
	if s := after.SnapshotsOf(after.LV("tvol")); len(s) != 1 || s[0].COW.Name != "tsnap2" || after.LV("tsnap") != nil {
		t.Errorf("snapshots %+v", after.Snapshots)
	}
}
