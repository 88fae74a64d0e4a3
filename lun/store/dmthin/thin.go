package dmthin

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/cleave-san/cleave/lun"
)

// Details is what the pool knows of one of its devices.
type Details struct {
	ID          uint64
	Mapped      uint64 // data blocks, shared ones included
	Transaction uint64 // user space's, when it was made
	Created     uint32 // Pool.Time when it was made
	Snapshotted uint32 // Pool.Time when it was last the origin of a snapshot
}

func details(id uint64, b []byte) Details {
	le := binary.LittleEndian
	return Details{id, le.Uint64(b), le.Uint64(b[8:]), le.Uint32(b[16:]), le.Uint32(b[20:])}
}

// Devices calls fn for each device of the pool, by ascending id. It stops at
// fn's first error and returns it.
func (p *Pool) Devices(fn func(Details) error) error {
	return p.walk(p.detail, detailSize, 0, math.MaxUint64, func(n *node, i int) error {
		return fn(details(n.key(i), n.value(i)))
	})
}

// Thin is one thin device of a pool, read-only. It never changes and may be
// used by several goroutines.
type Thin struct {
	Details
	pool     *Pool
	root     uint64
	size     int64
	external lun.Device
}

// Thin opens the device with that id, of size bytes: the pool does not know how
// large its devices are, whoever activates them does. Where nothing is mapped
// it reads as external, or as zeroes where that is nil or at its end.
func (p *Pool) Thin(id uint64, size int64, external lun.Device) (*Thin, error) {
	if size < 0 {
		return nil, fmt.Errorf("thin device %d of %d bytes: %w", id, size, lun.ErrOutOfRange)
	}
	absent := func(tree string) error {
		return &lun.FormatError{Format: format, Offset: -1, Field: tree, Value: id, Reason: "the pool has no device of this id"}
	}
	n, i, _, err := p.seek(p.detail, id, detailSize)
	switch {
	case err != nil:
		return nil, fmt.Errorf("thin device %d: %w", id, err)
	case i < 0:
		return nil, absent("device_details")
	}
	t := &Thin{Details: details(id, n.value(i)), pool: p, size: size, external: external}
	n, i, _, err = p.seek(p.mappings, id, rootSize)
	switch {
	case err != nil:
		return nil, fmt.Errorf("thin device %d: %w", id, err)
	case i < 0:
		return nil, absent("data_mapping")
	}
	if t.root, err = p.follow(n, i); err != nil {
		return nil, fmt.Errorf("thin device %d: %w", id, err)
	}
	if _, _, _, err = p.seek(t.root, 0, mappingSize); err != nil {
		return nil, fmt.Errorf("thin device %d: %w", id, err)
	}
	return t, nil
}

// Pool is what the device belongs to.
func (t *Thin) Pool() *Pool { return t.pool }

// DataDevice is what Lookup's and Ranges' places count on.
func (t *Thin) DataDevice() lun.Device { return t.pool.data }

// data is the block of the data device in the i-th mapping of a leaf.
func (t *Thin) data(n *node, i int) (uint64, error) {
	d := n.num(i) >> 24
	if d >= t.pool.Data.Total {
		return 0, n.fail(n.values+i*n.size, "mapping", d, fmt.Sprintf("of block %d of thin device %d: the pool has only %d data blocks", n.key(i), t.ID, t.pool.Data.Total))
	}
	return d, nil
}

// Lookup says where byte off of the device lies: at byte at of the data device
// if mapped; and for how many bytes from there the answer holds. off must lie
// within the device.
func (t *Thin) Lookup(off int64) (at, run int64, mapped bool, err error) {
	bs := t.pool.BlockSize
	block, in := uint64(off/bs), off%bs
	n, i, next, err := t.pool.seek(t.root, block, mappingSize)
	if err != nil {
		return 0, 0, false, err
	}
	left := t.size - off
	if i < 0 {
		if next > uint64(math.MaxInt64/bs) {
			return 0, left, false, nil
		}
		return 0, min(int64(next)*bs-off, left), false, nil
	}
	first, err := t.data(n, i)
	if err != nil {
		return 0, 0, false, err
	}
	run = bs - in
	for j := i + 1; j < n.n && run < left && n.key(j) == block+uint64(j-i) && n.num(j)>>24 == first+uint64(j-i); j++ {
		if _, err := t.data(n, j); err != nil {
			break // whoever reads on gets to know it
		}
		run += bs
	}
	return int64(first)*bs + in, min(run, left), true, nil
}

// Size is the size in bytes that the device was opened with.
func (t *Thin) Size() int64 { return t.size }

// Sync does nothing: the device can't be written.
func (t *Thin) Sync() error { return nil }

// WriteAt is ErrReadOnly.
func (t *Thin) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }

// ReadAt is that of lun.Device.
func (t *Thin) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), t.size); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at, run, mapped, err := t.Lookup(off + int64(done))
		if err != nil {
			return done, fmt.Errorf("thin device %d at byte %d: %w", t.ID, off+int64(done), err)
		}
		piece := p[done : done+int(min(run, int64(len(p)-done)))]
		if mapped {
			_, err = t.pool.data.ReadAt(piece, at)
		} else {
			err = t.readHole(piece, off+int64(done))
		}
		if err != nil {
			return done, err
		}
		done += len(piece)
	}
	return len(p), nil
}

func (t *Thin) readHole(p []byte, off int64) error {
	if t.external != nil && off < t.external.Size() {
		n := min(int64(len(p)), t.external.Size()-off)
		if _, err := t.external.ReadAt(p[:n], off); err != nil {
			return fmt.Errorf("external origin of thin device %d: %w", t.ID, err)
		}
		p = p[n:]
	}
	clear(p)
	return nil
}

// Range is a run of bytes of a thin device that lies in one piece on the data
// device.
type Range struct {
	Off int64 // of the thin device
	At  int64 // of the data device
	Len int64
}

// Ranges calls fn for all that is mapped of the n bytes at off, in order, each
// run as long as it is in one piece. It stops at fn's first error and returns
// it. It takes no more memory for many mappings than for few.
func (t *Thin) Ranges(off, n int64, fn func(Range) error) error {
	if err := lun.CheckRange(off, n, t.size); err != nil || n == 0 {
		return err
	}
	bs, end := t.pool.BlockSize, off+n
	var run Range
	flush := func() error {
		if run.Len == 0 {
			return nil
		}
		return fn(run)
	}
	err := t.pool.walk(t.root, mappingSize, uint64(off/bs), uint64((end-1)/bs)+1, func(l *node, i int) error {
		d, err := t.data(l, i)
		if err != nil {
			return err
		}
		r := Range{int64(l.key(i)) * bs, int64(d) * bs, bs}
		if r.Off < off {
			cut := off - r.Off
			r = Range{off, r.At + cut, bs - cut}
		}
		r.Len = min(r.Len, end-r.Off)
		if run.Len > 0 && run.Off+run.Len == r.Off && run.At+run.Len == r.At {
			run.Len += r.Len
			return nil
		}
		if err := flush(); err != nil {
			return err
		}
		run = r
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// Extents is that of lun.Mapper. Over an external origin nothing is known to be
// a hole.
func (t *Thin) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, t.size); err != nil || n == 0 {
		return err
	}
	end := off + n
	if t.external != nil {
		return fn(lun.Extent{Off: off, Len: n})
	}
	next := lun.Extent{Off: off}
	err := t.Ranges(off, n, func(r Range) error {
		if r.Off == next.Off+next.Len && !next.Hole { // apart on the data device only
			next.Len += r.Len
			return nil
		}
		if next.Len > 0 {
			if err := fn(next); err != nil {
				return err
			}
		}
		if at := next.Off + next.Len; at < r.Off {
			if err := fn(lun.Extent{Off: at, Len: r.Off - at, Hole: true}); err != nil {
				return err
			}
		}
		next = lun.Extent{Off: r.Off, Len: r.Len}
		return nil
	})
	if err == nil && next.Len > 0 {
		err = fn(next)
	}
	if at := next.Off + next.Len; err == nil && at < end {
		err = fn(lun.Extent{Off: at, Len: end - at, Hole: true})
	}
	return err
}
