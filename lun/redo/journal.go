package redo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cleave-san/cleave/lun"
)

// Journal is one that was sealed. It is used by one goroutine.
type Journal struct {
	ID    ID
	Sizes []int64 // of the devices, in bytes
	Note  []byte
	Bytes int64 // of data, guards included

	f      File
	h      *header
	guards []record
}

// Open reads and checks a whole journal. ErrNone: there is none, and the file may
// get one. Any other error says that the file holds what should not be lost, or
// can't be read.
func Open(ctx context.Context, f File) (*Journal, error) {
	h, err := readHeader(f)
	if err != nil {
		return nil, err
	}
	prefix, err := io.ReadAll(io.NewSectionReader(f, Sector, h.prefix()))
	if err != nil {
		return nil, fmt.Errorf("read the redo journal: %w", err)
	}
	if int64(len(prefix)) != h.prefix() || crc32.Checksum(prefix, castagnoli) != h.prefixSum {
		return nil, damaged(Sector, "checksum", nil, "that of the devices' sizes and the note is wrong")
	}
	j := &Journal{ID: h.id, f: f, h: h, Note: prefix[h.devices*8:]}
	for i := range h.devices {
		n := int64(le.Uint64(prefix[i*8:]))
		if n < 0 {
			return nil, damaged(Sector+int64(i)*8, "size", n, "is none of a device")
		}
		j.Sizes = append(j.Sizes, n)
	}
	err = j.walk(ctx, func(r record) error {
		j.Bytes += int64(len(r.data))
		if r.guard {
			r.data = bytes.Clone(r.data)
			j.guards = append(j.guards, r)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(j.guards) == 0 {
		return nil, damaged(-1, "guards", 0, "there is none: it could not be told whether it was begun")
	}
	return j, nil
}

// Sealed looks at the beginning of a file alone: nil where a journal is that was
// sealed, ErrNone as of Open.
func Sealed(f File) error {
	_, err := readHeader(f)
	return err
}

// walk calls fn with each record, guards first. fn must not keep the data.
func (j *Journal) walk(ctx context.Context, fn func(record) error) error {
	in := bufio.NewReaderSize(io.NewSectionReader(j.f, j.h.start(), j.h.end-j.h.start()), 64<<10)
	at := j.h.start()
	head, buf := make([]byte, recordHead), make([]byte, 0, Sector)
	var guards []record
	data := false
	for i := int64(0); i < j.h.records; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := read(in, head, at); err != nil {
			return err
		}
		r := record{device: int(le.Uint32(head)), off: int64(le.Uint64(head[8:])), guard: head[16] == 1}
		n := int64(le.Uint32(head[4:]))
		switch {
		case le.Uint32(head[16:]) > 1:
			return damaged(at+16, "kind", le.Uint32(head[16:]), "is not known")
		case r.device >= len(j.Sizes):
			return damaged(at, "device", r.device, fmt.Sprintf("there are %d", len(j.Sizes)))
		case n == 0 || n > MaxPiece || lun.CheckRange(r.off, n, j.Sizes[r.device]) != nil:
			return damaged(at+4, "length", n, fmt.Sprintf("is no piece at byte %d of a device of %d", r.off, j.Sizes[r.device]))
		case r.guard && (n != Sector || data || len(guards) == maxGuards):
			return damaged(at, "guard", r.off, "is not one sector, or does not come first, or there are too many")
		}
		for _, g := range guards {
			if g.device == r.device && r.off < g.off+Sector && g.off < r.off+n {
				return damaged(at+8, "offset", r.off, "the piece lies on a guard")
			}
		}
		if int64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		r.data = buf[:n]
		if err := read(in, r.data, at+recordHead); err != nil {
			return err
		}
		if r.sum(j.ID, head) != le.Uint32(head[20:]) {
			return damaged(at+20, "checksum", nil, "a record's is wrong")
		}
		if r.guard {
			guards = append(guards, record{device: r.device, off: r.off})
		} else {
			data = true
		}
		if err := fn(r); err != nil {
			return err
		}
		at += recordHead + n
	}
	if at != j.h.end {
		return damaged(32, "end", j.h.end, fmt.Sprintf("the records end at byte %d", at))
	}
	return nil
}

func read(in io.Reader, b []byte, at int64) error {
	switch _, err := io.ReadFull(in, b); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return damaged(at, "length", nil, "the journal ends before its last record")
	case err != nil:
		return fmt.Errorf("read the redo journal at byte %d: %w", at, err)
	}
	return nil
}

// Unbegun reports whether no device has more of a journal than marks.
func (j *Journal) Unbegun() bool { return j.h.state == sealed }

// Fits reports whether devices have the sizes of the journal's.
func (j *Journal) Fits(devices []lun.Device) bool {
	if len(devices) != len(j.Sizes) {
		return false
	}
	for i, d := range devices {
		if d.Size() != j.Sizes[i] {
			return false
		}
	}
	return true
}

// Begun reports whether a guard has the journal's mark. The devices Fit.
func (j *Journal) Begun(devices []lun.Device) (bool, error) {
	for _, g := range j.guards {
		id, ok, err := Marked(devices[g.device], g.off)
		if err != nil {
			return false, fmt.Errorf("device %d: %w", g.device+1, err)
		}
		if ok && id == j.ID {
			return true, nil
		}
	}
	return false, nil
}

var errDiffers = errors.New("differs")

// Applied reports whether all that the journal holds is on the devices, which Fit.
func (j *Journal) Applied(ctx context.Context, devices []lun.Device) (bool, error) {
	buf := make([]byte, MaxPiece)
	err := j.walk(ctx, func(r record) error {
		if _, err := devices[r.device].ReadAt(buf[:len(r.data)], r.off); err != nil {
			return fmt.Errorf("device %d: read at byte %d: %w", r.device+1, r.off, err)
		}
		if !bytes.Equal(buf[:len(r.data)], r.data) {
			return errDiffers
		}
		return nil
	})
	if errors.Is(err, errDiffers) {
		return false, nil
	}
	return err == nil, err
}

// Extents calls fn for each piece, by its place in the journal.
func (j *Journal) Extents(ctx context.Context, fn func(device int, off, n int64)) error {
	return j.walk(ctx, func(r record) error {
		fn(r.device, r.off, int64(len(r.data)))
		return nil
	})
}

// Apply writes the journal to its devices, which Fit and are used by nobody else,
// and makes it stable. progress, which may be nil, gets the bytes written. On error,
// that of ctx included, the devices may be half written; Apply of the same journal,
// opened again or not, ends it.
func (j *Journal) Apply(ctx context.Context, devices []lun.Device, progress func(int64)) error {
	for _, g := range j.guards {
		if err := write(devices, record{device: g.device, off: g.off, data: mark(j.ID)}); err != nil {
			return err
		}
	}
	if err := j.sync(devices); err != nil {
		return err
	}
	if j.h.state != begun {
		h := *j.h
		h.state = begun
		_, err := j.f.WriteAt(h.put(), 0)
		if err == nil {
			err = j.f.Sync()
		}
		if err != nil {
			return fmt.Errorf("write the redo journal: %w", err)
		}
		j.h = &h
	}
	done := int64(0)
	count := func(n int) {
		if done += int64(n); progress != nil {
			progress(done)
		}
	}
	err := j.walk(ctx, func(r record) error {
		if r.guard {
			return nil
		}
		defer count(len(r.data))
		return write(devices, r)
	})
	if err != nil {
		return err
	}
	if err := j.sync(devices); err != nil {
		return err
	}
	for _, g := range j.guards {
		if err := write(devices, g); err != nil {
			return err
		}
		count(Sector)
	}
	return j.sync(devices)
}

func write(devices []lun.Device, r record) error {
	if _, err := devices[r.device].WriteAt(r.data, r.off); err != nil {
		return fmt.Errorf("device %d: write %d bytes at byte %d: %w", r.device+1, len(r.data), r.off, err)
	}
	return nil
}

func (j *Journal) sync(devices []lun.Device) error {
	for i, d := range devices {
		if err := d.Sync(); err != nil {
			return fmt.Errorf("device %d: %w", i+1, err)
		}
	}
	return nil
}
