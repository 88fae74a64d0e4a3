package recovery_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// emptied takes the group from a PV, as vgremove does.
func emptied(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[652:], 0) // flags of the PV header's extension
	le.PutUint32(b[512+16:], lvmSum(b[512+20:1024]))
	clear(b[4096+40 : 4096+64]) // the text's place
	le.PutUint32(b[4096:], lvmSum(b[4096+4:4096+512]))
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

// TestNewIdentityOfDamagedDisks puts wrong bytes into tables, labels and texts,
// some with checksums that hold: it ends with a view that reads, and tells the
// disk apart, or with an error that names the place.
func TestNewIdentityOfDamagedDisks(t *testing.T) {
	for _, name := range []string{"lvm-o1-thick-4k", "lvm-o2-thick-gpt-crash", "lvm-o3-thin"} {
		work := bytes.Clone(luntest.Image(t, name))
		start := pvStart[name]
		spots := []int64{440, 512, 1024, int64(len(work)) - 512, int64(len(work)) - 33*512, start + 512, start + 4096, start + 4096 + 512}
		r := rand.New(rand.NewPCG(6, 7))
		opened := 0
		for range 150 {
			off := spots[r.IntN(len(spots))] + r.Int64N(200)
			old := bytes.Clone(work[:start+16384])
			end := bytes.Clone(work[len(work)-34*512:])
			if off+8 > int64(len(work)) {
				continue
			}
			v := []uint64{0, 1, 3, 1 << 31, 1<<64 - 1, uint64(off), uint64(off) / 512, r.Uint64()}[r.IntN(8)]
			binary.LittleEndian.PutUint64(work[off&^7:], v)
			if r.IntN(2) == 0 {
				sumAll(work, start)
			}
			if newIdentityOf(t, work) {
				opened++
			}
			copy(work, old)
			copy(work[len(work)-34*512:], end)
		}
		if opened == 0 || opened == 150 {
			t.Errorf("%s: %d of 150 damaged disks opened", name, opened)
		}
	}
}

// sumAll makes checksums hold: of both GPT headers, the label and the header of
// the metadata area.
func sumAll(b []byte, pv int64) {
	le := binary.LittleEndian
	for _, h := range [][]byte{b[512:1024], b[len(b)-512:]} {
		if pv > 0 {
			clear(h[16:20])
			le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		}
	}
	label, area := b[pv+512:][:512], b[pv+4096:][:512]
	le.PutUint32(label[16:], lvmSum(label[20:]))
	le.PutUint32(area, lvmSum(area[4:]))
}

// newIdentityOf reports whether the disk can be had with a new identity.
func newIdentityOf(t *testing.T, b []byte) bool {
	t.Helper()
	c, err := open.Probe(context.Background(), open.Source{Name: "damaged", Device: luntest.ReadOnly(b)})
	if err != nil {
		t.Fatal(err)
	}
	var choose []string
	for _, g := range c.Groups {
		for _, s := range g.Snapshots {
			choose = []string{s.COW.UUID}
		}
	}
	v, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{Snapshots: choose, ReadOnly: true, NewIdentity: "one"})
	var fe *lun.FormatError
	switch {
	case err == nil:
	case errors.As(err, &fe), errors.Is(err, recovery.ErrNoSnapshot), errors.Is(err, recovery.ErrChoice), errors.Is(err, open.ErrNotFound):
		return false
	default:
		t.Fatalf("an error of no kind: %v", err)
	}
	got := shown(t, v.Clean)
	is := identifiers(got)
	for what, id := range identifiers(c) {
		if strings.Trim(id, "0-") != "" && is[what] == id {
			t.Errorf("%s is still %s", what, id)
		}
	}
	return true
}

func lvmSum(b []byte) uint32 { return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b) }

func TestNewIdentityIsRefused(t *testing.T) {
	lone := content(t, images(t, "lvm-o4-b")[0].Device)
	emptied(lone)
	binary.LittleEndian.PutUint32(lone[652:], 1) // in use, it says
	binary.LittleEndian.PutUint32(lone[512+16:], lvmSum(lone[512+20:1024]))
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
