package fat_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/fat"
	"github.com/cleave-san/cleave/lun/fs/fstest"
)

// names are some that mtools can write; characters beyond the first plane it can't.
var names = []string{"SHORT.TXT", "lower.txt", "A long name, with é and ☃.text", ".hidden", "thirteen.char", strings.Repeat("n", 200)}

// image is one of bits, with content under each of the names in a directory.
func image(tb testing.TB, bits string, size int64, content []byte) string {
	src := tb.TempDir() + "/source"
	if err := os.WriteFile(src, content, 0o600); err != nil {
		tb.Fatal(err)
	}
	image := fstest.Image(tb, tb.TempDir(), size, "mkfs.fat", "-F", bits, "-s", "1", "-n", "LABEL", "-i", "1234abcd")
	fstest.Run(tb, "env", "LC_ALL=C.UTF-8", "mmd", "-i", image, "::directory")
	for _, n := range names {
		fstest.Run(tb, "env", "LC_ALL=C.UTF-8", "mcopy", "-i", image, src, "::directory/"+n)
	}
	fstest.Run(tb, "mattrib", "+r", "-i", image, "::directory/short.txt")
	return image
}

// sizes are little more than the least.
var sizes = map[string]int64{"12": 2 << 20, "16": 4 << 20, "32": 34 << 20}

// TestMtools: what mcopy put there is read back, from FATs of all widths.
func TestMtools(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 20000)
	for bits, size := range sizes {
		f, err := fat.Open(fstest.Device(t, image(t, bits, size, content)))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			r, err := fs.Find(f, "directory/"+n)
			if err != nil {
				t.Error(bits, err)
				continue
			}
			c, err := f.Open(r)
			if err != nil {
				t.Error(err)
				continue
			}
			if got, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size())); err != nil || !bytes.Equal(got, content) {
				t.Errorf("FAT%s: %s: %d bytes, %v", bits, n, len(got), err)
			}
			st, err := f.Stat(r)
			if readOnly := st.Mode == 0o444; err != nil || readOnly != (n == "SHORT.TXT") || st.Size != int64(len(content)) {
				t.Errorf("FAT%s: %s: %+v, %v", bits, n, st, err)
			}
		}
		if i := f.Info(); i.Variant != "FAT"+bits || i.Label != "LABEL" || i.UUID != "1234-ABCD" || i.Warnings != nil {
			t.Errorf("%+v", i)
		}
		fstest.Exercise(t, f)
	}
}

// TestDirty: a volume that was not unmounted is read with a warning, whether the
// boot sector says so, as Linux has it, or the FAT, as Windows has it.
func TestDirty(t *testing.T) {
	for bits, size := range sizes {
		b, err := os.ReadFile(image(t, bits, size, []byte("x")))
		if err != nil {
			t.Fatal(err)
		}
		state, fatAt := 37, 512*int(b[14])
		if bits == "32" {
			state = 65
		}
		type change struct {
			at   int
			flip byte
			says string
		}
		changes := []change{{state, 1, "not unmounted"}, {state, 2, "errors of the disk"}}
		switch bits {
		case "16":
			changes = append(changes, change{fatAt + 3, 0x80, "not unmounted"}, change{fatAt + 3, 0x40, "errors of the disk"})
		case "32":
			changes = append(changes, change{fatAt + 7, 0x08, "not unmounted"}, change{fatAt + 7, 0x04, "errors of the disk"})
		}
		for _, c := range changes {
			b[c.at] ^= c.flip
			f, err := fat.Open(&fstest.Memory{Bytes: b})
			if err != nil {
				t.Fatal(err)
			}
			if w := f.Info().Warnings; len(w) != 1 || !strings.Contains(w[0].Error(), c.says) {
				t.Errorf("FAT%s, byte %d changed by %#x: %v, want %q", bits, c.at, c.flip, w, c.says)
			}
			fstest.Exercise(t, f)
			b[c.at] ^= c.flip
		}
	}
}

// TestDamage: what contradicts itself is an error that names the field.
func TestDamage(t *testing.T) {
	whole, err := os.ReadFile(image(t, "12", sizes["12"], make([]byte, 10000)))
	if err != nil {
		t.Fatal(err)
	}
	open := func(change func(b []byte)) (*fat.FS, error) {
		b := bytes.Clone(whole)
		change(b)
		return fat.Open(&fstest.Memory{Bytes: b})
	}
	for want, change := range map[string]func(b []byte){
		"BPB_TotSec": func(b []byte) { b[19], b[20] = 0xFF, 0xFF },
		"BPB_FATSz":  func(b []byte) { b[22] = 1 },
	} {
		var fe *lun.FormatError
		if _, err := open(change); !errors.As(err, &fe) || fe.Field != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	for _, at := range []int{0, 11, 13, 16, 510} { // no boot sector of a FAT
		if _, err := open(func(b []byte) { b[at] = 0x77 }); !errors.Is(err, lun.ErrNotFormat) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
	// Every chain of clusters ends nowhere, or returns to itself.
	for _, fill := range []byte{0x00, 0x30, 0x11} {
		f, err := open(func(b []byte) {
			start := 512 * int(b[14])
			for i := start + 3; i < start+200; i++ {
				b[i] = fill
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		var fe *lun.FormatError
		if _, err = fs.Find(f, "directory/lower.txt"); !errors.As(err, &fe) {
			t.Errorf("chain of %#x: %v", fill, err)
		}
		fstest.Exercise(t, f)
	}
}

// FuzzOpen: whatever is on the disk, reading ends, and errors name what is wrong.
func FuzzOpen(f *testing.F) {
	type seen struct {
		dev     lun.Device
		sectors []int64
	}
	var images []seen
	for _, bits := range []string{"12", "16", "32"} {
		w := fstest.See(fstest.Device(f, image(f, bits, sizes[bits], bytes.Repeat([]byte("x"), 5000))))
		x, err := fat.Open(w)
		if err != nil {
			f.Fatal(err)
		}
		fstest.Exercise(f, x)
		images = append(images, seen{w.Device, w.Sectors()})
	}
	for i := range uint32(200) {
		f.Add(uint8(i), []byte{byte(i * 37), byte(i * 7 >> 2), 0, byte(i), 0xFF, byte(i), 0, 3, 0, 0, 1, byte(i)})
		f.Add(uint8(i), []byte{byte(i), 0, 0, byte(i), byte(i * 5), byte(i), 0, 3, 0, 0, 1, 0})
	}
	f.Fuzz(func(t *testing.T, which uint8, how []byte) {
		s := images[int(which)%len(images)]
		x, err := fat.Open(fstest.NewMutant(s.dev, s.sectors, how))
		if err != nil {
			fstest.Sensible(t, err)
			return
		}
		fstest.Exercise(t, x)
	})
}
