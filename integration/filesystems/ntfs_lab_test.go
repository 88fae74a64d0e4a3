//go:build lab

package filesystems

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/fs/ntfs"
)

// TestNTFS: every image is read as NTFS-3G, which also filled it, reads it.
func TestNTFS(t *testing.T) {
	for i := range *images {
		seed := *first + uint64(i)
		r := rand.New(rand.NewPCG(seed, 4))
		pick := func(from ...string) string { return from[r.IntN(len(from))] }
		cluster, special := pick("512", "1024", "2048", "4096", "4096", "8192", "65536"), pick("wsl", "interix")
		mkfs := []string{"mkntfs", "-F", "-Q", "-q", "-c", cluster, "-z", pick("1", "4"), "-L", fmt.Sprint("seed ", seed)}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("%q, %s", mkfs[3:], special)
			image := fstest.Image(t, t.TempDir(), 128<<20, mkfs...)
			dir, unmount := fstest.NTFS3G(t, image, "compression,special_files="+special)
			fstest.FillNTFS(t, dir, seed, 150)
			unmount()
			verifyNTFS(t, image, special)
		})
	}
}

// TestCrowdedNTFS: the MFT itself lies in so many places that other records say
// where, and directories are trees of several levels, in which each name is found.
func TestCrowdedNTFS(t *testing.T) {
	image := fstest.Image(t, t.TempDir(), 24<<20, "mkntfs", "-F", "-Q", "-q", "-c", "512")
	dir, unmount := fstest.NTFS3G(t, image, "noatime")
	fstest.CrowdNTFS(t, dir)
	unmount()
	if out, _ := fstest.Command(t, "ntfsinfo", "-i", "0", image); !strings.Contains(out, "$ATTRIBUTE_LIST") {
		t.Fatal("the MFT has no attribute list")
	}
	f, want := verifyNTFS(t, image, "interix")
	for path, l := range want {
		if r, err := fs.Find(f, path); err != nil || r.Inode != l.Inode {
			t.Errorf("%q: %v, %v", path, r, err)
		}
	}
}

// verifyNTFS compares what is read of an image with what NTFS-3G shows.
func verifyNTFS(t *testing.T, image, special string) (fs.FS, fstest.Tree) {
	t.Helper()
	defer os.Remove(image)
	f, err := ntfs.Open(fstest.Device(t, image))
	if err != nil {
		t.Fatal(err)
	}
	got, err := fstest.Of(f, fstest.Device(t, image))
	if err != nil {
		t.Fatal(err)
	}
	dir, unmount := fstest.NTFS3G(t, image, "ro,special_files="+special)
	want, err := fstest.Host(dir)
	unmount()
	if err != nil {
		t.Fatal(err)
	}
	fstest.Compare(t, fstest.CommonNTFS(got), fstest.CommonNTFS(want), fstest.Options{Leave: func(path string) bool {
		// Of Interix, these are files of the system without more of a mark.
		return special == "interix" && (strings.HasPrefix(want[path].What, "pipe") || strings.HasPrefix(want[path].What, "socket"))
	}})
	if len(want) < 100 {
		t.Errorf("only %d files", len(want))
	}
	t.Logf("%d files equal", len(want))
	return f, want
}
