package vdisk

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cleave-san/cleave/lun"
)

// pageSize is the unit in which tables are read and kept.
const pageSize = 4096

// Pages reads the tables of a container through a cache of bounded size, so
// that no table is held whole whatever size a header gives it. It is for what
// is never changed in place. It may be used by several goroutines.
type Pages struct {
	dev lun.Device
	max int

	mu    sync.Mutex
	index map[int64]*list.Element
	order list.List // of *page, the latest used first
}

type page struct {
	at   int64 // number on the device
	data []byte
}

// NewPages keeps at most limit bytes of dev, and at least one page.
func NewPages(dev lun.Device, limit int) *Pages {
	return &Pages{dev: dev, max: max(limit/pageSize, 1), index: make(map[int64]*list.Element)}
}

// ReadAt fills p from offset off. What lies beyond the device's end is
// lun.ErrOutOfRange.
func (c *Pages) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), c.dev.Size()); err != nil {
		return 0, err
	}
	n := 0
	for n < len(p) {
		at := off + int64(n)
		b, err := c.page(at / pageSize)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], b[at%pageSize:])
	}
	return n, nil
}

// page returns one page, which is shorter at the end of the device. The lock is
// not held while it is read: two readers of one page may both read it.
func (c *Pages) page(at int64) ([]byte, error) {
	c.mu.Lock()
	if e, ok := c.index[at]; ok {
		c.order.MoveToFront(e)
		c.mu.Unlock()
		return e.Value.(*page).data, nil
	}
	c.mu.Unlock()
	b := make([]byte, min(pageSize, c.dev.Size()-at*pageSize))
	if n, err := c.dev.ReadAt(b, at*pageSize); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read a table at byte %d: %w", at*pageSize, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.index[at]; ok {
		return e.Value.(*page).data, nil
	}
	c.index[at] = c.order.PushFront(&page{at, b})
	if c.order.Len() > c.max {
		last := c.order.Back()
		delete(c.index, last.Value.(*page).at)
		c.order.Remove(last)
	}
	return b, nil
}
