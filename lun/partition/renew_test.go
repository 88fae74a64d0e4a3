package partition_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/partition"
)

// other makes another identifier of the same form.
func other(old string) string {
	h := fnv.New128a()
	h.Write([]byte(old))
	s := hex.EncodeToString(h.Sum(nil))
	if len(old) == 8 {
		return s[:8]
	}
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// renewed is a copy of the disk with the patches on it.
func renewed(t testing.TB, d *memory) *memory {
	t.Helper()
	table, err := partition.Read(d)
	if err != nil {
		t.Fatal(err)
	}
	patches, err := table.Renew(d, other)
	if err != nil {
		t.Fatal(err)
	}
	out := &memory{bytes.Clone(d.b), d.sector}
	for _, p := range patches {
		copy(out.b[p.Off:], p.Data)
	}
	return out
}

// verified wants the partitioning tools that there are to find nothing wrong.
func verified(t *testing.T, d *memory, sgdiskToo bool) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, d.b, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"sfdisk", "--verify", path}, {"sgdisk", "-v", path}} {
		tool := "/usr/sbin/" + args[0]
		if !exists(tool) {
			t.Logf("%s is not there: make deps", tool)
			continue
		}
		if args[0] == "sgdisk" && !sgdiskToo {
			continue
		}
		out, err := exec.Command(tool, args[1:]...).CombinedOutput()
		if err != nil || args[0] == "sgdisk" && !bytes.Contains(out, []byte("No problems found")) || bytes.Contains(out, []byte("corrupt")) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

// TestRenew: every identifier is another one, and nothing else is. sfdisk and
// sgdisk check what comes of it.
func TestRenew(t *testing.T) {
	for _, tc := range []struct {
		name   string
		sector int
		script string
	}{
		{"gpt", 512, gptScript}, {"gpt of 4096-byte sectors", 4096, gptScript}, {"mbr with extended", 512, mbrScript},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, want := disk(t, tc.sector, tc.script)
			before, err := partition.Read(d)
			if err != nil {
				t.Fatal(err)
			}
			n := renewed(t, d)
			got, err := partition.Read(n)
			if err != nil || len(got.Damage) > 0 {
				t.Fatalf("%v, damage %v", err, got.Damage)
			}
			if partition.NoID(before.UUID) || got.UUID != other(before.UUID) {
				t.Errorf("the disk is %s, was %s, want %s", got.UUID, before.UUID, other(before.UUID))
			}
			for i, p := range before.Partitions {
				if got.Scheme == partition.GPT {
					p.UUID = other(p.UUID)
				}
				if got.Partitions[i] != p {
					t.Errorf("partition %+v, want %+v", got.Partitions[i], p)
				}
			}
			if len(got.Partitions) != len(want) {
				t.Errorf("%d partitions, want %d", len(got.Partitions), len(want))
			}
			verified(t, n, got.Scheme == partition.GPT && tc.sector == 512)
			// Without its identifiers, the copy is the disk.
			changed := 0
			for i := range n.b {
				if n.b[i] != d.b[i] {
					changed++
				}
			}
			if most := 2 * (4 + 4 + 16 + 16*len(want)); changed > most {
				t.Errorf("%d bytes changed, at most %d are identifiers and checksums", changed, most)
			}
		})
	}
}

// TestRenewRepairsNothing: of two copies, the damaged one is what it was.
func TestRenewRepairsNothing(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(b []byte)
		same   func(b []byte) []byte // what stays as it was
	}{
		{"primary header", func(b []byte) { b[512+60] ^= 1 }, func(b []byte) []byte { return b[:34*512] }},
		{"primary entries", func(b []byte) { b[1024+3] ^= 1 }, func(b []byte) []byte { return b[:34*512] }},
		{"backup header", func(b []byte) { b[len(b)-512+60] ^= 1 }, func(b []byte) []byte { return b[len(b)-33*512:] }},
		{"backup missing", func(b []byte) { clear(b[len(b)-512:]) }, func(b []byte) []byte { return b[len(b)-33*512:] }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, _ := disk(t, 512, gptScript)
			tc.damage(d.b)
			before, err := partition.Read(d)
			if err != nil {
				t.Fatal(err)
			}
			n := renewed(t, d)
			got, err := partition.Read(n)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Damage) != 1 || got.Damage[0].Error() != before.Damage[0].Error() {
				t.Errorf("damage %v, was %v", got.Damage, before.Damage)
			}
			if !bytes.Equal(tc.same(d.b), tc.same(n.b)) {
				t.Error("the damaged copy was written to")
			}
			if got.UUID != other(before.UUID) {
				t.Errorf("the disk is %s", got.UUID)
			}
		})
	}
	t.Run("copies that differ", func(t *testing.T) {
		d, _ := disk(t, 512, gptScript)
		old, _ := disk(t, 512, gptScript) // of other GUIDs
		copy(d.b[len(d.b)-33*512:], old.b[len(old.b)-33*512:])
		was, err := partition.Read(d)
		if err != nil || len(was.Damage) != 1 {
			t.Fatalf("%v, damage %v", err, was.Damage)
		}
		n := renewed(t, d)
		got, err := partition.Read(n)
		if err != nil || len(got.Damage) != 1 || got.UUID != other(was.UUID) {
			t.Errorf("%v, %s, damage %v", err, got.UUID, got.Damage)
		}
		clear(n.b[512:1024])
		if got, err = partition.Read(n); err != nil || got.UUID == other(was.UUID) || len(got.Partitions) != 3 {
			t.Errorf("the backup afterwards: %v, %v", err, got)
		}
	})
}

func TestRenewLeavesNoIdentifiersAlone(t *testing.T) {
	d, _ := disk(t, 512, mbrScript)
	clear(d.b[440:444])
	if n := renewed(t, d); !bytes.Equal(n.b, d.b) {
		t.Error("a disk without a signature was given one")
	}
	g := gptDisk(t, func(h, entries []byte) { clear(h[56:72]); clear(entries[16:32]) })
	got, err := partition.Read(renewed(t, g))
	if err != nil || !partition.NoID(got.UUID) || !partition.NoID(got.Partitions[0].UUID) || partition.NoID(got.Partitions[1].UUID) {
		t.Errorf("%v: %+v", err, got)
	}
}

// TestRenewIsRefused where it would write into a partition, or give nonsense.
func TestRenewIsRefused(t *testing.T) {
	d := gptDisk(t, func(_, entries []byte) { binary.LittleEndian.PutUint64(entries[32:], 3) }) // StartingLBA
	table, err := partition.Read(d)
	if err != nil {
		t.Fatal(err)
	}
	var fe *lun.FormatError
	if _, err := table.Renew(d, other); !errors.As(err, &fe) || !strings.Contains(fe.Reason, "lie in partition 1") {
		t.Errorf("entries in a partition: %v", err)
	}
	for _, script := range []string{gptScript, mbrScript} {
		d, _ := disk(t, 512, script)
		table, err := partition.Read(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := table.Renew(d, func(string) string { return "nonsense" }); err == nil {
			t.Error("nonsense for an identifier was taken")
		}
	}
}

// renewAny gives a table that a fuzzer made other identifiers: patches lie on the
// disk and apart, and the table that is read then is the same but for them.
func renewAny(t *testing.T, d *memory, table *partition.Table) {
	t.Helper()
	patches, err := table.Renew(d, other)
	if err != nil {
		var fe *lun.FormatError
		if !errors.As(err, &fe) {
			t.Fatalf("error %v is no FormatError", err)
		}
		return
	}
	n := &memory{bytes.Clone(d.b), d.sector}
	for _, p := range patches {
		if lun.CheckRange(p.Off, int64(len(p.Data)), d.Size()) != nil {
			t.Fatalf("a patch of %d bytes at %d of %d", len(p.Data), p.Off, d.Size())
		}
		copy(n.b[p.Off:], p.Data)
	}
	got, err := partition.Read(n)
	if err != nil {
		t.Fatalf("the renewed table: %v", err)
	}
	if len(got.Partitions) != len(table.Partitions) || len(got.Damage) != len(table.Damage) {
		t.Fatalf("it is %+v, was %+v", got, table)
	}
	for i, p := range table.Partitions {
		if !partition.NoID(p.UUID) {
			p.UUID = other(p.UUID)
		}
		if got.Partitions[i] != p {
			t.Fatalf("partition %+v, want %+v", got.Partitions[i], p)
		}
	}
}
