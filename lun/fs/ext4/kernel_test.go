package ext4_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/fs/ext4"
	"github.com/cleave-san/cleave/lun/fs/fstest"
)

// kinds are ways to make a file system, and to mount it; integration/filesystems
// has many more.
var kinds = []struct {
	name, mkfs, mount string
}{
	{"default", "", ""},
	{"inline", "-O inline_data,ea_inode,metadata_csum_seed,large_dir -I 512", ""},
	{"data_journal", "-J size=16", "data=journal"},
}

// mke2fs makes a file system in dir by one of the kinds.
func mke2fs(t *testing.T, dir, options string, size int64) string {
	args := append([]string{"mke2fs", "-q", "-F"}, strings.Fields(options)...)
	if !strings.Contains(options, "-t ") {
		args = append(args, "-t", "ext4")
	}
	return fstest.Image(t, dir, size, args...)
}

var magic = []byte{0xC0, 0x3B, 0x39, 0x98}

// check compares a file system with what the kernel shows of a copy of it, and
// wants e2fsck to find nothing but orphans where the journal was replayed. Data
// that is journaled may still be in the journal.
func check(t *testing.T, image string, dirty, journaled bool) {
	t.Helper()
	f, err := ext4.Open(fstest.Device(t, image))
	if err != nil {
		t.Fatal(err)
	}
	if dirty != (f.Info().Replayed != "") {
		t.Errorf("replayed: %q", f.Info().Replayed)
	}
	fstest.Verify(t, f, image, "ext4", fstest.Options{NoMap: journaled && dirty})

	second := fstest.Clone(t, image)
	defer os.Remove(second)
	if dirty {
		fstest.Write(t, second, f.Device())
	}
	out, code := fstest.Command(t, "e2fsck", "-fp", second)
	if code > 1 || strings.Contains(out, "recovering journal") {
		t.Errorf("e2fsck of the replayed view: status %d\n%s", code, out)
	}
}

// TestKernel: file systems of all kinds, unmounted and cut off in the middle of
// changes, are read as the kernel reads them.
func TestKernel(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("needs mke2fs: make deps")
	}
	pool := fstest.Pool(t, 1<<30)
	for i, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			image := mke2fs(t, pool, k.mkfs, 64<<20)
			defer os.Remove(image)
			dir, unmount := fstest.Mount(t, image, "ext4", k.mount)
			l := fstest.NewLoad(dir, uint64(i))
			l.Magic, l.Largest = magic, 1<<20
			if err := l.Run(t.Context(), 150); err != nil {
				t.Fatal(err)
			}
			unmount()
			check(t, image, false, false)
			dir, unmount = fstest.Mount(t, image, "ext4", k.mount)
			for _, cut := range fstest.Cut(t, image, dir, uint64(i), magic, 1) {
				check(t, cut, true, k.name == "inline" || k.name == "data_journal")
				os.Remove(cut)
			}
			unmount()
		})
	}
}
