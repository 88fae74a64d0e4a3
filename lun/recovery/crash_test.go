package recovery_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
)

// errCut is what every disk of a machine answers once its power was cut.
var errCut = errors.New("the power was cut")

// machine is disks that lose their power together: at the cut, each sector that
// was written since its disk's last Sync is there or is not, as chance has it,
// and the write that is under way is torn the same way. Sectors are whole.
type machine struct {
	mu     sync.Mutex
	disks  []*volatile
	beside []*volatile // what is no disk of the guest's
	writes int         // so far
	cutAt  int         // the write in which the power is cut; 0: never
	cut    bool
	chance *rand.Rand
}

const sector = 512

// volatile is a disk with a cache that its Sync empties.
type volatile struct {
	m      *machine
	stable []byte
	cache  map[int64][]byte // by sector
	undo   map[int64][]byte // what stable held before
	wrote  []lun.Extent
	syncs  int
}

func newMachine(t testing.TB, images ...string) *machine {
	t.Helper()
	m := &machine{}
	for _, name := range images {
		b, err := os.ReadFile(unpack(t, name))
		if err != nil {
			t.Fatal(err)
		}
		m.add(b)
	}
	return m
}

func (m *machine) add(b []byte) {
	m.disks = append(m.disks, &volatile{m: m, stable: b, cache: map[int64][]byte{}, undo: map[int64][]byte{}})
}

// newFile is a file that loses its power with the disks, and is empty at first.
func (m *machine) newFile(size int) *file {
	f := &file{&volatile{m: m, stable: make([]byte, size), cache: map[int64][]byte{}, undo: map[int64][]byte{}}}
	m.beside = append(m.beside, f.volatile)
	return f
}

type file struct{ *volatile }

// ReadAt has the end of the file where nothing was ever written.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	end := int64(0)
	f.m.mu.Lock()
	for _, sectors := range []map[int64][]byte{f.undo, f.cache} {
		for s := range sectors {
			end = max(end, (s+1)*sector)
		}
	}
	f.m.mu.Unlock()
	n := max(0, min(int64(len(p)), end-off))
	got, err := f.volatile.ReadAt(p[:n], off)
	if err == nil && n < int64(len(p)) {
		err = io.EOF
	}
	return got, err
}

// reset puts all disks back to what they held at first.
func (m *machine) reset() {
	m.writes, m.cutAt, m.cut = 0, 0, false
	for _, d := range slices.Concat(m.disks, m.beside) {
		for s, b := range d.undo {
			copy(d.stable[s*sector:], b)
		}
		clear(d.undo)
		clear(d.cache)
		d.wrote, d.syncs = nil, 0
	}
}

// restart gives the power back.
func (m *machine) restart() {
	m.cut, m.cutAt, m.writes = false, 0, 0
	for _, d := range slices.Concat(m.disks, m.beside) {
		clear(d.cache)
	}
}

func (m *machine) sources() []open.Source {
	var out []open.Source
	for i, d := range m.disks {
		out = append(out, open.Source{Name: fmt.Sprintf("disk %d", i+1), Device: d})
	}
	return out
}

func (d *volatile) Size() int64 { return int64(len(d.stable)) }

func (d *volatile) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.m.cut {
		return 0, errCut
	}
	copy(p, d.stable[off:])
	if len(d.cache) == 0 {
		return len(p), nil
	}
	for s := off / sector; s*sector < off+int64(len(p)); s++ {
		if b, ok := d.cache[s]; ok {
			from, to := max(off, s*sector), min(off+int64(len(p)), (s+1)*sector)
			copy(p[from-off:to-off], b[from-s*sector:])
		}
	}
	return len(p), nil
}

func (d *volatile) WriteAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.m.cut {
		return 0, errCut
	}
	d.m.writes++
	d.wrote = append(d.wrote, lun.Extent{Off: off, Len: int64(len(p))})
	for done := int64(0); done < int64(len(p)); {
		s := (off + done) / sector
		in := off + done - s*sector
		b := bytes.Clone(d.stable[s*sector : (s+1)*sector])
		if c, ok := d.cache[s]; ok {
			copy(b, c)
		}
		n := copy(b[in:], p[done:])
		d.cache[s] = b
		done += int64(n)
	}
	if d.m.writes == d.m.cutAt {
		d.m.pull()
		return 0, errCut
	}
	return len(p), nil
}

// pull cuts the power.
func (m *machine) pull() {
	m.cut = true
	for _, d := range slices.Concat(m.disks, m.beside) {
		keep := m.chance.IntN(101) // of a hundred
		for s, b := range d.cache {
			if m.chance.IntN(100) < keep {
				d.store(s, b)
			}
		}
	}
}

func (d *volatile) store(s int64, b []byte) {
	if _, ok := d.undo[s]; !ok {
		d.undo[s] = bytes.Clone(d.stable[s*sector : (s+1)*sector])
	}
	copy(d.stable[s*sector:], b)
}

func (d *volatile) Sync() error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.m.cut {
		return errCut
	}
	d.syncs++
	for s, b := range d.cache {
		d.store(s, b)
	}
	clear(d.cache)
	return nil
}

// content reads a whole device.
func content(t testing.TB, d lun.Device) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if _, err := io.ReadFull(io.NewSectionReader(d, 0, d.Size()), b); err != nil {
		t.Fatal(err)
	}
	return b
}
