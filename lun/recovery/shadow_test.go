package recovery_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/store/vss"
)

// partitioned is a disk with an MBR and a partition for each content, 1 MiB apart.
func partitioned(contents ...[]byte) []byte {
	const mib = 1 << 20
	disk := make([]byte, mib)
	disk[510], disk[511] = 0x55, 0xAA
	for i, c := range contents {
		e := disk[446+16*i:]
		e[4] = 0x07
		binary.LittleEndian.PutUint32(e[8:], uint32(len(disk)/512))
		binary.LittleEndian.PutUint32(e[12:], uint32(len(c)/512))
		disk = append(disk, c...)
		disk = append(disk, make([]byte, mib-len(disk)%mib)...)
	}
	return disk
}

// TestShadowCopies: those of two partitions, by name, by GUID, as a view.
func TestShadowCopies(t *testing.T) {
	a, b := luntest.Image(t, "vss-synth-14"), luntest.Image(t, "vss-synth-3")
	disk := partitioned(a, b)
	c := probe(t, open.Source{Name: "disk", Device: luntest.ReadOnly(disk)})
	var names []string
	for _, v := range c.Volumes() {
		names = append(names, v.Name)
	}
	if want := []string{"disk", "p1", "p2", "p1/vss1", "p2/vss1", "p2/vss2", "p2/vss3", "p2/vss4"}; !slices.Equal(names, want) {
		t.Fatalf("volumes %v, want %v", names, want)
	}
	if _, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{ReadOnly: true}); !errors.Is(err, recovery.ErrChoice) {
		t.Errorf("without a choice: %v", err)
	}
	const id = "{5AA6F4CF-D1B2-2CAF-9D58-46DF428F2C7E}" // p2's oldest, as Windows writes it
	if _, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{ReadOnly: true, Snapshots: []string{id, "p2/vss2"}}); !errors.Is(err, recovery.ErrChoice) {
		t.Errorf("two of one volume: %v", err)
	}
	v, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{ReadOnly: true, Snapshots: []string{id, "p1/vss1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	got := content(t, v.Clean[0])
	luntest.CheckMap(t, v.Clean[0], 0, v.Clean[0].Size())
	want := bytes.Clone(disk)
	for part, name := range map[int64]string{1 << 20: "p1/vss1", 1<<20 + int64(len(a)) + 1<<20: "p2/vss1"} {
		vol, err := c.Volume(name)
		if err != nil {
			t.Fatal(err)
		}
		d, err := vol.Open()
		if err != nil {
			t.Fatal(err)
		}
		copy(want[part:], content(t, d))
		clear(want[part+vss.CatalogField:][:8])
		if _, err := vss.Read(luntest.ReadOnly(got[part : part+d.Size()])); err != nil {
			t.Errorf("%s: what was recovered: %v", name, err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the view is not its partitions' shadow copies")
	}
	if len(v.Volumes) != 2 || v.Volumes[0].Volume != "p2" || len(v.Volumes[0].Discarded) != 3 || v.Volumes[0].Preserved == 0 {
		t.Errorf("%+v", v.Volumes)
	}
	changed, err := v.Rewritten()
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(disk); off += 512 {
		if bytes.Equal(disk[off:off+512], got[off:off+512]) {
			continue
		}
		in := false
		for _, e := range changed[0] {
			in = in || e.Off <= int64(off) && int64(off) < e.Off+e.Len
		}
		if !in {
			t.Fatalf("byte %d differs and is not told to", off)
		}
	}
}

// TestShadowReport is what people and programs get to see, also of damaged ones.
func TestShadowReport(t *testing.T) {
	img := bytes.Clone(luntest.Image(t, "vss-synth-3"))
	r, err := recovery.Inspect(context.Background(), probe(t, open.Source{Name: "disk", Device: luntest.ReadOnly(img)}))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Keepers) != 1 || r.Keepers[0].Volume != "disk" || len(r.Keepers[0].Snapshots) != 4 || len(r.Findings) != 0 {
		t.Fatalf("%+v", r)
	}
	s := r.Keepers[0].Snapshots[1]
	if s.Volume != "vss2" || s.UUID != "dd70ba96-4f45-f5e3-b90b-d3b3ac09c97c" || s.State != recovery.Valid || s.Exceptions == 0 || s.Created.IsZero() || s.Kind != "vss" || s.Origin != "disk" {
		t.Errorf("%+v", s)
	}
	want := []recovery.Expected{{Volume: r.Keepers[0].UUID, Snapshot: s.UUID}, {Volume: s.Set, Snapshot: s.UUID}}
	verify := func() []recovery.Verdict {
		c, err := open.Probe(context.Background(), open.Source{Name: "disk", Device: luntest.ReadOnly(img)})
		if err != nil {
			t.Fatal(err)
		}
		got, err := recovery.Verify(context.Background(), c, want)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := verify(); !got[0].OK || got[1].OK || !got[1].Found {
		t.Errorf("%+v", got)
	}
	// The store headers are gone.
	for off := 0; off < len(img); off += 16384 {
		if bytes.HasPrefix(img[off:], img[0x1E00:0x1E10]) && img[off+20] == 4 {
			img[off] ^= 1
		}
	}
	if got := verify(); got[0].OK {
		t.Errorf("of damaged stores: %+v", got)
	}
}
