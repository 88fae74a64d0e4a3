package xfs_test

import (
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/fs/xfs"
)

// watched is a device that notes which pages are read, of 512 bytes each.
type watched struct {
	lun.Device
	mu sync.Mutex
	at []int64
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	for at := off &^ 511; at < off+int64(len(p)); at += 512 {
		w.at = append(w.at, at)
	}
	w.mu.Unlock()
	return w.Device.ReadAt(p, off)
}

// mutant is an image of which some bytes are others.
type mutant struct {
	lun.Device
	at   []int64
	what []byte // eight bytes each
}

func (m mutant) ReadAt(p []byte, off int64) (int, error) {
	n, err := m.Device.ReadAt(p, off)
	for i, at := range m.at {
		for k := range int64(8) {
			if j := at + k - off; j >= 0 && j < int64(n) {
				p[j] = m.what[int64(8*i)+k]
			}
		}
	}
	return n, err
}

// fuzzImage is a file system with something of everything.
func fuzzImage(tb testing.TB, options string) lun.Device {
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
	f.Close()
	unmount()
	return fstest.Device(tb, image)
}

// FuzzOpen: whatever is on the disk, with checksums that fit, reading ends, and errors name
// what is wrong.
func FuzzOpen(f *testing.F) {
	type seen struct {
		dev   lun.Device
		pages []int64
	}
	var images []seen
	for _, options := range []string{"", "-b size=1024 -m reflink=0 -i nrext64=0"} {
		w := &watched{Device: fuzzImage(f, options)}
		x, err := xfs.Open(w)
		if err != nil {
			f.Fatal(err)
		}
		fstest.Exercise(f, x)
		slices.Sort(w.at)
		images = append(images, seen{w.Device, slices.Compact(w.at)})
	}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 0, 0})
	for i := range uint16(400) { // all over the place
		f.Add(uint8(i), []byte{byte(i * 37), byte(i * 37 >> 4), byte(i * 11), byte(i), 0xFF, byte(i), 0, 3, 0, 0, 1, byte(i)})
	}
	f.Fuzz(func(t *testing.T, which uint8, how []byte) {
		s := images[int(which)%len(images)]
		m := mutant{Device: s.dev}
		for n := 0; len(how) >= 12 && n < 16; how, n = how[12:], n+1 {
			page := s.pages[int(binary.LittleEndian.Uint16(how))%len(s.pages)]
			m.at = append(m.at, page+int64(binary.LittleEndian.Uint16(how[2:])%505))
			m.what = append(m.what, how[4:12]...)
		}
		x, err := xfs.OpenUnsummed(m)
		if err != nil {
			fstest.Sensible(t, err)
			return
		}
		fstest.Exercise(t, x)
	})
}
