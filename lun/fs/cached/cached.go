// Package cached keeps what was last read of a device in bounded memory, for
// the metadata of file systems: small reads, near each other, again and again.
package cached

import (
	"io"
	"sync"
)

// page is the unit that is read and kept, in bytes: some tens of inodes.
const page = 16 << 10

// Reader is an io.ReaderAt over another one. All methods may be called at once.
type Reader struct {
	r     io.ReaderAt
	size  int64
	pages int

	mu   sync.Mutex
	held map[int64]*entry
	ring []int64 // pages held, in the order of the clock's hand
	hand int
}

type entry struct {
	data []byte
	used bool // since the hand passed
}

// New keeps up to limit bytes of r, which has size bytes and doesn't change.
func New(r io.ReaderAt, size, limit int64) *Reader {
	return &Reader{r: r, size: size, pages: int(max(1, limit/page)), held: make(map[int64]*entry)}
}

// ReadAt fills p from offset off; beyond the end it is io.ErrUnexpectedEOF.
// An error of the underlying reader is handed on and not kept.
func (c *Reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > c.size || int64(len(p)) > c.size-off {
		return 0, io.ErrUnexpectedEOF
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		data, err := c.page(at / page)
		if err != nil {
			return done, err
		}
		done += copy(p[done:], data[at%page:])
	}
	return done, nil
}

func (c *Reader) page(n int64) ([]byte, error) {
	c.mu.Lock()
	e := c.held[n]
	if e != nil {
		e.used = true
	}
	c.mu.Unlock()
	if e != nil {
		return e.data, nil
	}
	data := make([]byte, min(page, c.size-n*page))
	if k, err := c.r.ReadAt(data, n*page); k < len(data) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	c.keep(n, data)
	return data, nil
}

// keep puts a page into the place of one that wasn't used for a while.
func (c *Reader) keep(n int64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[n] != nil {
		return // somebody else was faster
	}
	c.held[n] = &entry{data: data}
	if len(c.ring) < c.pages {
		c.ring = append(c.ring, n)
		return
	}
	for c.held[c.ring[c.hand]].used {
		c.held[c.ring[c.hand]].used = false
		c.hand = (c.hand + 1) % len(c.ring)
	}
	delete(c.held, c.ring[c.hand])
	c.ring[c.hand] = n
	c.hand = (c.hand + 1) % len(c.ring)
}
