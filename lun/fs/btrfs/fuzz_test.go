package btrfs_test

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	files "github.com/cleave-san/cleave/lun/fs/btrfs"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/store/btrfs"
)

// watched is a device that notes where it is read.
type watched struct {
	lun.Device
	mu sync.Mutex
	at []int64
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	if len(p) == 16384 || len(p) == 4096 {
		w.at = append(w.at, off)
	}
	w.mu.Unlock()
	return w.Device.ReadAt(p, off)
}

// mutant is an image in which some blocks are others.
type mutant struct {
	luntest.ReadOnly
	blocks map[int64][]byte
}

func (m mutant) ReadAt(p []byte, off int64) (int, error) {
	n, err := m.ReadOnly.ReadAt(p, off)
	if b := m.blocks[off]; b != nil {
		copy(p, b)
	}
	return n, err
}

func exercise(t testing.TB, dev lun.Device) {
	f, err := btrfs.Open(dev)
	if err != nil {
		fstest.Sensible(t, err)
		return
	}
	list, err := f.Subvolumes()
	fstest.Sensible(t, err)
	for i, s := range list {
		if i == 8 {
			break
		}
		x, err := files.Open(f, s.ID)
		if err != nil {
			fstest.Sensible(t, err)
			continue
		}
		fstest.Exercise(t, x)
		e := f.Edit(list)
		if e.Revert(s) == nil {
			if _, err := e.Patches(); err != nil {
				fstest.Sensible(t, err)
			}
		}
	}
}

// FuzzOpen: whatever the blocks say, with checksums that fit, reading ends and has
// errors that name what is wrong.
func FuzzOpen(f *testing.F) {
	image := luntest.Image(f, "btrfs-open1")
	w := &watched{Device: image}
	exercise(f, w)
	slices.Sort(w.at)
	places := slices.Compact(w.at)
	f.Add([]byte{1, 0, 101, 0, 1, 2, 3, 4, 5, 6, 7, 8}, true)
	f.Add([]byte{0, 0, 80, 0, 1, 2, 3, 4, 5, 6, 7, 8}, false)
	f.Fuzz(func(t *testing.T, how []byte, all bool) {
		m := mutant{image, make(map[int64][]byte)}
		for n := 0; len(how) >= 12 && n < 16; how, n = how[12:], n+1 {
			at := places[int(binary.LittleEndian.Uint16(how))%len(places)]
			b := m.blocks[at]
			if b == nil {
				size := 16384
				if at == 64<<10 {
					size = 4096
				}
				b = make([]byte, size)
				if _, err := image.ReadAt(b, at); err != nil {
					t.Fatal(err)
				}
				m.blocks[at] = b
			}
			k := 8
			if !all {
				k = 1
			}
			copy(b[32+int(binary.LittleEndian.Uint16(how[2:]))%(len(b)-40):][:k], how[4:])
		}
		for _, b := range m.blocks {
			binary.LittleEndian.PutUint32(b, crc32.Checksum(b[32:], crc32.MakeTable(crc32.Castagnoli)))
		}
		exercise(t, m)
	})
}

var _ fs.FS = (*files.FS)(nil)
