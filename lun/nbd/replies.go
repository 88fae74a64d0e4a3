package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun"
)

// call is one request of a Client and where its answer goes. The reader owns
// everything but request from when it is pending until done is closed or the
// reader has ended.
type call struct {
	request
	buf     []byte       // where read data goes
	covered []span       // what of buf structured chunks have filled
	chunks  int          // how many came
	extents []lun.Extent // answer to a block status
	err     error
	done    chan struct{}
}

type span struct{ off, end uint64 }

// cover records a run of the answer; runs must not overlap, "Structured reply
// chunk message".
func (k *call) cover(off, n uint64) error {
	if off < k.off || n == 0 || off-k.off > uint64(k.length) || n > uint64(k.length)-(off-k.off) {
		return fmt.Errorf("data of %d bytes at %d answers a read of %d bytes at %d", n, off, k.length, k.off)
	}
	if i := len(k.covered) - 1; i >= 0 && k.covered[i].end == off {
		k.covered[i].end += n // the usual case: in order
		return k.overlap(k.covered[:i], k.covered[i])
	}
	s := span{off, off + n}
	err := k.overlap(k.covered, s)
	k.covered = append(k.covered, s)
	return err
}

func (k *call) overlap(others []span, s span) error {
	for _, o := range others {
		if s.off < o.end && o.off < s.end {
			return fmt.Errorf("data at %d came twice", max(s.off, o.off))
		}
	}
	if len(others) > 1024 {
		return errors.New("data of one read comes in over 1024 scattered pieces")
	}
	return nil
}

func (k *call) whole() error {
	if k.err != nil || k.cmd != cmdRead {
		return nil //nolint:nilerr // the server's own error goes to the caller, whole or not
	}
	var n uint64
	for _, s := range k.covered {
		n += s.end - s.off
	}
	if n != uint64(k.length) {
		return fmt.Errorf("%d bytes answer a read of %d", n, k.length)
	}
	return nil
}

// read takes replies until the connection ends; whatever is then pending fails.
func (c *Client) read() {
	r := bufio.NewReaderSize(c.conn, 64<<10)
	for {
		if err := c.reply(r); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = errors.New("the server hung up")
			}
			_ = c.fail(err) // callers read it from c.err
			break
		}
	}
	c.mu.Lock()
	clear(c.pending)
	c.mu.Unlock()
	close(c.over)
}

// reply reads one reply. Its error is the connection's; one of a request is in
// its call.
func (c *Client) reply(r *bufio.Reader) error {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:4]); err != nil {
		return err
	}
	switch m := binary.BigEndian.Uint32(head[:]); m {
	case magicReply:
		if _, err := io.ReadFull(r, head[4:16]); err != nil {
			return err
		}
		k, err := c.find(binary.BigEndian.Uint64(head[8:]))
		if err != nil {
			return err
		}
		if e := binary.BigEndian.Uint32(head[4:]); e != 0 {
			k.err = Errno(e)
		} else if k.cmd == cmdRead {
			if c.neg.structured {
				return errors.New("a simple reply to a read, though structured ones were agreed")
			}
			if _, err := io.ReadFull(r, k.buf); err != nil {
				return err
			}
		} else if k.cmd == cmdBlockStatus {
			return errors.New("a simple reply to a block status")
		}
		c.finish(k)
		return nil
	case magicStructured:
		if !c.neg.structured {
			return errors.New("a structured reply that was not agreed")
		}
		return c.chunk(r)
	default:
		return fmt.Errorf("reply magic is %#x", m)
	}
}

func (c *Client) find(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.pending[cookie]
	if k == nil {
		return nil, fmt.Errorf("a reply to request %d, which is not under way", cookie)
	}
	return k, nil
}

func (c *Client) finish(k *call) {
	c.mu.Lock()
	delete(c.pending, k.cookie)
	c.mu.Unlock()
	close(k.done)
}

// chunk reads the rest of a structured reply chunk.
func (c *Client) chunk(r *bufio.Reader) error {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	flags, kind := binary.BigEndian.Uint16(head[0:]), binary.BigEndian.Uint16(head[2:])
	n := binary.BigEndian.Uint32(head[12:])
	k, err := c.find(binary.BigEndian.Uint64(head[4:]))
	if err != nil {
		return err
	}
	if k.chunks++; k.chunks > maxChunks {
		return fmt.Errorf("over %d chunks answer one %v", maxChunks, k.cmd)
	}
	switch {
	case kind == chunkNone && n == 0:
	case kind == chunkData && k.cmd == cmdRead && n > 8:
		var b [8]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		off := binary.BigEndian.Uint64(b[:])
		if err := k.cover(off, uint64(n-8)); err != nil {
			return err
		}
		if _, err := io.ReadFull(r, k.buf[off-k.off:][:n-8]); err != nil {
			return err
		}
	case kind == chunkHole && k.cmd == cmdRead && n == 12:
		var b [12]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		off, size := binary.BigEndian.Uint64(b[:]), uint64(binary.BigEndian.Uint32(b[8:]))
		if err := k.cover(off, size); err != nil {
			return err
		}
		clear(k.buf[off-k.off:][:size])
	case kind == chunkBlockStatus && k.cmd == cmdBlockStatus && n >= 12 && n%8 == 4 && n <= 4+8*(1<<17):
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		if binary.BigEndian.Uint32(b) == c.neg.contextID {
			k.status(b[4:])
		}
	case kind&(1<<15) != 0 && n >= 6 && n <= maxName+14:
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		// The text that may follow is the server's; the number is the promise.
		if e := Errno(binary.BigEndian.Uint32(b)); e != 0 {
			k.err = e
		} else {
			k.err = EIO
		}
	default:
		return fmt.Errorf("a chunk of type %d with %d bytes answers a %v", kind, n, k.cmd)
	}
	if flags&chunkDone != 0 {
		if err := k.whole(); err != nil {
			return err
		}
		c.finish(k)
	}
	return nil
}

// status takes block status descriptors, cut to what was asked. The server may
// describe less, or in the last one more.
func (k *call) status(b []byte) {
	off, left := int64(k.off), int64(k.length)
	for ; len(b) >= 8 && left > 0; b = b[8:] {
		n := min(int64(binary.BigEndian.Uint32(b)), left)
		if n == 0 {
			return
		}
		// Only the zero flag promises how the run reads; a hole may hold
		// anything.
		hole := binary.BigEndian.Uint32(b[4:])&statusZero != 0
		k.extents = append(k.extents, lun.Extent{Off: off, Len: n, Hole: hole})
		off, left = off+n, left-n
	}
}
