//go:build lab

package filesystems

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/fs/xfs"
)

// xfsOptions are mkfs.xfs's of a seed, within what current kernels mount.
func xfsOptions(r *rand.Rand) []string {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	return []string{"mkfs.xfs", "-q", "-f", "-b", "size=" + pick("1024", "2048", "4096"),
		"-m", pick("finobt=1,rmapbt=1", "finobt=1", "finobt=0,inobtcount=0") + "," + pick("reflink=1", "reflink=0") + "," + pick("bigtime=1", "bigtime=0"),
		"-i", "size=512," + pick("nrext64=1", "nrext64=0") + "," + pick("sparse=1", "sparse=0"),
		"-n", "size=" + pick("4096", "8192", "65536"),
		"-l", pick("su=4k", "su=32k", "su=256k", "su=64k"), "-s", "size=" + pick("512", "1024"), "-d", "agcount=" + pick("2", "3", "4")}
}

// TestXFS: every image is read as the kernel reads it: unmounted; cut off under load
// just after it was synced; cut off when a single file was synced, so that most of
// what was changed is in the log alone; and while it was frozen, when its log is
// not clean either.
func TestXFS(t *testing.T) {
	pool := fstest.Pool(t, 3<<30)
	for i := range *images {
		seed := *first + uint64(i)
		r := rand.New(rand.NewPCG(seed, 2))
		mkfs := xfsOptions(r)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("%q", mkfs[3:])
			image := fstest.Image(t, pool, 400<<20, mkfs...)
			defer os.Remove(image)
			dir, unmount := fstest.Mount(t, image, "xfs", "")
			l := fstest.NewLoad(dir, seed)
			l.Largest, l.Sync = 1<<20, true
			if err := l.Run(t.Context(), 150); err != nil {
				t.Fatal(err)
			}
			cuts := fstest.Cut(t, image, dir, seed, nil, 1)
			l.Sync = false
			for range 1 + r.IntN(3) {
				if err := l.Run(t.Context(), r.IntN(400)); err != nil {
					t.Fatal(err)
				}
				cuts = append(cuts, logged(t, image, dir))
			}
			fstest.Run(t, "xfs_freeze", "-f", dir)
			cuts = append(cuts, fstest.Clone(t, image))
			fstest.Run(t, "xfs_freeze", "-u", dir)
			unmount()
			for i, path := range append(cuts, image) {
				f, err := xfs.Open(fstest.Device(t, path))
				if err != nil {
					t.Fatalf("cut %d: %v", i, err)
				}
				if (f.Info().Replayed == "") != (path == image) {
					t.Errorf("cut %d: replayed: %q", i, f.Info().Replayed)
				}
				fstest.Verify(t, f, path, "xfs", fstest.Options{})
				if path != image {
					os.Remove(path)
				}
			}
		})
	}
}

// logged clones an image after one file was synced, which writes the log and little
// else.
func logged(t *testing.T, image, dir string) string {
	t.Helper()
	f, err := os.Create(dir + "/synced")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write([]byte("now")); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return fstest.Clone(t, image)
}
