package xfs_test

import (
	"fmt"
	"github.com/cleave-san/cleave/lun/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/fs/xfs"
)

// kinds are ways to make a file system; integration/filesystems has many more.
var kinds = []struct{ name, mkfs string }{
	{"default", ""},
	{"small", "-b size=1024 -n size=4096 -m rmapbt=1,reflink=1,bigtime=1 -i nrext64=1,size=512"},
	{"plain", "-m reflink=0,bigtime=0,finobt=0 -i nrext64=0,sparse=0,size=1024 -b size=2048"},
}

func mkfs(t *testing.T, dir, options string) string {
	return fstest.Image(t, dir, 320<<20, append([]string{"mkfs.xfs", "-q", "-f"}, strings.Fields(options)...)...)
}

// fill makes what a load seldom does: large directories, many extents, many and
// large attributes.
func fill(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{3, 40, 200, 3000} {
		d := fmt.Sprintf("%s/names%d", dir, n)
		must(os.Mkdir(d, 0o755))
		for i := range n {
			must(os.WriteFile(fmt.Sprintf("%s/%0*d", d, 4+i%60, i), nil, 0o644))
		}
	}
	f, err := os.Create(dir + "/extents")
	must(err)
	defer f.Close()
	for i := range int64(1200) {
		_, err := f.WriteAt([]byte{byte(i), byte(i >> 8), 7}, i*131072)
		must(err)
	}
	must(f.Sync())
	for _, n := range []int{2, 30, 900} {
		name := fmt.Sprintf("%s/attributes%d", dir, n)
		must(os.WriteFile(name, nil, 0o644))
		for i := range n {
			must(unix.Setxattr(name, fmt.Sprintf("user.%0*d", 5+i%50, i), []byte(strings.Repeat("v", i%200)), 0))
		}
		must(unix.Setxattr(name, "trusted.large", []byte(strings.Repeat("large", 64<<10/5)), 0))
		must(unix.Setxattr(name, "security.middle", []byte(strings.Repeat("m", 3000)), 0))
	}
}

// TestKernel: file systems of all kinds that were unmounted are read as the
// kernel reads them, and those cut off as it does once it has recovered them.
func TestKernel(t *testing.T) {
	pool := fstest.Pool(t, 2<<30)
	for i, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			image := mkfs(t, pool, k.mkfs)
			defer os.Remove(image)
			if _, err := xfs.Open(fstest.Device(t, image)); err != nil {
				t.Errorf("made, never mounted: %v", err)
			}
			dir, unmount := fstest.Mount(t, image, "xfs", "")
			fill(t, dir)
			l := fstest.NewLoad(dir, uint64(i))
			l.Largest = 1 << 20
			if err := l.Run(t.Context(), 150); err != nil {
				t.Fatal(err)
			}
			unmount()
			f, err := xfs.Open(fstest.Device(t, image))
			if err != nil {
				t.Fatal(err)
			}
			fstest.Verify(t, f, image, "xfs", fstest.Options{})
			dir, unmount = fstest.Mount(t, image, "xfs", "")
			cuts := fstest.Cut(t, image, dir, uint64(i), nil, 1)
			unmount()
			for _, cut := range cuts {
				f, err := xfs.Open(fstest.Device(t, cut))
				if err != nil {
					t.Fatal(err)
				}
				if f.Info().Replayed == "" {
					t.Error("cut off, and nothing was replayed")
				}
				fstest.Verify(t, f, cut, "xfs", fstest.Options{})
				os.Remove(cut)
			}
			if _, err := xfs.Open(fstest.Device(t, image)); err != nil {
				t.Errorf("unmounted again: %v", err)
			}
		})
	}
}

// TestShared: a file that was cloned may not be written to in place.
func TestShared(t *testing.T) {
	image := mkfs(t, t.TempDir(), "-m reflink=1")
	dir, unmount := fstest.Mount(t, image, "xfs", "")
	for _, name := range []string{"one", "alone"} {
		if err := os.WriteFile(dir+"/"+name, make([]byte, 10000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fstest.Clone(t, dir+"/one")
	unmount()
	f, err := xfs.Open(fstest.Device(t, image))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"one": true, "alone": false} {
		r, err := fs.Find(f, name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := f.Open(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Extents(0, c.Size(), func(e fs.Extent) error {
			if e.Shared != want {
				t.Errorf("%s: shared is %v", name, e.Shared)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

// TestLogWraps: a log is found clean wherever in its ring it ends, and recovered
// wherever it goes on.
func TestLogWraps(t *testing.T) {
	pool := fstest.Pool(t, 2<<30)
	image := mkfs(t, pool, "-l su=256k") // each sync takes that much of 64 MiB
	dir, unmount := fstest.Mount(t, image, "xfs", "")
	for i := range 5 {
		if err := os.WriteFile(fmt.Sprintf("%s/before%d", dir, i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unmount()
	for round := range 8 {
		dir, unmount := fstest.Mount(t, image, "xfs", "")
		f, err := os.Create(fmt.Sprintf("%s/%d", dir, round))
		if err != nil {
			t.Fatal(err)
		}
		for range 97 {
			if _, err := f.Write([]byte("more")); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		cut := fstest.Clone(t, image)
		f.Close()
		unmount()
		if _, err := xfs.Open(fstest.Device(t, image)); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		g, err := xfs.Open(fstest.Device(t, cut))
		if err != nil {
			t.Fatalf("round %d, cut off: %v", round, err)
		}
		fstest.Verify(t, g, cut, "xfs", fstest.Options{})
		os.Remove(cut)
	}
}
