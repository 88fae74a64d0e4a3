package dmthin_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/store/dmthin"
)

// dump is what thin_dump prints and thin_restore reads.
type dump struct {
	XMLName     xml.Name     `xml:"superblock"`
	UUID        string       `xml:"uuid,attr"`
	Time        uint32       `xml:"time,attr"`
	Transaction uint64       `xml:"transaction,attr"`
	Flags       uint32       `xml:"flags,attr"`
	Version     uint32       `xml:"version,attr"`
	Block       int64        `xml:"data_block_size,attr"`
	DataBlocks  uint64       `xml:"nr_data_blocks,attr"`
	Devices     []dumpDevice `xml:"device"`
}

type dumpDevice struct {
	ID          uint64      `xml:"dev_id,attr"`
	Mapped      uint64      `xml:"mapped_blocks,attr"`
	Transaction uint64      `xml:"transaction,attr"`
	Created     uint32      `xml:"creation_time,attr"`
	Snapshotted uint32      `xml:"snap_time,attr"`
	Singles     []dumpOne   `xml:"single_mapping"`
	Ranges      []dumpRange `xml:"range_mapping"`
}

type dumpOne struct {
	Origin uint64 `xml:"origin_block,attr"`
	Data   uint64 `xml:"data_block,attr"`
	Time   uint32 `xml:"time,attr"`
}

type dumpRange struct {
	Origin uint64 `xml:"origin_begin,attr"`
	Data   uint64 `xml:"data_begin,attr"`
	Len    uint64 `xml:"length,attr"`
	Time   uint32 `xml:"time,attr"`
}

func (d *dumpDevice) mappings() map[uint64]uint64 {
	m := map[uint64]uint64{}
	for _, s := range d.Singles {
		m[s.Origin] = s.Data
	}
	for _, r := range d.Ranges {
		for i := range r.Len {
			m[r.Origin+i] = r.Data + i
		}
	}
	return m
}

// tool finds a program of thin-provisioning-tools, or skips the test.
func tool(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		p = "/usr/sbin/" + name
		if _, err := os.Stat(p); err != nil {
			t.Skipf("needs %s from the Debian package thin-provisioning-tools", name)
		}
	}
	return p
}

func run(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(program, args...).Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			out = append(out, ee.Stderr...)
		}
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return out
}

// agrees compares all that a pool tells with a dump of it.
func agrees(t *testing.T, meta memory, want *dump) {
	t.Helper()
	data := numbered(int64(want.DataBlocks) * want.Block * 512)
	p, err := dmthin.Open(meta, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p.Transaction != want.Transaction || p.Time != want.Time || p.Version != want.Version || p.BlockSize != want.Block*512 || p.Data.Total != want.DataBlocks {
		t.Errorf("superblock %+v, thin_dump says %d %d %d %d %d", p, want.Transaction, want.Time, want.Version, want.Block, want.DataBlocks)
	}
	i := 0
	err = p.Devices(func(d dmthin.Details) error {
		if i >= len(want.Devices) {
			return fmt.Errorf("device %d is not in thin_dump's output", d.ID)
		}
		w := &want.Devices[i]
		i++
		if (d != dmthin.Details{ID: w.ID, Mapped: w.Mapped, Transaction: w.Transaction, Created: w.Created, Snapshotted: w.Snapshotted}) {
			t.Errorf("device %+v, thin_dump says %d %d %d %d %d", d, w.ID, w.Mapped, w.Transaction, w.Created, w.Snapshotted)
		}
		m := w.mappings()
		th, err := p.Thin(d.ID, 1<<50, nil)
		if err != nil {
			return err
		}
		got := map[uint64]uint64{}
		err = th.Ranges(0, 1<<50, func(r dmthin.Range) error {
			for b := int64(0); b < r.Len; b += p.BlockSize {
				got[uint64((r.Off+b)/p.BlockSize)] = uint64((r.At + b) / p.BlockSize)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(got) != len(m) {
			t.Errorf("device %d: %d mappings, thin_dump has %d", d.ID, len(got), len(m))
		}
		for k, v := range m {
			if got[k] != v {
				t.Fatalf("device %d, block %d: data block %d, thin_dump says %d", d.ID, k, got[k], v)
			}
			at, _, mapped, err := th.Lookup(int64(k) * p.BlockSize)
			if err != nil || !mapped || at != int64(v)*p.BlockSize {
				t.Fatalf("device %d, block %d: lookup says %d %v %v", d.ID, k, at, mapped, err)
			}
		}
		return nil
	})
	if err != nil || i != len(want.Devices) {
		t.Errorf("%d devices of %d: %v", i, len(want.Devices), err)
	}
}

// TestRestoredPools has thin_restore write pools: sparse, dense, fragmented, of
// some block sizes, and compares each mapping.
func TestRestoredPools(t *testing.T) {
	restore, check := tool(t, "thin_restore"), tool(t, "thin_check")
	for seed, tc := range []struct {
		block    int64 // sectors
		version  uint32
		blocks   uint64 // of the data device
		devices  int
		mappings int // of each
	}{{128, 2, 640, 3, 200}, {1024, 1, 50_000, 2, 12_000}, {384, 2, 1000, 300, 3}, {2097152, 2, 5000, 1, 5000}} {
		t.Run(fmt.Sprint(tc), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(uint64(seed), 7))
			want := &dump{Time: 9, Transaction: rnd.Uint64() >> 1, Version: tc.version, Block: tc.block, DataBlocks: tc.blocks}
			next := rnd.Perm(int(tc.blocks))
			for i := range tc.devices {
				d := dumpDevice{ID: uint64(i*7 + 1), Transaction: uint64(i), Created: uint32(i % 9), Snapshotted: 9}
				at := uint64(0)
				for n := 0; n < tc.mappings && len(next) > 0; n++ {
					if rnd.IntN(3) == 0 {
						at += uint64(rnd.IntN(1000))
					}
					d.Singles = append(d.Singles, dumpOne{at, uint64(next[0]), uint32(rnd.IntN(9))})
					at, next = at+1, next[1:]
				}
				d.Mapped = uint64(len(d.Singles))
				want.Devices = append(want.Devices, d)
			}
			text, err := xml.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			in, out := filepath.Join(dir, "in.xml"), filepath.Join(dir, "meta")
			if err := errors.Join(os.WriteFile(in, text, 0o600), os.WriteFile(out, make([]byte, 8<<20), 0o600)); err != nil {
				t.Fatal(err)
			}
			run(t, restore, "-i", in, "-o", out)
			run(t, check, out)
			meta, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			agrees(t, meta, want)
		})
	}
}

// TestKernelsPool compares the metadata that a kernel wrote, as it lies in the
// image, with what thin_dump makes of it.
func TestKernelsPool(t *testing.T) {
	dumper := tool(t, "thin_dump")
	// pool_tmeta: two extents of 1 MiB from the 42nd, the first begins at 1 MiB.
	meta := luntest.Image(t, "lvm-o3-thin")[43<<20 : 45<<20]
	path := filepath.Join(t.TempDir(), "meta")
	if err := os.WriteFile(path, meta, 0o600); err != nil {
		t.Fatal(err)
	}
	var want dump
	if err := xml.NewDecoder(bytes.NewReader(run(t, dumper, path))).Decode(&want); err != nil {
		t.Fatal(err)
	}
	if len(want.Devices) != 2 || want.Devices[0].Mapped != 307 {
		t.Fatalf("thin_dump says %+v", want)
	}
	agrees(t, meta, &want)
}
