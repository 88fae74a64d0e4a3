package nbd

import (
	"context"
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

func (c *Client) call(cmd command, flags uint16, off, n int64) *call {
	return &call{
		request: request{cmd: cmd, flags: flags, off: uint64(off), length: uint32(n)},
		done:    make(chan struct{}),
	}
}

func (c *Client) has(flag uint16) bool {
	return c.neg.flags&flagHasFlags != 0 && c.neg.flags&flag != 0
}

func (c *Client) check(off, n int64, write bool) error {
	if err := lun.CheckRange(off, n, c.neg.size); err != nil {
		return fmt.Errorf("%s: %d bytes at %d: %w", c.name, n, off, err)
	}
	if write && c.ReadOnly() {
		return fmt.Errorf("%s: %w", c.name, lun.ErrReadOnly)
	}
	return nil
}

// ReadAt reads, in several requests where p is longer than the server takes. It
// takes any offset and length: parsers read fields, not blocks. What is no
// whole block of the server costs a copy.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if err := c.check(off, int64(len(p)), false); err != nil {
		return 0, err
	}
	if block := int64(c.neg.minimum); (off|int64(len(p)))%block != 0 {
		from := off - off%block
		to := min((off+int64(len(p))+block-1)/block*block, c.neg.size)
		whole := make([]byte, to-from)
		if _, err := c.readBlocks(whole, from); err != nil {
			return 0, err
		}
		return copy(p, whole[off-from:]), nil
	}
	return c.readBlocks(p, off)
}

func (c *Client) readBlocks(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, int(c.neg.maximum))
		k := c.call(cmdRead, 0, off+int64(done), int64(n))
		k.buf = p[done : done+n]
		if err := c.do(k, nil); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// WriteAt writes, in several requests where p is longer than the server takes.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	if err := c.check(off, int64(len(p)), true); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		n := min(len(p)-done, int(c.neg.maximum))
		if err := c.do(c.call(cmdWrite, 0, off+int64(done), int64(n)), p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// Sync flushes. A server that offers no flush has nothing to flush
// ("Transmission flags": it then promises stable writes).
func (c *Client) Sync() error {
	if c.ReadOnly() || !c.has(flagFlush) {
		return c.Err()
	}
	return c.do(c.call(cmdFlush, 0, 0, 0), nil)
}

// Trim makes the range read as zeroes and lets the server release its space.
// It is NBD's write-zeroes that is sent: its trim promises nothing about what
// is read afterwards.
func (c *Client) Trim(off, n int64) error { return c.zeroes(off, n, 0) }

// WriteZeroes makes the range read as zeroes and keeps its space.
func (c *Client) WriteZeroes(off, n int64) error { return c.zeroes(off, n, cmdFlagNoHole) }

func (c *Client) zeroes(off, n int64, flags uint16) error {
	if err := c.check(off, n, true); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	if !c.has(flagWriteZeroes) {
		return writeZeroes(context.Background(), c, off, n)
	}
	for n > 0 {
		// 64 MiB at a time, so that a slow server has a chance to answer each
		// in time.
		part := min(n, 64<<20)
		if err := c.do(c.call(cmdWriteZeroes, flags, off, part), nil); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// Extents asks the server what it knows of holes; without an answer to that,
// everything is data.
func (c *Client) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := c.check(off, n, false); err != nil {
		return err
	}
	if n > 0 && !c.neg.allocation {
		return fn(lun.Extent{Off: off, Len: n})
	}
	for n > 0 {
		part := min(n, 1<<31)
		k := c.call(cmdBlockStatus, 0, off, part)
		if err := c.do(k, nil); err != nil {
			if errors.Is(err, ErrLost) || errors.Is(err, lun.ErrClosed) {
				return err
			}
			k.extents = nil // it can't say: data
		}
		if len(k.extents) == 0 {
			k.extents = []lun.Extent{{Off: off, Len: part}}
		}
		for _, e := range k.extents {
			if err := fn(e); err != nil {
				return err
			}
			off, n = off+e.Len, n-e.Len
		}
	}
	return nil
}
