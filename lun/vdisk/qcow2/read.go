package qcow2

import (
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
)

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		r, err := d.lookup(at, int64(len(p)-n))
		if err != nil {
			return n, err
		}
		part := p[n : n+int(r.n)]
		switch r.kind {
		case zero:
			clear(part)
		case data:
			err = readTail(d.data, part, r.host)
		case compressed:
			err = d.unpack.read(part, r.host, at&(d.h.cluster()-1))
		case absent:
			err = d.readBacking(part, at)
		}
		if err != nil {
			return n, err
		}
		n += int(r.n)
	}
	return len(p), nil
}

// readBacking reads what no cluster of this layer holds.
func (d *disk) readBacking(p []byte, off int64) error {
	if d.backing == nil {
		clear(p)
		return nil
	}
	return readTail(d.backing, p, off)
}

// readTail reads from a device, and zeroes beyond its end.
func readTail(dev lun.Device, p []byte, off int64) error {
	n := min(max(dev.Size()-off, 0), int64(len(p)))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	if _, err := dev.ReadAt(p[:n], off); err != nil {
		return fmt.Errorf("read %d bytes at byte %d: %w", n, off, err)
	}
	return nil
}

// Extents reports zero and absent clusters as holes, the latter as far as the
// backing file has nothing either.
func (d *disk) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, d.size); err != nil {
		return err
	}
	m := merger{fn: fn}
	for end := off + n; off < end; {
		r, err := d.lookup(off, end-off)
		if err != nil {
			return err
		}
		m.merged += r.steps
		switch r.kind {
		case absent:
			err = d.backingExtents(off, r.n, &m)
		default:
			err = m.add(lun.Extent{Off: off, Len: r.n, Hole: r.kind == zero})
		}
		if err != nil {
			return err
		}
		off += r.n
	}
	return m.flush()
}

// backingExtents passes the backing file's own extents on as they are: each may
// have taken maxSteps, and merging them on every layer would multiply that.
func (d *disk) backingExtents(off, n int64, m *merger) error {
	here := int64(0)
	if d.backing != nil {
		here = min(max(d.backing.Size()-off, 0), n)
	}
	if here > 0 {
		if err := m.flush(); err != nil {
			return err
		}
		if err := vdisk.Extents(d.backing, off, here, m.fn); err != nil {
			return err
		}
	}
	if here == n {
		return nil
	}
	return m.add(lun.Extent{Off: off + here, Len: n - here, Hole: true})
}

// merger puts neighbours that are alike together, up to maxSteps of the tables,
// so that fn is called, and can end it, whatever they look like.
type merger struct {
	fn     func(lun.Extent) error
	cur    lun.Extent
	merged int
}

func (m *merger) add(e lun.Extent) error {
	if m.merged++; m.cur.Len > 0 && m.cur.Hole == e.Hole && m.merged < maxSteps {
		m.cur.Len += e.Len
		return nil
	}
	err := m.flush()
	m.cur = e
	return err
}

func (m *merger) flush() error {
	if m.cur.Len == 0 {
		return nil
	}
	e := m.cur
	m.cur, m.merged = lun.Extent{}, 0
	return m.fn(e)
}
