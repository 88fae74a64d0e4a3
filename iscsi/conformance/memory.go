package main

import (
	"bytes"
	"sync"

	"github.com/cleave-san/cleave/lun"
)

// memory is a thin device in memory: it can trim, write zeroes, and tell holes
// from data in steps of 4 KiB.
type memory struct {
	mu   sync.RWMutex
	data []byte

	physical int // block, in bytes
}

func newMemory(size int64, physical int) *memory {
	return &memory{data: make([]byte, size), physical: physical}
}

func (m *memory) Size() int64 { return int64(len(m.data)) }
func (m *memory) Sync() error { return nil }

// Blocks makes it a disk of 512-byte logical blocks.
func (m *memory) Blocks() (logical, physical int) { return 512, m.physical }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return copy(p, m.data[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.data[off:], p), nil
}

func (m *memory) Trim(off, n int64) error {
	if err := lun.CheckRange(off, n, m.Size()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	return nil
}

func (m *memory) WriteZeroes(off, n int64) error { return m.Trim(off, n) }

func (m *memory) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, m.Size()); err != nil {
		return err
	}
	const step = 4096
	var none [step]byte
	for end := off + n; off < end; {
		to := min((off/step+1)*step, end)
		m.mu.RLock()
		hole := bytes.Equal(m.data[off:to], none[:to-off])
		m.mu.RUnlock()
		if err := fn(lun.Extent{Off: off, Len: to - off, Hole: hole}); err != nil {
			return err
		}
		off = to
	}
	return nil
}
