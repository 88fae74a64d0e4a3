//go:build lab

package filesystems

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/cleave-san/cleave/lun/fs"
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

// TestXFS: every image that was unmounted is read as the kernel reads it; every one
// that was cut off is refused, and read once the kernel has recovered it.
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
			cut := fstest.Cut(t, image, dir, seed, nil, 1)[0]
			defer os.Remove(cut)
			if _, err := xfs.Open(fstest.Device(t, cut)); !errors.Is(err, fs.ErrDirty) {
				t.Errorf("cut off: %v, want ErrDirty", err)
			}
			unmount()
			_, recovered := fstest.Mount(t, cut, "xfs", "nouuid")
			recovered()
			for _, path := range []string{image, cut} {
				f, err := xfs.Open(fstest.Device(t, path))
				if err != nil {
					t.Fatal(err)
				}
				fstest.Verify(t, f, path, "xfs", fstest.Options{})
			}
		})
	}
}
