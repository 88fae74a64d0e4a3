package open_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/vdisktest"
)

// Bounds on looking at one source, whatever its headers say.
const (
	maxMemory = 64 << 20  // that opening allocates, also that a disk holds after
	maxRead   = 256 << 20 // that opening reads
)

// watched counts what is done to a device.
type watched struct {
	memory
	read, writes atomic.Int64
}

func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	w.read.Add(int64(len(p)))
	return w.memory.ReadAt(p, off)
}

func (w *watched) WriteAt([]byte, int64) (int, error) {
	w.writes.Add(1)
	return 0, lun.ErrReadOnly
}

// allocated is how many bytes were allocated so far, whether or not they have
// been collected: no limit of the runtime's shows in it.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// look opens what b is, reads here and there, and checks the bounds and the
// errors. All further files are the disk itself.
func look(t *testing.T, what string, b memory) {
	t.Helper()
	w := &watched{memory: b}
	files := vdisk.ResolverFunc(func(string, bool) (lun.Device, error) { return w, nil })
	before := allocated()
	c, err := open.Probe(t.Context(), open.Source{Name: "disk", Device: w, Containers: true, Files: files})
	if n := allocated() - before; n > maxMemory {
		t.Errorf("%s: opening it allocates %d MiB", what, n>>20)
	}
	if n := w.read.Load(); n > maxRead {
		t.Errorf("%s: opening it reads %d MiB", what, n>>20)
	}
	if err != nil {
		sensible(t, what, err)
		return
	}
	defer c.Close()
	for _, err := range append(c.Damage, c.Warnings...) {
		if strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("%s: %q", what, err)
		}
	}
	p := make([]byte, 4096)
	for _, v := range c.Volumes() {
		d, err := v.Open()
		if err != nil {
			sensible(t, what+", "+v.Name, err)
			continue
		}
		for _, off := range []int64{0, d.Size() / 2, d.Size() - int64(len(p))} {
			if off >= 0 && off+int64(len(p)) <= d.Size() {
				if _, err := d.ReadAt(p, off); err != nil {
					sensible(t, what+", "+v.Name, err)
				}
			}
		}
	}
	if w.writes.Load() > 0 {
		t.Errorf("%s: it was written to", what)
	}
}

// sensible wants an error that names the place, or the other file, or the
// missing part.
func sensible(t *testing.T, what string, err error) {
	t.Helper()
	var fe *lun.FormatError
	switch {
	case errors.As(err, &fe):
		if fe.Format == "" || fe.Field == "" || fe.Reason == "" {
			t.Errorf("%s: %#v", what, fe)
		}
	case errors.Is(err, vdisk.ErrOtherFile), errors.Is(err, vdisk.ErrDepth):
	default:
		t.Errorf("%s: an error of no kind: %v", what, err)
	}
}

// TestDamaged cuts disks of every format off, and puts wrong numbers into their
// first and last bytes and beside pointers: huge ones, ones that point at
// themselves, at the header, beyond the end.
func TestDamaged(t *testing.T) {
	dir := vdisktest.Unpack(t, filepath.Join("..", "testdata"), "")
	tests := map[string]memory{
		"gpt": image(t, "lvm-o2-thick-gpt-crash"), "lvm": image(t, "lvm-o1-thick-4k"), "thin": image(t, "lvm-o3-thin"),
	}
	for _, name := range []string{"qcow2-isnap.qcow2", "qcow2-overlay-extl2.qcow2", "qcow2-c512.qcow2", "qcow2-zstd.qcow2", "vpc-dynamic.vhd",
		"diff-child-g8.vhd", "vhdx-dynamic-1m.vhdx", "vhdx-needs-replay.vhdx", "diff-child-g1.vhdx",
		"vmdk-monolithicSparse.vmdk", "vmdk-streamOptimized.vmdk", "vmdk-delta.vmdk", "vmdk-twoGbMaxExtentSparse.vmdk"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		tests[name] = b
	}
	for name, whole := range tests {
		t.Run(name, func(t *testing.T) {
			size := whole.Size()
			for n := int64(1); n < size; n = n*3 + 17 {
				look(t, fmt.Sprintf("cut to %d bytes", n), whole[:n])
				look(t, fmt.Sprintf("%d bytes shorter", n), whole[:size-n])
			}
			r := rand.New(rand.NewPCG(6, 6))
			work := bytes.Clone(whole)
			for range 150 {
				n := size
				if r.IntN(4) > 0 {
					n = min(size, 4096<<r.IntN(6))
				}
				off := r.Int64N(n) &^ 3
				if r.IntN(8) == 0 {
					off = max(0, size-1-off%1024)
				}
				field := work[off:min(size, off+8)]
				old := bytes.Clone(field)
				v := []uint64{0, 1, 1 << 31, 1 << 62, 1<<64 - 1, uint64(off), uint64(off) / 512, uint64(size), uint64(size) - 1, r.Uint64()}[r.IntN(10)]
				var b [8]byte
				if r.IntN(2) == 0 {
					binary.BigEndian.PutUint64(b[:], v)
				} else {
					binary.LittleEndian.PutUint64(b[:], v)
				}
				if r.IntN(2) == 0 {
					copy(field, b[:])
				} else {
					copy(field, b[4:])
				}
				look(t, fmt.Sprintf("%d at byte %d", v, off), work)
				copy(field, old)
			}
		})
	}
}
