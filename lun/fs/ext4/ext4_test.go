package ext4_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/ext4"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/luntest"
)

var images = []string{"ext4-dirty", "ext4-dirty-csum"}

// TestDirty reads what is only in a journal.
func TestDirty(t *testing.T) {
	for _, name := range images {
		f, err := ext4.Open(luntest.Image(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if i := f.Info(); !strings.HasPrefix(i.Replayed, "journal: ") || i.Kind != "ext4" || i.Size != 3<<20 || len(i.UUID) != 36 {
			t.Errorf("%s: %+v", name, i)
		}
		content := func(path string) string {
			r, err := fs.Find(f, path)
			if err != nil {
				t.Fatal(err)
			}
			c, err := f.Open(r)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		if got := content("d/hello"); got != "hello\nmore\n" {
			t.Errorf("%s: d/hello is %q", name, got)
		}
		if got := content("d/magic3"); got != "\xC0\x3B\x39\x98 magic 3\n" {
			t.Errorf("%s: an escaped block: %q", name, got)
		}
		if got := content("d/holes"); len(got) != 100<<10+4 || strings.Trim(got, "\x00") != "tail" {
			t.Errorf("%s: d/holes has %d bytes", name, len(got))
		}
		if a, b := find(t, f, "d/hello"), find(t, f, "d/e/hard"); a != b {
			t.Errorf("%s: two names of one file are %v and %v", name, a, b)
		}
		if target, err := f.Readlink(find(t, f, "d/moved")); target != "hello" || err != nil {
			t.Errorf("%s: %q, %v", name, target, err)
		}
		if target, err := f.Readlink(find(t, f, "d/long")); target != strings.Repeat("x/", 60) || err != nil {
			t.Errorf("%s: %q, %v", name, target, err)
		}
		if _, err := fs.Find(f, "d/sym"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the old name of a renamed link: %v", name, err)
		}
		if st, err := f.Stat(find(t, f, "d/null")); err != nil || st.Type != fs.CharDevice || st.Major != 1 || st.Minor != 3 {
			t.Errorf("%s: d/null is %+v, %v", name, st, err)
		}
		n := 0
		if err := f.List(find(t, f, "d/many"), 0, func(fs.Entry) error { n++; return nil }); n != 54 || err != nil {
			t.Errorf("%s: d/many has %d entries, %v", name, n, err)
		}
		if _, err := f.Open(find(t, f, "d")); !errors.Is(err, fs.ErrNotFile) {
			t.Error(err)
		}
		if err := f.List(find(t, f, "d/hello"), 0, nil); !errors.Is(err, fs.ErrNotDir) {
			t.Error(err)
		}
	}
}

func find(t *testing.T, f fs.FS, path string) fs.Ref {
	t.Helper()
	r, err := fs.Find(f, path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestCursor: a list may be left after any entry and taken up there.
func TestCursor(t *testing.T) {
	for _, name := range images {
		f, err := ext4.Open(luntest.Image(t, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"", "d", "d/many"} {
			var all, pieces []string
			if err := f.List(find(t, f, dir), 0, func(e fs.Entry) error { all = append(all, e.Name); return nil }); err != nil {
				t.Fatal(err)
			}
			for after, more := uint64(0), true; more; {
				more = false
				stop := errors.New("stop")
				err := f.List(find(t, f, dir), after, func(e fs.Entry) error {
					pieces, after, more = append(pieces, e.Name), e.Next, true
					return stop
				})
				if err != nil && err != stop {
					t.Fatal(err)
				}
			}
			if strings.Join(all, "/") != strings.Join(pieces, "/") {
				t.Errorf("%s: %q in pieces is %q", dir, all, pieces)
			}
		}
	}
}

// TestRefused: what isn't read is refused by its name.
func TestRefused(t *testing.T) {
	set := func(off int, v uint32) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[off:], binary.LittleEndian.Uint32(b[off:])|v) }
	}
	for _, c := range []struct {
		name   string
		change func([]byte)
		want   string
	}{
		{"dirdata", set(1024+0x60, 0x1000), "dirdata"},
		{"compression", set(1024+0x60, 1), "compression"},
		{"new", set(1024+0x60, 1<<30), "FEATURE_I30"},
		{"journal device", set(1024+0x60, 8), "external journal"},
		{"external journal", set(1024+0xE4, 0x801), "log is not replayed"},
		{"larger than the device", set(1024+4, 1<<20), "s_blocks_count"},
		{"large blocks", set(1024+0x18, 7), "s_log_block_size"},
		{"inodes", set(1024, 1<<20), "s_inodes_count"},
	} {
		b := bytes.Clone(luntest.Image(t, "ext4-dirty"))
		c.change(b)
		_, err := ext4.Open(luntest.ReadOnly(b))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		fstest.Sensible(t, err)
	}
	for n, b := range []luntest.ReadOnly{nil, make([]byte, 2047), make([]byte, 4096)} {
		if _, err := ext4.Open(b); !errors.Is(err, lun.ErrNotFormat) {
			t.Errorf("no file system %d: %v", n, err)
		}
	}
	b := bytes.Clone(luntest.Image(t, "ext4-dirty-csum"))
	b[1024+0x78] ^= 1
	if _, err := ext4.Open(luntest.ReadOnly(b)); err == nil || !strings.Contains(err.Error(), "s_checksum") {
		t.Errorf("a wrong checksum of the superblock: %v", err)
	}
}

// TestChecksums: with metadata_csum, no bit of a directory, an inode or the
// journal can be another one without being noticed or without consequence.
func TestChecksums(t *testing.T) {
	image := luntest.Image(t, "ext4-dirty-csum")
	good, err := ext4.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	want, err := fstest.Of(good, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 3))
	var used []int
	for at, c := range image {
		if c != 0 {
			used = append(used, at)
		}
	}
	noticed, without := 0, 0
	for range 300 {
		b := bytes.Clone(image)
		at := used[r.IntN(len(used))]
		b[at] ^= 1 << r.IntN(8)
		f, err := ext4.Open(luntest.ReadOnly(b))
		if err == nil && f.Info().Replayed != good.Info().Replayed {
			continue // a commit block that is wrong is one that was not written
		}
		var got fstest.Tree
		if err == nil {
			got, err = fstest.Of(f, nil)
		}
		if err != nil {
			fstest.Sensible(t, err)
			noticed++
			continue
		}
		for path, l := range got {
			l.Content = want[path].Content // data has no checksums
			got[path] = l
		}
		if err := fstest.Differ(got, want, fstest.Options{}); err != nil {
			t.Errorf("a bit at byte %d changes: %v", at, err)
		}
		without++
	}
	if noticed < 50 {
		t.Errorf("%d changes noticed, %d without consequence", noticed, without)
	}
}

// TestDamaged puts wrong numbers everywhere, and cuts the image off.
func TestDamaged(t *testing.T) {
	for _, name := range images {
		image := luntest.Image(t, name)
		for n := 1; n < len(image); n = n*2 + 77 {
			_, err := ext4.Open(luntest.ReadOnly(image[:n]))
			fstest.Sensible(t, err)
			if err == nil {
				t.Errorf("%s cut to %d bytes is opened", name, n)
			}
		}
		r := rand.New(rand.NewPCG(5, 5))
		how := make([]byte, 12*6)
		for range 150 {
			for i := range how {
				how[i] = byte(r.Uint32())
				if i%12 == 2 && r.IntN(2) == 0 {
					how[i], how[i+1] = byte(r.IntN(2)), 0 // superblock and tables
				}
				if i%12 >= 4 && r.IntN(3) == 0 {
					how[i] = byte(r.IntN(2)) * 0xff
				}
			}
			exercise(t, fstest.Mutate(image, how))
		}
	}
}

func exercise(t *testing.T, b []byte) {
	t.Helper()
	m := &fstest.Memory{Bytes: b}
	f, err := ext4.Open(m)
	if err != nil {
		fstest.Sensible(t, err)
		return
	}
	fstest.Exercise(t, f)
	if m.Read > 1<<30 {
		t.Errorf("%d MiB read of an image of %d", m.Read>>20, len(b)>>20)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), make([]byte, 24))
	var all [][]byte
	for _, name := range images {
		all = append(all, luntest.Image(f, name))
	}
	f.Fuzz(func(t *testing.T, which uint8, how []byte) {
		exercise(t, fstest.Mutate(all[int(which)%len(all)], how[:min(len(how), 12*64)]))
	})
}
