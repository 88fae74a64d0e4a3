package main

import (
	"bytes"
	"sync"

	"github.com/cleave-san/cleave/lun"
)

// memory is a thin device in memory: it can trim, write zeroes, and tell holes
// from data in steps of 4 KiB. What was never written takes no memory.
type memory struct {
	mu     sync.RWMutex
	pieces [][]byte // nil: a hole

	physical int // block, in bytes
}

const (
	piece = 64 << 10 // bytes; divides the size
	step  = 4 << 10
)

var zeroes [step]byte

func newMemory(size int64, physical int) *memory {
	return &memory{pieces: make([][]byte, size/piece), physical: physical}
}

func (m *memory) Size() int64 { return int64(len(m.pieces)) * piece }
func (m *memory) Sync() error { return nil }

// Blocks makes it a disk of 512-byte logical blocks.
func (m *memory) Blocks() (logical, physical int) { return 512, m.physical }

// each calls fn for the parts of a range, each within one piece. mu is held.
func (m *memory) each(off, n int64, fn func(index, at, n int64)) {
	for n > 0 {
		at := off % piece
		k := min(n, piece-at)
		fn(off/piece, at, k)
		off, n = off+k, n-k
	}
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	rest := p
	m.each(off, int64(len(p)), func(i, at, n int64) {
		if m.pieces[i] == nil {
			clear(rest[:n])
		} else {
			copy(rest[:n], m.pieces[i][at:])
		}
		rest = rest[n:]
	})
	return len(p), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	rest := p
	m.each(off, int64(len(p)), func(i, at, n int64) {
		if m.pieces[i] == nil {
			m.pieces[i] = make([]byte, piece)
		}
		copy(m.pieces[i][at:], rest[:n])
		rest = rest[n:]
	})
	return len(p), nil
}

func (m *memory) Trim(off, n int64) error {
	if err := lun.CheckRange(off, n, m.Size()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.each(off, n, func(i, at, n int64) {
		switch {
		case m.pieces[i] == nil:
		case n == piece:
			m.pieces[i] = nil
		default:
			clear(m.pieces[i][at : at+n])
		}
	})
	return nil
}

func (m *memory) WriteZeroes(off, n int64) error { return m.Trim(off, n) }

func (m *memory) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, m.Size()); err != nil {
		return err
	}
	for end := off + n; off < end; {
		to := min((off/step+1)*step, end)
		m.mu.RLock()
		p := m.pieces[off/piece]
		hole := p == nil || bytes.Equal(p[off%piece:off%piece+to-off], zeroes[:to-off])
		m.mu.RUnlock()
		if err := fn(lun.Extent{Off: off, Len: to - off, Hole: hole}); err != nil {
			return err
		}
		off = to
	}
	return nil
}
