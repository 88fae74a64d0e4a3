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
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// memory is the beginning of a disk of diskSize bytes whose rest is zero: all
// that LVM itself writes is in the first MiB.
type memory []byte

const (
	headSize = 1<<20 + 64<<10
	diskSize = 72 << 20
)

func (m memory) Size() int64                        { return diskSize }
func (m memory) Sync() error                        { return nil }
func (m memory) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), diskSize); err != nil {
		return 0, err
	}
	clear(p)
	if off < int64(len(m)) {
		copy(p, m[off:])
	}
	return len(p), nil
}

func image(t testing.TB, name string) memory { return luntest.Head(t, name, headSize) }

func readPV(t testing.TB, m memory) *lvm2.PV {
	t.Helper()
	pv, err := lvm2.ReadPV(m, 0, m.Size())
	if err != nil {
		t.Fatal(err)
	}
	return pv
}

// sum is LVM's CRC, written once more for the tests.
func sum(b []byte) uint32 {
	return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b)
}

const (
	label = 512  // of o1
	mda   = 4096 // of o1
)

// relabel and remda make the checksums hold after a change.
func relabel(m memory) { binary.LittleEndian.PutUint32(m[label+16:], sum(m[label+20:label+512])) }
func remda(m memory)   { binary.LittleEndian.PutUint32(m[mda:], sum(m[mda+4:mda+512])) }

func TestDamagedPV(t *testing.T) {
	le := binary.LittleEndian
	for _, tc := range []struct {
		name   string
		change func(m memory) memory
		field  string
		offset int64
	}{
		{"label CRC", func(m memory) memory { m[label+100]++; return m }, "label CRC", label + 16},
		{"label of another sector", func(m memory) memory { copy(m[1024:], m[512:1024]); clear(m[512:1024]); return m }, "label sector", 1024 + 8},
		{"label type", func(m memory) memory { m[label+31]++; relabel(m); return m }, "label type", label + 24},
		{"header offset", func(m memory) memory { le.PutUint32(m[label+20:], 500); relabel(m); return m }, "PV header offset", label + 20},
		{"PV UUID", func(m memory) memory { m[label+32] = '/'; relabel(m); return m }, "PV UUID", label + 32},
		{"disk cut short", func(m memory) memory { le.PutUint64(m[label+64:], diskSize+512); relabel(m); return m }, "device size", label + 64},
		{"impossible size", func(m memory) memory { le.PutUint64(m[label+64:], 1<<63); relabel(m); return m }, "device size", label + 64},
		{"area list without end", func(m memory) memory {
			for i := label + 72; i < label+512; i++ {
				m[i] = 1
			}
			relabel(m)
			return m
		}, "data area", -2},
		{"metadata area outside", func(m memory) memory { le.PutUint64(m[label+104:], 1<<50); relabel(m); return m }, "metadata area", -2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := tc.change(image(t, "lvm-o1-thick-4k"))
			_, err := lvm2.ReadPV(m, 0, m.Size())
			wantFormatError(t, err, tc.field, tc.offset)
		})
	}
}

func wantFormatError(t *testing.T, err error, field string, offset int64) {
	t.Helper()
	var fe *lun.FormatError
	if !errors.As(err, &fe) {
		t.Fatalf("error %v, want a FormatError", err)
	}
	if !strings.Contains(fe.Field, field) || fe.Reason == "" || offset != -2 && fe.Offset != offset {
		t.Errorf("error %q (field %q at %d), want field %q at %d", err, fe.Field, fe.Offset, field, offset)
	}
}

// TestDamagedMetadataArea: the PV is known, the group is not, and the reason is
// kept.
func TestDamagedMetadataArea(t *testing.T) {
	le := binary.LittleEndian
	for _, tc := range []struct {
		name   string
		change func(m memory)
		field  string
	}{
		{"magic", func(m memory) { m[mda+4]++; remda(m) }, "magic"},
		{"CRC", func(m memory) { m[mda+40]++ }, "metadata area CRC"},
		{"version", func(m memory) { le.PutUint32(m[mda+20:], 2); remda(m) }, "version"},
		{"start", func(m memory) { le.PutUint64(m[mda+24:], 1); remda(m) }, "start"},
		{"size", func(m memory) { le.PutUint64(m[mda+32:], 1<<60); remda(m) }, "metadata area size"},
		{"text outside", func(m memory) { le.PutUint64(m[mda+40:], 1<<60); remda(m) }, "text offset"},
		{"text in the header", func(m memory) { le.PutUint64(m[mda+40:], 100); remda(m) }, "text offset"},
		{"huge text", func(m memory) { le.PutUint64(m[mda+48:], 1<<62); remda(m) }, "text size"},
		{"text CRC", func(m memory) { m[8704]++ }, "text CRC"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := image(t, "lvm-o1-thick-4k")
			tc.change(m)
			groups, damage := lvm2.Assemble([]*lvm2.PV{readPV(t, m)})
			if len(groups) != 0 || len(damage) != 1 {
				t.Fatalf("%d groups, damage %v", len(groups), damage)
			}
			wantFormatError(t, damage[0], tc.field, -2)
		})
	}
}

func o1Text(t testing.TB) string {
	return string(readPV(t, image(t, "lvm-o1-thick-4k")).MDAs[0].Text)
}

func TestBadGroups(t *testing.T) {
	good := o1Text(t)
	for _, tc := range []struct{ name, old, new, field string }{
		{"self-referring volume", `"pv0", 0`, `"root", 0`, "root"},
		{"unknown PV", `"pv0", 0`, `"pv7", 0`, "stripes"},
		{"beyond the PV", `"pv0", 40`, `"pv0", 60`, "stripes"},
		{"overlap", `"pv0", 40`, `"pv0", 39`, "stripes"},
		{"huge extent", `"pv0", 40`, `"pv0", 99999999999`, "stripes"},
		{"negative extent", `"pv0", 40`, `"pv0", -1`, "stripes"},
		{"huge count", "extent_count = 16", "extent_count = 4294967296", "extent_count"},
		{"no extents", "extent_count = 16", "extent_count = 0", "extent_count"},
		{"huge stripe count", "stripe_count = 1", "stripe_count = 1000000", "stripe_count"},
		{"more stripes than entries", "stripe_count = 1", "stripe_count = 2", "stripes"},
		{"huge extent size", "extent_size = 2048", "extent_size = 9223372036854775807", "extent_size"},
		{"no extent size", "extent_size = 2048", "extent_size = 0", "extent_size"},
		{"huge segment count", "segment_count = 1", "segment_count = 100000", "segment_count"},
		{"missing segment", "segment1 {", "segment2 {", "segment1"},
		{"gap", "start_extent = 0", "start_extent = 1", "start_extent"},
		{"huge PV", "pe_count = 71", "pe_count = 4294967295", ""},
		{"huge pe_start", "pe_start = 2048", "pe_start = 18014398509481983", ""},
		{"snapshot of itself", `cow_store = "snap"`, `cow_store = "root"`, "cow_store"},
		{"snapshot of nothing", `origin = "root"`, `origin = "gone"`, "origin"},
		{"store of nothing", `cow_store = "snap"`, `cow_store = "gone"`, "cow_store"},
		{"no store", `cow_store = "snap"`, ``, "cow_store"},
		{"loop through a snapshot", `origin = "root"`, `origin = "snapshot0"`, "segments"},
		{"no id", `id = "kkPF5M`, `idx = "kkPF5M`, "id"},
		{"bad id", `id = "kkPF5M-`, `id = "kkPF5M-x`, "id"},
		{"no type", `type = "snapshot"`, "", "type"},
		{"two groups", "contents =", "x {\n}\ncontents =", "metadata text"},
		{"key twice", "seqno = 4", "seqno = 4\nseqno = 5", "key"},
		{"open string", `description = "`, `description = `, "value"},
		{"open section", "\n}\n# Generated", "\n# Generated", "section"},
		{"bare brace", "contents", "}\ncontents", "key"},
		{"big number", "seqno = 4", "seqno = 99999999999999999999", "value"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := strings.Replace(good, tc.old, tc.new, 1)
			if text == good {
				t.Fatalf("the text has no %q", tc.old)
			}
			g, err := lvm2.ParseGroup([]byte(text))
			if err == nil && tc.field == "" { // wrong only against the disk
				m := image(t, "lvm-o1-thick-4k")
				pv := readPV(t, m)
				pv.MDAs[0].Text = []byte(text)
				groups, damage := lvm2.Assemble([]*lvm2.PV{pv})
				if len(groups) != 0 || len(damage) != 1 {
					t.Fatalf("%d groups, damage %v (seqno %d)", len(groups), damage, g.Seqno)
				}
				err = damage[0]
			}
			wantFormatError(t, err, tc.field, -2)
		})
	}
}

func TestLoopOfTwoVolumes(t *testing.T) {
	text := strings.NewReplacer(`"pv0", 0`, `"snap", 0`, `"pv0", 40`, `"root", 0`).Replace(o1Text(t))
	_, err := lvm2.ParseGroup([]byte(text))
	wantFormatError(t, err, "segments", -1)
}

func TestDeepNestingIsRefused(t *testing.T) {
	_, err := lvm2.ParseText([]byte(strings.Repeat("a {\n", 100000)))
	wantFormatError(t, err, "section a", -2)
}

func TestUnreadTypesAreRefusedWithTheirReason(t *testing.T) {
	good := o1Text(t)
	for _, typ := range []string{"raid5", "cache", "writecache", "vdo", "thin-pool", "error", "striped+FLAG", "brandnew"} {
		g, err := lvm2.ParseGroup([]byte(strings.Replace(good, `type = "striped"`, `type = "`+typ+`"`, 1)))
		if err != nil {
			t.Errorf("%s: %v: the whole group is refused", typ, err)
			continue
		}
		_, err = g.Open(g.LV("root"))
		wantFormatError(t, err, "vgo1/root/segment1/", -1)
		if _, err := g.Open(g.LV("snap")); !strings.Contains(fmt.Sprint(err), "none of the devices") {
			t.Errorf("%s: its neighbour: %v, want only its disk to be missing", typ, err)
		}
	}
}

// TestMergingSnapshotIsStillASnapshot: an interrupted lvconvert --merge leaves a
// store whose content is the same.
func TestMergingSnapshotIsStillASnapshot(t *testing.T) {
	g, err := lvm2.ParseGroup([]byte(strings.Replace(o1Text(t), "cow_store", "merging_store", 1)))
	if err != nil {
		t.Fatal(err)
	}
	s := g.SnapshotsOf(g.LV("root"))
	if len(s) != 1 || !s[0].Merging || s[0].COW.Name != "snap" {
		t.Errorf("snapshots %+v", s)
	}
}

// TestNewestTextWins: PVs of one group that were written one after the other.
func TestNewestTextWins(t *testing.T) {
	a, b := readPV(t, image(t, "lvm-o4-a")), readPV(t, image(t, "lvm-o4-b"))
	b.MDAs[0].Text = bytes.Replace(b.MDAs[0].Text, []byte("seqno = 6"), []byte("seqno = 7"), 1)
	for _, pvs := range [][]*lvm2.PV{{a, b}, {b, a}} {
		groups, damage := lvm2.Assemble(pvs)
		if len(groups) != 1 || groups[0].Seqno != 7 || len(groups[0].Damage) != 1 || len(damage) != 0 {
			t.Errorf("groups %+v, damage %v", groups, damage)
		}
	}
	// A damaged area of one PV: the other one's text is enough.
	b.MDAs[0].Text = nil
	groups, damage := lvm2.Assemble([]*lvm2.PV{b, a})
	if len(groups) != 1 || groups[0].Seqno != 6 || len(damage) != 0 || len(groups[0].Missing()) != 0 {
		t.Errorf("groups %+v, damage %v", groups, damage)
	}
}

// without is the group's text with no thick snapshots.
func without(g *lvm2.Group) []byte {
	e := g.Edit()
	for _, s := range g.Snapshots {
		e.Remove(s)
	}
	return e.Text("test")
}

// TestCommitGoesRoundTheRing: commits follow each other through the area and
// over its end, and each is read back.
func TestCommitGoesRoundTheRing(t *testing.T) {
	m := image(t, "lvm-o1-thick-4k")
	for i := range 700 { // 700 texts of 1.5 KiB pass 1 MiB
		groups, damage := lvm2.Assemble([]*lvm2.PV{readPV(t, m)})
		if len(groups) != 1 || len(damage)+len(groups[0].Damage) != 0 {
			t.Fatalf("commit %d: %v", i, damage)
		}
		g := groups[0]
		if g.Seqno != int64(4+i) || len(g.Snapshots) != 1 && i == 0 || len(g.Snapshots) != 0 && i > 0 {
			t.Fatalf("commit %d: seqno %d, %d snapshots", i, g.Seqno, len(g.Snapshots))
		}
		changes, err := g.Commit(without(g))
		if err != nil {
			t.Fatal(err)
		}
		if changes[0].Overwrites {
			t.Fatalf("commit %d would overwrite the text of now", i)
		}
		for _, p := range changes[0].Patches() {
			if p.Off < mda || p.Off+int64(len(p.Data)) > 1<<20 {
				t.Fatalf("patch of %d bytes at %d leaves the metadata area", len(p.Data), p.Off)
			}
			copy(m[p.Off:], p.Data)
		}
	}
}

// FuzzText: what parses prints to a text that parses to the same.
func FuzzText(f *testing.F) {
	f.Add([]byte(o1Text(f)))
	f.Add([]byte(`a = ["x", -1, []] # c` + "\n" + `b { c = "\"\\" d { } }`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := lvm2.ParseText(b)
		if err != nil {
			var fe *lun.FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("error %v is no FormatError", err)
			}
			return
		}
		first := s.Text()
		again, err := lvm2.ParseText(first)
		if err != nil {
			t.Fatalf("%v in our own text:\n%s", err, first)
		}
		if second := again.Text(); !bytes.Equal(first, second) {
			t.Fatalf("printed\n%s\nand then\n%s", first, second)
		}
	})
}

// FuzzGroup: a group that parses maps each of its volumes without a gap, and
// its rewritten text parses too.
func FuzzGroup(f *testing.F) {
	for _, name := range []string{"lvm-o1-thick-4k", "lvm-o3-thin", "lvm-o4-a"} {
		f.Add(readPV(f, image(f, name)).MDAs[0].Text)
	}
	f.Add([]byte(raid1))
	f.Add([]byte(text(3, `m: start_extent = 0; extent_count = 3; type = "mirror"; mirror_count = 2; mirror_log = "l"; mirrors = ["pv0", 0, "i", 0]`,
		"i: "+linear(0, 3, "pv1", 2), "l: "+linear(0, 1, "pv2", 0))))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := lvm2.ParseGroup(b)
		if err != nil {
			return
		}
		var pvs []*lvm2.PV
		for _, gp := range g.PVs {
			pvs = append(pvs, &lvm2.PV{Dev: hollow(1 << 62), Len: 1 << 62, UUID: gp.UUID, MDAs: []lvm2.MDA{{Text: b}}})
		}
		groups, _ := lvm2.Assemble(pvs)
		for _, g := range groups {
			for _, lv := range g.LVs {
				d, err := g.Open(lv)
				if err != nil || d.Size() == 0 {
					continue
				}
				buf := make([]byte, min(d.Size(), 4096))
				for _, off := range []int64{0, d.Size() / 2, d.Size() - int64(len(buf))} {
					n := min(int64(len(buf)), d.Size()-off)
					if _, err := d.ReadAt(buf[:n], off); err != nil {
						t.Fatalf("%s at %d: %v", lv.Name, off, err)
					}
				}
			}
			if _, err := lvm2.ParseGroup(without(g)); err != nil {
				t.Fatalf("the text without snapshots: %v", err)
			}
			renewAny(t, g)
			for _, s := range g.Snapshots {
				e := g.Edit()
				if err := e.Revert(s); err != nil {
					continue
				}
				if _, err := lvm2.ParseGroup(e.Text("fuzz")); err != nil {
					t.Fatalf("the text with %s put back: %v", s.Origin.Name, err)
				}
			}
		}
	})
}

// hollow is a device of zeroes of any size.
type hollow int64

func (h hollow) Size() int64                        { return int64(h) }
func (h hollow) Sync() error                        { return nil }
func (h hollow) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (h hollow) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	return len(p), lun.CheckRange(off, int64(len(p)), int64(h))
}

// FuzzPV: label, PV header and metadata area of any disk. The checksums are
// made to hold, so that the fuzzer gets behind them.
func FuzzPV(f *testing.F) {
	for _, name := range []string{"lvm-o1-thick-4k", "lvm-o4-a"} {
		f.Add([]byte(image(f, name)[:16384]), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, sums bool) {
		if len(b) < mda+512 {
			return
		}
		m := memory(bytes.Clone(b))
		if sums {
			relabel(m)
			remda(m)
		}
		pv, err := lvm2.ReadPV(m, 0, m.Size())
		if err != nil {
			var fe *lun.FormatError
			if !errors.Is(err, lun.ErrNotFormat) && !errors.As(err, &fe) {
				t.Fatalf("error %v is neither ErrNotFormat nor a FormatError", err)
			}
			return
		}
		lvm2.Assemble([]*lvm2.PV{pv})
		relabelAny(t, m, pv)
	})
}

// TestTextsOfOnePVAreBounded together: a label may name one area of 20 MiB many
// times.
func TestTextsOfOnePVAreBounded(t *testing.T) {
	m, le := image(t, "lvm-o1-thick-4k"), binary.LittleEndian
	clear(m[mda+512:])
	const size, text = 60 << 20, 20 << 20
	at := label + 32 + 40 + 32 // the list of metadata areas
	for range 3 {
		le.PutUint64(m[at:], mda)
		le.PutUint64(m[at+8:], size)
		at += 16
	}
	clear(m[at : at+16])
	le.PutUint64(m[mda+32:], size)
	le.PutUint64(m[mda+40:], 512)
	le.PutUint64(m[mda+48:], text)
	le.PutUint32(m[mda+56:], sum(make([]byte, text)))
	relabel(m)
	remda(m)
	pv := readPV(t, m)
	if len(pv.MDAs) != 3 || len(pv.Damage) != 2 || !strings.Contains(pv.Damage[0].Error(), "on one physical volume") {
		t.Errorf("%d areas, damage %v", len(pv.MDAs), pv.Damage)
	}
}
