package disktest

import (
	"slices"
	"sync/atomic"
)

const (
	sector   = 512
	pageSize = 4096
)

// content is a file's bytes. One that is frozen is never changed again, and may
// be part of several file systems.
type content struct {
	size   int64
	pages  []*page     // nil is a hole
	frozen atomic.Bool // set by each file system that the content is a part of
}

type page struct {
	of *content // the one that may change it
	b  [pageSize]byte
}

// thaw returns c, or a copy of it that can be changed. The pages are shared
// until they are.
func (c *content) thaw() *content {
	if !c.frozen.Load() {
		return c
	}
	return &content{size: c.size, pages: slices.Clone(c.pages)}
}

// page returns page i for changing.
func (c *content) page(i int64) *page {
	for int64(len(c.pages)) <= i {
		c.pages = append(c.pages, nil)
	}
	p := c.pages[i]
	switch {
	case p == nil:
		p = &page{of: c}
	case p.of != c:
		p = &page{of: c, b: p.b}
	}
	c.pages[i] = p
	return p
}

// put writes b at off, whatever the size.
func (c *content) put(b []byte, off int64) {
	for len(b) > 0 {
		n := copy(c.page(off / pageSize).b[off%pageSize:], b)
		b, off = b[n:], off+int64(n)
	}
}

// wipe makes a range read as zeroes.
func (c *content) wipe(off, n int64) {
	for end := min(off+n, int64(len(c.pages))*pageSize); off < end; {
		i, at := off/pageSize, off%pageSize
		k := min(pageSize-at, end-off)
		switch {
		case c.pages[i] == nil:
		case k == pageSize:
			c.pages[i] = nil
		default:
			clear(c.page(i).b[at : at+k])
		}
		off += k
	}
}

// get reads at off up to the size and returns how much that is.
func (c *content) get(b []byte, off int64) int {
	if off >= c.size {
		return 0
	}
	b = b[:min(int64(len(b)), c.size-off)]
	n := len(b)
	for len(b) > 0 {
		i, at := off/pageSize, off%pageSize
		k := min(len(b), int(pageSize-at))
		if i < int64(len(c.pages)) && c.pages[i] != nil {
			copy(b[:k], c.pages[i].b[at:])
		} else {
			clear(b[:k])
		}
		b, off = b[k:], off+int64(k)
	}
	return n
}

// resize sets the size; what is cut off is gone.
func (c *content) resize(n int64) {
	if n < c.size {
		c.wipe(n, c.size-n)
		c.pages = c.pages[:min(int64(len(c.pages)), (n+pageSize-1)/pageSize)]
	}
	c.size = n
}

// change is one thing done to a file that is not stable yet.
type change struct {
	off, n int64
	data   []byte   // of a write; nil otherwise
	from   *content // of a clone, frozen
	// size is the file's afterwards.
	size int64
}

func (x *change) apply(c *content) { x.part(c, x.off, x.n) }

// part applies what falls into [off, off+n).
func (x *change) part(c *content, off, n int64) {
	switch {
	case x.data != nil:
		c.put(x.data[off-x.off:off-x.off+n], off)
	case x.from != nil:
		b := make([]byte, n)
		c.put(b[:x.from.get(b, off)], off)
	default:
		c.wipe(off, n)
	}
}
