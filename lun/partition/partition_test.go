package partition_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/partition"
)

// memory is a disk of the given logical sector size.
type memory struct {
	b      []byte
	sector int
}

func (m *memory) Size() int64                        { return int64(len(m.b)) }
func (m *memory) Sync() error                        { return nil }
func (m *memory) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (m *memory) Blocks() (int, int)                 { return m.sector, m.sector }
func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	return copy(p, m.b[off:]), nil
}

const diskSize = 64 << 20

// disk makes a disk by a script of sfdisk's and returns it with what fdisk
// says of it. fdisk loads such scripts too (command I), and unlike sfdisk 2.38
// it lets us choose the sector size.
func disk(t testing.TB, sector int, script string) (*memory, []partition.Partition) {
	t.Helper()
	tool, err := exec.LookPath("fdisk")
	if err != nil {
		if tool = "/usr/sbin/fdisk"; !exists(tool) {
			t.Skip("needs fdisk from the Debian package fdisk")
		}
	}
	dir := t.TempDir()
	path, layout := filepath.Join(dir, "disk"), filepath.Join(dir, "layout")
	err = errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, diskSize), os.WriteFile(layout, []byte(script), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	fdisk := func(stdin string, args ...string) string {
		cmd := exec.Command(tool, append([]string{"-b", fmt.Sprint(sector)}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("fdisk %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	fdisk("I\n"+layout+"\nw\n", path)
	columns := "Device,Start,Sectors,Id"
	if strings.Contains(script, "gpt") {
		columns = "Device,Start,Sectors,Type-UUID,UUID,Name"
	}
	var want []partition.Partition
	for line := range strings.Lines(fdisk("", "-l", "-o", columns, path)) {
		var p partition.Partition
		if !strings.HasPrefix(line, path) || strings.Count(line, ":") > 0 {
			continue
		}
		f := append(strings.Fields(strings.TrimPrefix(line, path)), "", "")
		for _, into := range []struct {
			s string
			v any
		}{{f[0], &p.Number}, {f[1], &p.Off}, {f[2], &p.Len}} {
			if _, err := fmt.Sscan(into.s, into.v); err != nil {
				t.Fatalf("fdisk says %q: %v", line, err)
			}
		}
		p.Off, p.Len = p.Off*int64(sector), p.Len*int64(sector)
		if p.Type = strings.ToLower(f[3]); len(p.Type) == 1 {
			p.Type = "0" + p.Type
		}
		p.UUID, p.Name = strings.ToLower(f[4]), f[5]
		if p.Type != "05" { // the extended partition is no volume
			want = append(want, p)
		}
	}
	if len(want) == 0 {
		t.Fatal("fdisk made no partitions")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return &memory{b, sector}, want
}

func exists(p string) bool { _, err := os.Stat(p); return err == nil }

const (
	gptScript = "label: gpt\nsize=8M, name=boot\nsize=8M, type=lvm, name=\"größer\"\nsize=2M\n"
	mbrScript = "label: dos\nsize=8M, type=83, bootable\nsize=32M, type=5\nsize=4M, type=8e\nsize=4M\nsize=4M\nsize=8M, type=83\n"
)

func TestReadsWhatFdiskWrote(t *testing.T) {
	for _, tc := range []struct {
		name   string
		sector int
		scheme partition.Scheme
		script string
	}{
		{"gpt", 512, partition.GPT, gptScript},
		{"gpt of 4096-byte sectors", 4096, partition.GPT, gptScript},
		{"mbr with extended", 512, partition.MBR, mbrScript},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, want := disk(t, tc.sector, tc.script)
			for _, announced := range []int{tc.sector, 512} {
				d.sector = announced // a file of a 4Kn disk does not say so
				got, err := partition.Read(d)
				if err != nil {
					t.Fatal(err)
				}
				if got.Scheme != tc.scheme || got.Sector != tc.sector || len(got.Damage) > 0 {
					t.Errorf("table %s of %d, damage %v", got.Scheme, got.Sector, got.Damage)
				}
				if fmt.Sprint(sorted(got.Partitions)) != fmt.Sprint(sorted(want)) {
					t.Errorf("partitions\n%+v, fdisk says\n%+v", got.Partitions, want)
				}
			}
		})
	}
}

func sorted(ps []partition.Partition) map[int]partition.Partition {
	m := make(map[int]partition.Partition)
	for _, p := range ps {
		m[p.Number] = p
	}
	return m
}

// gptDisk changes a whole GPT and sums it again, so that only the change is
// wrong. Both copies get it.
func gptDisk(t testing.TB, change func(header, entries []byte)) *memory {
	d, _ := disk(t, 512, gptScript)
	for _, at := range []int{512, len(d.b) - 512} {
		h := d.b[at : at+512]
		le := binary.LittleEndian
		e := d.b[le.Uint64(h[72:])*512:][:128*128]
		change(h, e)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(e))
		clear(h[16:20])
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	}
	return d
}

func mbrDisk(t testing.TB, change func(b []byte)) *memory {
	d, _ := disk(t, 512, mbrScript)
	change(d.b)
	return d
}

func TestDamageIsReportedNotGuessed(t *testing.T) {
	le := binary.LittleEndian
	ebr := func(b []byte) []byte { return b[int(le.Uint32(b[446+16+8:]))*512:] }
	for _, tc := range []struct {
		name  string
		make  func(t testing.TB) *memory
		field string
	}{
		{"both headers damaged", func(t testing.TB) *memory {
			d, _ := disk(t, 512, gptScript)
			d.b[512+60] ^= 1
			d.b[len(d.b)-512+60] ^= 1
			return d
		}, "HeaderCRC32"},
		{"both headers gone", func(t testing.TB) *memory {
			d, _ := disk(t, 512, gptScript)
			clear(d.b[512:1024])
			clear(d.b[len(d.b)-512:])
			return d
		}, "Signature"},
		{"protective MBR gone", func(t testing.TB) *memory {
			d, _ := disk(t, 512, gptScript)
			clear(d.b[:512])
			return d
		}, "protective MBR"},
		{"entry beyond the end", func(t testing.TB) *memory {
			return gptDisk(t, func(_, e []byte) { le.PutUint64(e[40:], 1<<40) })
		}, "EndingLBA"},
		{"entry ends before it begins", func(t testing.TB) *memory {
			return gptDisk(t, func(_, e []byte) { le.PutUint64(e[40:], 1) })
		}, "EndingLBA"},
		{"entries overlap", func(t testing.TB) *memory {
			return gptDisk(t, func(_, e []byte) { copy(e[128+32:128+48], e[32:48]) })
		}, "partition 2"},
		{"another revision", func(t testing.TB) *memory {
			return gptDisk(t, func(h, _ []byte) { le.PutUint32(h[8:], 0x20000) })
		}, "Revision"},
		{"huge count", func(t testing.TB) *memory {
			return gptDisk(t, func(h, _ []byte) { le.PutUint32(h[80:], 1<<31) })
		}, "NumberOfPartitionEntries"},
		{"odd entry size", func(t testing.TB) *memory {
			return gptDisk(t, func(h, _ []byte) { le.PutUint32(h[84:], 130) })
		}, "SizeOfPartitionEntry"},
		{"disk cut short", func(t testing.TB) *memory {
			d, _ := disk(t, 512, gptScript)
			d.b = d.b[:len(d.b)/2]
			return d
		}, "LastUsableLBA"},
		{"mbr entry beyond the end", func(t testing.TB) *memory {
			return mbrDisk(t, func(b []byte) { le.PutUint32(b[446+12:], 1<<31) })
		}, "sectors"},
		{"mbr status", func(t testing.TB) *memory { return mbrDisk(t, func(b []byte) { b[446] = 0x7f }) }, "status"},
		{"mbr overlap", func(t testing.TB) *memory {
			return mbrDisk(t, func(b []byte) { le.PutUint32(b[446+12:], 40<<11) })
		}, "partition 2"},
		{"mbr entry at sector 0", func(t testing.TB) *memory {
			return mbrDisk(t, func(b []byte) { le.PutUint32(b[446+8:], 0) })
		}, "first LBA"},
		{"ebr circle", func(t testing.TB) *memory {
			return mbrDisk(t, func(b []byte) {
				e := ebr(b)
				le.PutUint32(e[446+16+8:], 0)
			})
		}, "next EBR"},
		{"ebr leads out", func(t testing.TB) *memory {
			return mbrDisk(t, func(b []byte) { le.PutUint32(ebr(b)[446+16+8:], 1<<30) })
		}, "next EBR"},
		{"ebr signature", func(t testing.TB) *memory {
			return mbrDisk(t, func(b []byte) { ebr(b)[510] = 0 })
		}, "signature"},
		{"two extended", func(t testing.TB) *memory {
			return mbrDisk(t, func(b []byte) { b[446+4] = 5 })
		}, "type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := partition.Read(tc.make(t))
			var fe *lun.FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("read %+v, error %v; want a FormatError", got, err)
			}
			if fe.Field != tc.field || fe.Reason == "" {
				t.Errorf("error %q (field %q), want field %q", err, fe.Field, tc.field)
			}
		})
	}
}

// TestOneGoodCopyIsUsed: UEFI 5.3.2 names the backup for this, and the damage
// is still told.
func TestOneGoodCopyIsUsed(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(b []byte) []byte
	}{
		{"primary damaged", func(b []byte) []byte { b[512+60] ^= 1; return b }},
		{"primary gone", func(b []byte) []byte { clear(b[512:1024]); return b }},
		{"backup damaged", func(b []byte) []byte { b[len(b)-512+60] ^= 1; return b }},
		{"primary entries damaged", func(b []byte) []byte { b[1024+3] ^= 1; return b }},
		{"disk grew", func(b []byte) []byte { clear(b[len(b)-512:]); return append(b, make([]byte, 1<<20)...) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, want := disk(t, 512, gptScript)
			d.b = tc.damage(d.b)
			got, err := partition.Read(d)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Partitions) != len(want) || len(got.Damage) != 1 {
				t.Errorf("%d partitions, damage %v; want %d and one finding", len(got.Partitions), got.Damage, len(want))
			}
		})
	}
}

// TestPartitionOutsideTheUsableRange is read, and told: a kernel would not show
// it.
func TestPartitionOutsideTheUsableRange(t *testing.T) {
	d := gptDisk(t, func(h, _ []byte) { binary.LittleEndian.PutUint64(h[40:], 4096) })
	got, err := partition.Read(d)
	if err != nil {
		t.Fatal(err)
	}
	var fe *lun.FormatError
	if len(got.Partitions) != 3 || len(got.Damage) != 1 || !errors.As(got.Damage[0], &fe) || fe.Field != "StartingLBA" || fe.Offset != 1024+32 {
		t.Errorf("%d partitions, damage %v", len(got.Partitions), got.Damage)
	}
}

// TestLeftOverGPT: a disk that was partitioned anew keeps an old header.
func TestLeftOverGPT(t *testing.T) {
	old, _ := disk(t, 512, gptScript)
	d, want := disk(t, 512, mbrScript)
	copy(d.b[512:34*512], old.b[512:34*512])
	got, err := partition.Read(d)
	if err != nil {
		t.Fatal(err)
	}
	if got.Scheme != partition.MBR || len(got.Partitions) != len(want) || len(got.Damage) != 1 {
		t.Errorf("%s, %d partitions, damage %v", got.Scheme, len(got.Partitions), got.Damage)
	}
}

func TestNotPartitioned(t *testing.T) {
	fat := make([]byte, 1<<20)
	copy(fat, []byte{0xEB, 0x3C, 0x90})
	fat[12], fat[13] = 2, 4 // 512 bytes a sector, 4 sectors a cluster
	fat[510], fat[511] = 0x55, 0xAA
	for name, b := range map[string][]byte{"zeroes": make([]byte, 1<<20), "fat": fat, "tiny": make([]byte, 100), "empty": nil} {
		if _, err := partition.Read(&memory{b, 512}); !errors.Is(err, lun.ErrNotFormat) {
			t.Errorf("%s: %v, want ErrNotFormat", name, err)
		}
	}
}

// sumGPT makes the checksums of the primary GPT hold, if there is one.
func sumGPT(b []byte) {
	le := binary.LittleEndian
	if len(b) < 1024 {
		return
	}
	h := b[512:1024]
	n, at := uint64(le.Uint32(h[80:]))*uint64(le.Uint32(h[84:])), le.Uint64(h[72:])
	if at > uint64(len(b))/512 || n > uint64(len(b))-at*512 {
		return
	}
	le.PutUint32(h[88:], crc32.ChecksumIEEE(b[at*512:][:n]))
	clear(h[16:20])
	if size := le.Uint32(h[12:]); size <= 512 {
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:size]))
	}
}

// FuzzRead: whatever is on a disk, partitions lie within it and do not overlap
// by accident, and nothing panics or runs away.
func FuzzRead(f *testing.F) {
	for _, s := range []string{gptScript, mbrScript} {
		d, _ := disk(f, 512, s)
		f.Add(append(d.b[:34*512:34*512], d.b[len(d.b)-33*512:]...), false, true)
	}
	f.Add(make([]byte, 4096), true, false)
	f.Fuzz(func(t *testing.T, b []byte, big, sums bool) {
		if sums { // so that the fuzzer gets behind the checksums
			b = bytes.Clone(b)
			sumGPT(b)
		}
		d := &memory{b, 512}
		if big {
			d.sector = 4096
		}
		table, err := partition.Read(d)
		if err != nil {
			var fe *lun.FormatError
			if !errors.Is(err, lun.ErrNotFormat) && !errors.As(err, &fe) {
				t.Fatalf("error %v is neither ErrNotFormat nor a FormatError", err)
			}
			return
		}
		for _, p := range table.Partitions {
			if lun.CheckRange(p.Off, p.Len, d.Size()) != nil || p.Len == 0 {
				t.Fatalf("%+v outside %d bytes", p, d.Size())
			}
		}
		renewAny(t, d, table)
	})
}
