package worker

import (
	"context"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/recovery"
)

const (
	// rewrittenPrefix and an Export's name is the name of one more export, the
	// map of where that one differs from its device.
	rewrittenPrefix = "rewritten-"
	// rewrittenUnit is what a bit of the map stands for, in bytes.
	rewrittenUnit = 64 << 10
	// mapBlock is what the size of a map is a multiple of.
	mapBlock = 512
)

// rewrittenMap is where a device of a view may differ from the split, as a
// read-only device: a bit for each rewrittenUnit, the lowest of a byte first. A
// read tells how it is at that moment.
type rewrittenMap struct {
	view   *recovery.View
	device int
}

func mapSize(size int64) int64 {
	bits := (size + rewrittenUnit - 1) / rewrittenUnit
	return max(1, (bits+8*mapBlock-1)/(8*mapBlock)) * mapBlock
}

func (m *rewrittenMap) Size() int64                        { return mapSize(m.view.Clean[m.device].Size()) }
func (m *rewrittenMap) Sync() error                        { return nil }
func (m *rewrittenMap) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }

func (m *rewrittenMap) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	lists, err := m.view.Rewritten()
	if err != nil {
		return 0, err
	}
	clear(p)
	first, end := off*8, (off+int64(len(p)))*8
	for _, e := range lists[m.device] {
		for i := max(first, e.Off/rewrittenUnit); i < end && i*rewrittenUnit < e.Off+e.Len; i++ {
			p[i/8-off] |= 1 << (i % 8)
		}
	}
	return len(p), nil
}

// Rewritten asks a running view where one of its exports differs, or may, from
// the source under it, which has size bytes: by what was recovered, and by what
// has been written to the view until now; what is written meanwhile may be left
// out. Extents are in order and apart, in units of 64 KiB.
func Rewritten(ctx context.Context, socket, export string, size int64) ([]lun.Extent, error) {
	c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{Export: rewrittenPrefix + export})
	if err != nil {
		return nil, fmt.Errorf("what a view rewrote: %w", err)
	}
	defer c.Close()
	// The other side is not to be trusted with an allocation.
	if c.Size() != mapSize(size) {
		return nil, fmt.Errorf("what a view rewrote: its map has %d bytes, that of a device of %d has %d", c.Size(), size, mapSize(size))
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	b := make([]byte, c.Size())
	if _, err := c.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("what a view rewrote: %w", err)
	}
	var out []lun.Extent
	for i := int64(0); i*rewrittenUnit < size; i++ {
		if b[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		off := i * rewrittenUnit
		n := min(rewrittenUnit, size-off)
		if k := len(out) - 1; k >= 0 && out[k].Off+out[k].Len == off {
			out[k].Len += n
			continue
		}
		out = append(out, lun.Extent{Off: off, Len: n})
	}
	return out, nil
}
