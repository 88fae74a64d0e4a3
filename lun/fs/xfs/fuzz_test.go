package xfs_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/fs/xfs"
)

// fuzzImage is a file system with something of everything; unmounted, or cut off when
// one file was synced, so that much of it is in the log alone.
func fuzzImage(tb testing.TB, options string, cut bool) lun.Device {
	image := fstest.Image(tb, tb.TempDir(), 320<<20, append([]string{"mkfs.xfs", "-q", "-f"}, strings.Fields(options)...)...)
	dir, unmount := fstest.Mount(tb, image, "xfs", "")
	l := fstest.NewLoad(dir, 3)
	l.Largest = 1 << 20
	if err := l.Run(tb.Context(), 60); err != nil {
		tb.Fatal(err)
	}
	name := dir + "/attributes"
	f, err := os.Create(name)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	for i := range 100 {
		if err := unix.Setxattr(name, "user.a"+strings.Repeat("x", i), make([]byte, 40*i), 0); err != nil {
			tb.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("x"), int64(i)<<17); err != nil {
			tb.Fatal(err)
		}
	}
	if cut {
		if err := f.Sync(); err != nil {
			tb.Fatal(err)
		}
		fstest.Run(tb, "cp", "--sparse=always", image, image+".cut")
		image += ".cut"
	}
	f.Close()
	unmount()
	return fstest.Device(tb, image)
}

// FuzzOpen: whatever is on the disk, with checksums that fit, reading ends, and errors name
// what is wrong.
func FuzzOpen(f *testing.F) {
	type seen struct {
		dev     lun.Device
		sectors []int64
	}
	var images []seen
	for i, options := range []string{"", "-b size=1024 -m reflink=0 -i nrext64=0", "-b size=1024"} {
		w := fstest.See(fuzzImage(f, options, i == 2))
		x, err := xfs.Open(w)
		if err != nil {
			f.Fatal(err)
		}
		fstest.Exercise(f, x)
		images = append(images, seen{w.Device, w.Sectors()})
	}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 0, 0})
	for i := range uint16(400) { // all over the place
		f.Add(uint8(i), []byte{byte(i * 37), byte(i * 37 >> 4), byte(i * 11), byte(i), 0xFF, byte(i), 0, 3, 0, 0, 1, byte(i)})
	}
	f.Fuzz(func(t *testing.T, which uint8, how []byte) {
		s := images[int(which)%len(images)]
		x, err := xfs.OpenUnsummed(fstest.NewMutant(s.dev, s.sectors, how))
		if err != nil {
			fstest.Sensible(t, err)
			return
		}
		fstest.Exercise(t, x)
	})
}
