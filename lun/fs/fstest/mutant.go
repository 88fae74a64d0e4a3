package fstest

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/cleave-san/cleave/lun"
)

// sector is the unit that Seen notes reads in, in bytes.
const sector = 512

// Seen is a device that notes which of its sectors are read: where changes matter.
type Seen struct {
	lun.Device
	mu sync.Mutex
	at map[int64]bool
}

// See notes the reads of a device from now on.
func See(d lun.Device) *Seen { return &Seen{Device: d, at: make(map[int64]bool)} }

func (s *Seen) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	for at := off &^ (sector - 1); at < off+int64(len(p)); at += sector {
		s.at[at] = true
	}
	s.mu.Unlock()
	return s.Device.ReadAt(p, off)
}

// Sectors are the bytes at which those begin that were read, in their order.
func (s *Seen) Sectors() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]int64, 0, len(s.at))
	for at := range s.at {
		out = append(out, at)
	}
	slices.Sort(out)
	return out
}

// Mutant is a device of which some bytes are others.
type Mutant struct {
	lun.Device
	at   []int64
	what []byte // eight for each
}

// NewMutant changes up to 16 places in some sectors of a device as the fuzzer says:
// each twelve bytes are which sector, where in it, and eight bytes.
func NewMutant(d lun.Device, sectors []int64, how []byte) *Mutant {
	m := &Mutant{Device: d}
	for n := 0; len(how) >= 12 && n < 16; how, n = how[12:], n+1 {
		at := sectors[int(binary.LittleEndian.Uint16(how))%len(sectors)]
		m.Put(at+int64(binary.LittleEndian.Uint16(how[2:])%(sector-7)), [8]byte(how[4:]))
	}
	return m
}

// Put changes eight bytes. It must not run beside a read.
func (m *Mutant) Put(at int64, what [8]byte) {
	m.at, m.what = append(m.at, at), append(m.what, what[:]...)
}

func (m *Mutant) ReadAt(p []byte, off int64) (int, error) {
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
