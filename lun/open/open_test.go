package open_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
)

type memory = luntest.ReadOnly

func image(t testing.TB, name string) memory { return luntest.Image(t, name) }

func probe(t testing.TB, disks ...memory) *open.Contents {
	t.Helper()
	var s []open.Source
	for _, d := range disks {
		s = append(s, open.Source{Name: "disk.img", Device: d})
	}
	c, err := open.Probe(context.Background(), s...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func names(c *open.Contents) string {
	var out []string
	for _, v := range c.Volumes() {
		out = append(out, v.Name)
	}
	return strings.Join(out, " ")
}

func TestNames(t *testing.T) {
	o2, o3 := image(t, "lvm-o2-thick-gpt-crash"), image(t, "lvm-o3-thin")
	if got, want := names(probe(t, o2)), "disk p1 p2 vgo2/data vgo2/gap vgo2/snap1 vgo2/snap2"; got != want {
		t.Errorf("volumes %q, want %q", got, want)
	}
	c := probe(t, o2, o3)
	if got, want := names(c), "1:disk 1:p1 1:p2 2:disk vgo2/data vgo2/gap vgo2/snap1 vgo2/snap2 vgo3/pool vgo3/tvol vgo3/tsnap"; got != want {
		t.Errorf("volumes %q, want %q", got, want)
	}
	p, err := c.Volume("1:p2")
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8)
	if _, err := d.ReadAt(got, 512); err != nil || string(got) != "LABELONE" {
		t.Errorf("sector 1 of the partition is %q (%v)", got, err)
	}
	if _, err := d.ReadAt(got, d.Size()-4); !errors.Is(err, lun.ErrOutOfRange) {
		t.Errorf("reading over a partition's end: %v", err)
	}
}

func TestUUIDsAreNames(t *testing.T) {
	c := probe(t, image(t, "lvm-o1-thick-4k"))
	for name, want := range map[string]string{
		"8RfV23-8Il5-oMwk-DYpQ-ieLK-Y8TD-BfAKuq": "vgo1/snap", // as lvs prints it
		"8RfV238Il5oMwkDYpQieLKY8TDBfAKuq":       "vgo1/snap",
		"jHsbNi-ta5W-XVme-x0sN-TSdI-2Wzs-2PBB04": "vgo1/snap", // its record
		"kkPF5M-hrzR-ktKo-a41t-nBE8-3et9-SMWWUs": "vgo1/root",
		"KKPF5M-HRZR-KTKO-A41T-NBE8-3ET9-SMWWUS": "", // case matters
		"vgo1/snapshot0":                         "",
		"":                                       "",
	} {
		v, err := c.Volume(name)
		switch {
		case want == "" && !errors.Is(err, open.ErrNotFound):
			t.Errorf("%q: %v, want ErrNotFound", name, err)
		case want != "" && (err != nil || v.Name != want):
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
}

// TestTwoGroupsOfOneName: guests are clones of a template more often than not.
func TestTwoGroupsOfOneName(t *testing.T) {
	a := image(t, "lvm-o1-thick-4k")
	b := renamed(t, a, map[string]string{"o0SVUF": "o0SVUX", "KcP7mB": "KcP7mX", "kkPF5M": "kkPF5X", "8RfV23": "8RfV2X"})
	c := probe(t, a, b)
	if len(c.Damage) > 0 || len(c.Groups) != 2 {
		t.Fatalf("%d groups, damage %v", len(c.Groups), c.Damage)
	}
	if _, err := c.Volume("vgo1/root"); !errors.Is(err, open.ErrNotFound) || !strings.Contains(err.Error(), "kkPF5X-") {
		t.Errorf("an ambiguous name: %v, want the UUIDs to choose from", err)
	}
	if v, err := c.Volume("kkPF5X-hrzR-ktKo-a41t-nBE8-3et9-SMWWUs"); err != nil || v.Name != "vgo1/root" {
		t.Errorf("by UUID: %v", err)
	}
}

// renamed replaces strings of equal length in label and metadata of a
// whole-disk PV and sums both again.
func renamed(t *testing.T, m memory, names map[string]string) memory {
	t.Helper()
	c := memory(bytes.Clone(m))
	const mda = 4096
	le := binary.LittleEndian
	text := c[mda+le.Uint64(c[mda+40:]):][:le.Uint64(c[mda+48:])]
	for old, now := range names {
		for _, part := range [][]byte{c[512:1024], text} {
			copy(part, bytes.ReplaceAll(part, []byte(old), []byte(now)))
		}
	}
	le.PutUint32(c[mda+56:], crc(text))
	le.PutUint32(c[mda:], crc(c[mda+4:mda+512]))
	le.PutUint32(c[512+16:], crc(c[512+20:1024]))
	return c
}

// crc is LVM's checksum, bit by bit.
func crc(b []byte) uint32 {
	r := uint32(0xf597a6cf)
	for _, c := range b {
		r ^= uint32(c)
		for range 8 {
			r = r>>1 ^ 0xEDB88320&-(r&1)
		}
	}
	return r
}

func TestFileRefusesWhatIsNoDevice(t *testing.T) {
	if _, err := open.File(t.TempDir()); err == nil {
		t.Error("a directory was opened")
	}
	if _, err := open.File("/dev/null"); err == nil || !strings.Contains(err.Error(), "/dev/null") {
		t.Errorf("a character device: %v", err)
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := open.File(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.WriteAt([]byte{1}, 0); !errors.Is(err, lun.ErrReadOnly) {
		t.Errorf("write: %v", err)
	}
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(make([]byte, 4096), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that became shorter: %v", err)
	}
}
