package redo

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cleave-san/cleave/lun"
)

// Writer makes a journal. It is used by one goroutine.
type Writer struct {
	f     File
	h     header
	sizes []int64
	w     *bufio.Writer
	data  bool // guards come before everything else
}

// Create begins a journal for devices of these sizes, in bytes, and drops the one
// that f held: whether that may go is the caller's to know. note is kept with it.
func Create(f File, sizes []int64, note []byte) (*Writer, error) {
	if len(sizes) == 0 || len(sizes) > maxDevices || len(note) > MaxNote {
		return nil, fmt.Errorf("redo journal of %d devices with a note of %d bytes: %w", len(sizes), len(note), lun.ErrOutOfRange)
	}
	w := &Writer{f: f, sizes: sizes, h: header{devices: len(sizes), note: len(note)}}
	_, _ = rand.Read(w.h.id[:]) // never fails
	var prefix []byte
	for _, n := range sizes {
		prefix = le.AppendUint64(prefix, uint64(n))
	}
	prefix = append(prefix, note...)
	w.h.prefixSum = crc32.Checksum(prefix, castagnoli)
	w.h.end = w.h.start()
	// Before anything of the old one is overwritten.
	if err := w.head(); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(prefix, Sector); err != nil {
		return nil, fmt.Errorf("write the redo journal: %w", err)
	}
	w.w = bufio.NewWriterSize(io.NewOffsetWriter(f, w.h.start()), MaxPiece)
	return w, nil
}

// head makes the header stable.
func (w *Writer) head() error {
	_, err := w.f.WriteAt(w.h.put(), 0)
	if err == nil {
		err = w.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("write the redo journal: %w", err)
	}
	return nil
}

// Guard takes the content, of Sector bytes, that a sector has in the end. All
// guards come before the first Add, and nothing that is added lies on one.
func (w *Writer) Guard(device int, off int64, data []byte) error {
	if len(data) != Sector || w.data {
		return fmt.Errorf("redo journal: a guard of %d bytes at byte %d: %w", len(data), off, lun.ErrOutOfRange)
	}
	return w.add(record{device: device, off: off, data: data, guard: true})
}

// Add takes up to MaxPiece bytes that are written to a device at off.
func (w *Writer) Add(device int, off int64, data []byte) error {
	w.data = true
	return w.add(record{device: device, off: off, data: data})
}

func (w *Writer) add(r record) error {
	if r.device < 0 || r.device >= len(w.sizes) || len(r.data) == 0 || len(r.data) > MaxPiece || lun.CheckRange(r.off, int64(len(r.data)), w.sizes[r.device]) != nil {
		return fmt.Errorf("redo journal: %d bytes at byte %d of device %d: %w", len(r.data), r.off, r.device+1, lun.ErrOutOfRange)
	}
	_, err := w.w.Write(r.head(w.h.id))
	if err == nil {
		_, err = w.w.Write(r.data)
	}
	if err != nil {
		return fmt.Errorf("write the redo journal: %w", err)
	}
	w.h.records++
	w.h.end += recordHead + int64(len(r.data))
	return nil
}

// Seal makes the journal stable, and says that it is whole.
func (w *Writer) Seal() error {
	err := w.w.Flush()
	if err == nil {
		err = w.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("write the redo journal: %w", err)
	}
	w.h.state = sealed
	return w.head()
}
