package ntfs_test

import (
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/fs/ntfs"
)

// filled is an image that a load, and what the load has none of, was written to by NTFS-3G.
func filled(tb testing.TB, seed uint64, steps int, special string, mkntfs ...string) string {
	image := fstest.Image(tb, tb.TempDir(), 96<<20, append([]string{"mkntfs", "-F", "-Q", "-q", "-L", "label é"}, mkntfs...)...)
	dir, unmount := fstest.NTFS3G(tb, image, "compression,special_files="+special)
	defer unmount()
	fstest.FillNTFS(tb, dir, seed, steps)
	return image
}

// TestNTFS3G: what NTFS-3G wrote and shows is what is read.
func TestNTFS3G(t *testing.T) {
	for i, options := range []string{"", "-c 512"} {
		special := []string{"wsl", "interix"}[i%2]
		image := filled(t, uint64(i), 60, special, strings.Fields(options)...)
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
		if !strings.Contains(got["packed/10"].Map, "@-1") {
			t.Errorf("%q: nothing is compressed", options)
		}
		if len(want) < 700 {
			t.Errorf("only %d files", len(want))
		}
		fstest.Exercise(t, f)
	}
}
