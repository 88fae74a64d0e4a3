//go:build lab

package filesystems

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/fs/ext4"
	"github.com/cleave-san/cleave/lun/fs/fstest"
)

var (
	images = flag.Int("images", 200, "how many images")
	first  = flag.Uint64("first", 1, "the first image's seed")
)

// magic is the journal's: blocks that begin with it are escaped in it.
var magic = []byte{0xC0, 0x3B, 0x39, 0x98}

// options are mke2fs's and mount's of a seed.
func options(r *rand.Rand) (mkfs []string, mount string, journaled bool) {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	kind := pick("ext4", "ext4", "ext4", "ext3")
	mkfs = []string{"mke2fs", "-q", "-F", "-t", kind, "-b", pick("1024", "2048", "4096")}
	mkfs = append(mkfs, "-I", pick("128", "256", "512"), "-J", "size="+pick("4", "8"))
	var o []string
	inline := false
	if kind == "ext4" {
		o = append(o, pick("metadata_csum", "^metadata_csum,uninit_bg", "metadata_csum,metadata_csum_seed"), pick("64bit", "^64bit"),
			pick("flex_bg", "^flex_bg"), pick("extent", "extent", "^extent,^64bit"), pick("large_dir", "^large_dir"), pick("ea_inode", "^ea_inode"),
			pick("sparse_super", "^resize_inode,sparse_super2"))
		all := strings.Join(o, ",")
		if strings.Contains(all, "^extent") {
			o = append(o, "^64bit")
		} else if r.IntN(4) == 0 {
			o = append(o, "bigalloc")
			mkfs = append(mkfs, "-C", "16384")
		}
		if mkfs[8] != "128" && !strings.Contains(all, "^extent") && r.IntN(3) == 0 {
			o, inline, journaled = append(o, "inline_data"), true, true // what outgrows the inode is journaled
		}
	}
	if r.IntN(4) == 0 {
		o = append(o, "^resize_inode,meta_bg")
	}
	if len(o) > 0 {
		mkfs = append(mkfs, "-O", strings.Join(o, ","))
	}
	switch r.IntN(4) {
	case 0:
		mount, journaled = "data=journal", true
	case 1:
		mount = "journal_checksum"
	case 2:
		mount = "data=writeback,journal_async_commit"
		if inline { // Linux 6.x aborts its journal now and then with both
			mount = "data=writeback"
		}
	}
	return mkfs, mount, journaled
}

// TestExt4: every image is read as the kernel reads it, after an unmount, and
// after a cut as the kernel does after its own replay; e2fsck finds nothing but
// orphans in what the reader makes of a cut one.
func TestExt4(t *testing.T) {
	pool := fstest.Pool(t, 2<<30)
	for i := range *images {
		seed := *first + uint64(i)
		r := rand.New(rand.NewPCG(seed, 1))
		mkfs, mount, journaled := options(r)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("%q, mounted with %q", mkfs[3:], mount)
			image := fstest.Image(t, pool, 64<<20, mkfs...)
			defer os.Remove(image)
			dir, unmount := fstest.Mount(t, image, "ext4", mount)
			l := fstest.NewLoad(dir, seed)
			l.Magic, l.Largest = magic, 1<<20
			if err := l.Run(t.Context(), 100); err != nil {
				t.Fatal(err)
			}
			unmount()
			clean, err := ext4.Open(fstest.Device(t, image))
			if err != nil {
				t.Fatal(err)
			}
			fstest.Verify(t, clean, image, "ext4", fstest.Options{})
			dir, unmount = fstest.Mount(t, image, "ext4", mount)
			cut := fstest.Cut(t, image, dir, seed, magic, 1)[0]
			defer os.Remove(cut)
			unmount()
			dirty, err := ext4.Open(fstest.Device(t, cut))
			if err != nil {
				t.Fatal(err)
			}
			if dirty.Info().Replayed == "" {
				t.Error("nothing was replayed")
			}
			fstest.Verify(t, dirty, cut, "ext4", fstest.Options{NoMap: journaled})
			view := fstest.Clone(t, cut)
			defer os.Remove(view)
			fstest.Write(t, view, dirty.Device())
			if out, code := fstest.Command(t, "e2fsck", "-fp", view); code > 1 || strings.Contains(out, "recovering journal") {
				t.Errorf("e2fsck of the replayed view: status %d\n%s", code, out)
			}
		})
	}
}
