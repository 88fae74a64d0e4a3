package ntfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/fs/ntfs"
)

// logAt is where the log of the volume of Windows begins.
const logAt = 83723 * 4096

// TestLog: a log that isn't clean is refused, by the newer of its two restart
// pages; one that nobody can read too.
func TestLog(t *testing.T) {
	d := windowsVolume(t)
	pages := make([]byte, 2*4096)
	if _, err := d.ReadAt(pages, logAt); err != nil {
		t.Fatal(err)
	}
	if string(pages[:4]) != "RSTR" || string(pages[4096:4100]) != "RSTR" {
		t.Fatal("the log is elsewhere")
	}
	area := int(binary.LittleEndian.Uint16(pages[24:]))
	flags := func(page int, v uint16) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint16(b[page*4096+area+14:], v) }
	}
	lsn := func(page int, v uint64) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint64(b[page*4096+area:], v) }
	}
	unclear := func(page int) func([]byte) { return func(b []byte) { b[page*4096+510] ^= 1 } }
	for name, c := range map[string]struct {
		change []func([]byte)
		want   string // of the error
		dirty  bool
	}{
		"clean":                 {},
		"both dirty":            {[]func([]byte){flags(0, 0), flags(1, 0)}, "shadow copy", true},
		"the older one dirty":   {[]func([]byte){flags(0, 0), lsn(0, 1)}, "", false},
		"the newer one dirty":   {[]func([]byte){flags(1, 0), lsn(1, 1<<60)}, "shadow copy", true},
		"dirty, the other torn": {[]func([]byte){flags(0, 0), unclear(1)}, "shadow copy", true},
		"clean, the other torn": {[]func([]byte){unclear(1)}, "", false},
		"both torn":             {[]func([]byte){unclear(0), unclear(1)}, "restart page", false},
		"new":                   {[]func([]byte){func(b []byte) { copy(b, bytes.Repeat([]byte{0xFF}, len(b))) }}, "", false},
		"nobody has it open":    {[]func([]byte){flags(0, 0), flags(1, 0), func(b []byte) { b[area+12], b[area+13], b[4096+area+12], b[4096+area+13] = 255, 255, 255, 255 }}, "", false},
		"zeroes":                {[]func([]byte){func(b []byte) { clear(b) }}, "restart page", false},
	} {
		m := &fstest.Mutant{Device: d}
		b := bytes.Clone(pages)
		for _, change := range c.change {
			change(b)
		}
		for i := 0; i < len(b); i += 8 {
			m.Put(logAt+int64(i), [8]byte(b[i:]))
		}
		_, err := ntfs.Open(m)
		if (err == nil) != (c.want == "") || errors.Is(err, fs.ErrDirty) != c.dirty || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDamage: what contradicts itself is an error that names it.
func TestDamage(t *testing.T) {
	d := windowsVolume(t)
	head := make([]byte, 512)
	if _, err := d.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	mft := int64(binary.LittleEndian.Uint64(head[48:])) * 4096
	for name, c := range map[string]struct {
		at   int64
		to   byte
		want string
	}{
		"sector":       {12, 0x77, "BytesPerSector"},
		"cluster":      {13, 3, "SectorsPerCluster"},
		"size":         {44, 1, "TotalSectors"},
		"MFT":          {52, 1, "MftStartLcn"},
		"record":       {64, 3, "ClustersPerFileRecordSegment"},
		"torn":         {mft + 510, 0x77, "UpdateSequenceNumber"},
		"signature":    {mft, 'B', "Signature"},
		"attribute":    {mft + 20, 0xFD, "AttributeOffset"},
		"root, unused": {mft + 5*1024 + 22, 2, "root"},
		"root, a file": {mft + 5*1024 + 22, 1, "root"},
	} {
		b := make([]byte, 8)
		if _, err := d.ReadAt(b, c.at&^7); err != nil {
			t.Fatal(err)
		}
		b[c.at&7] = c.to
		m := &fstest.Mutant{Device: d}
		m.Put(c.at&^7, [8]byte(b))
		_, err := ntfs.Open(m)
		var fe *lun.FormatError
		if !errors.As(err, &fe) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if _, err := ntfs.Open(&fstest.Memory{Bytes: make([]byte, 1<<20)}); !errors.Is(err, lun.ErrNotFormat) {
		t.Errorf("zeroes: %v", err)
	}
}

// FuzzOpen: whatever is on the disk, reading ends, and errors name what is wrong.
func FuzzOpen(f *testing.F) {
	type seen struct {
		dev     lun.Device
		sectors []int64
	}
	var images []seen
	for _, d := range []lun.Device{windowsVolume(f), fstest.Device(f, filled(f, 3, 60, "wsl"))} {
		w := fstest.See(d)
		x, err := ntfs.Open(w)
		if err != nil {
			f.Fatal(err)
		}
		fstest.Exercise(f, x)
		images = append(images, seen{d, w.Sectors()})
	}
	for i := range uint16(12) {
		f.Add(uint8(i), []byte{byte(i * 137), byte(i * 137 >> 8), byte(i * 11), byte(i), 0xFF, byte(i), 0, 3, 0, 0, 1, byte(i)})
		f.Add(uint8(i), []byte{byte(i * 11), 0, byte(i * 5), 0, 1, 0, 0, byte(i), 0, 0, 1, 0})
	}
	f.Fuzz(func(t *testing.T, which uint8, how []byte) {
		s := images[int(which)%len(images)]
		x, err := ntfs.Open(fstest.NewMutant(s.dev, s.sectors, how))
		if err != nil {
			fstest.Sensible(t, err)
			return
		}
		fstest.Exercise(t, x)
	})
}
