package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/cleave-san/cleave/lun"
)

// maxInFlight is how many payload bytes one connection may hold in memory, or one
// longer request. More of the usual length would only be cold in the processor's
// caches when their turn comes.
const maxInFlight = 8 << 20

// requestBuffer is what is read of requests that have arrived together, in bytes.
const requestBuffer = 16 << 10

// transmission is the server's side of one connection after negotiation.
// One goroutine reads requests; each is carried out by a goroutine of its own,
// as many at once as depth and maxInFlight allow.
type transmission struct {
	s          *Server
	conn       net.Conn
	e          *Export
	structured bool
	allocation bool

	write  sync.Mutex // one reply at a time
	depth  chan struct{}
	budget budget
}

func (t *transmission) run(ctx context.Context) error {
	t.depth = make(chan struct{}, t.s.o.Depth)
	t.budget.init(maxInFlight)
	var wg sync.WaitGroup
	// Requests under way are answered before the connection goes, as the
	// specification asks for NBD_CMD_DISC.
	defer wg.Wait()
	in := bufio.NewReaderSize(t.conn, requestBuffer)
	var head [requestSize]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("NBD export %q: reading a request: %w", t.e.Name, err)
		}
		var r request
		if err := r.decode(&head); err != nil {
			return fmt.Errorf("NBD export %q: %w", t.e.Name, err)
		}
		if r.cmd == cmdDisc {
			return nil
		}
		carries := r.cmd == cmdWrite
		if carries && r.length > MaxPayload {
			// The data that follows can't be skipped within the limits.
			return fmt.Errorf("NBD export %q: write of %d bytes, at most %d", t.e.Name, r.length, MaxPayload)
		}
		var buf []byte
		held := 0
		if carries || r.cmd == cmdRead && r.length <= MaxPayload {
			held = min(int(r.length), maxInFlight)
		}
		t.budget.take(held)
		t.depth <- struct{}{}
		if carries {
			buf = t.s.buffers.get(int(r.length))
			if _, err := io.ReadFull(in, buf); err != nil {
				return fmt.Errorf("NBD export %q: reading the data of a write: %w", t.e.Name, err)
			}
		}
		wg.Go(func() {
			defer func() { <-t.depth; t.budget.give(held) }()
			if err := t.handle(ctx, r, buf); err != nil {
				t.conn.Close() // the reader finds out
			}
			t.s.buffers.put(buf)
		})
	}
}

// handle carries out one request and answers it. Its error is the
// connection's.
func (t *transmission) handle(ctx context.Context, r request, data []byte) error {
	if e := t.check(r); e != 0 {
		return t.fail(r, e)
	}
	off, n := int64(r.off), int64(r.length)
	dev := t.e.Device
	var err error
	switch r.cmd {
	case cmdRead:
		buf := t.s.buffers.get(int(n))
		defer t.s.buffers.put(buf)
		if n > 0 {
			if _, err = dev.ReadAt(buf, off); err != nil {
				break
			}
		}
		return t.data(r, buf)
	case cmdWrite:
		if n > 0 {
			_, err = dev.WriteAt(data, off)
		}
	case cmdFlush:
		err = dev.Sync()
	case cmdTrim:
		if tr, ok := dev.(lun.Trimmer); ok && n > 0 {
			err = tr.Trim(off, n)
		}
	case cmdWriteZeroes:
		err = zero(ctx, dev, off, n, r.flags&cmdFlagNoHole != 0)
	case cmdCache:
		err = t.prefetch(ctx, off, n)
	case cmdBlockStatus:
		return t.blockStatus(r)
	case cmdDisc: // has ended the connection before it gets here
	}
	if err == nil && r.flags&cmdFlagFUA != 0 && (r.cmd == cmdWrite || r.cmd == cmdTrim || r.cmd == cmdWriteZeroes) {
		err = dev.Sync()
	}
	if err != nil {
		return t.fail(r, errno(err))
	}
	return t.done(r)
}

// check finds what is wrong with a request before a device sees it, 0 if
// nothing.
func (t *transmission) check(r request) Errno {
	allowed := uint16(cmdFlagFUA)
	switch r.cmd {
	case cmdRead:
		allowed |= cmdFlagDF
	case cmdWrite, cmdTrim, cmdCache:
	case cmdWriteZeroes:
		allowed |= cmdFlagNoHole
	case cmdBlockStatus:
		allowed |= cmdFlagReqOne
		if !t.allocation || r.length == 0 {
			return EINVAL
		}
	case cmdFlush:
		if r.off != 0 || r.length != 0 || r.flags&^cmdFlagFUA != 0 {
			return EINVAL
		}
		return 0
	default:
		return EINVAL
	}
	writes := r.cmd == cmdWrite || r.cmd == cmdTrim || r.cmd == cmdWriteZeroes
	minimum, _, _ := t.e.blocks()
	size := t.e.Device.Size()
	beyond := r.off > uint64(size) || uint64(r.length) > uint64(size)-r.off
	switch {
	case r.flags&^allowed != 0:
		return EINVAL
	case writes && t.e.ReadOnly:
		return EPERM
	case beyond && r.cmd == cmdWrite:
		return ENOSPC
	case beyond:
		return EINVAL
	case r.off%uint64(minimum) != 0 || r.length%minimum != 0:
		return EINVAL
	case r.cmd == cmdRead && r.length > MaxPayload:
		return EOVERFLOW
	}
	return 0
}

// zero makes [off, off+n) read as zeroes, and gives the space back if it may.
func zero(ctx context.Context, dev lun.Device, off, n int64, keep bool) error {
	if n == 0 {
		return nil
	}
	if tr, ok := dev.(lun.Trimmer); ok && !keep {
		return tr.Trim(off, n)
	}
	if z, ok := dev.(lun.Zeroer); ok {
		return z.WriteZeroes(off, n)
	}
	return writeZeroes(ctx, dev, off, n)
}

func writeZeroes(ctx context.Context, dev io.WriterAt, off, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(n, int64(len(buf)))
		if _, err := dev.WriteAt(buf[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Limits of one NBD_CMD_CACHE, in bytes: it is a hint.
const (
	prefetchMax   = 64 << 20
	prefetchChunk = 256 << 10
)

// prefetch reads ahead of a client, into what caches the device has.
func (t *transmission) prefetch(ctx context.Context, off, n int64) error {
	buf := t.s.buffers.get(prefetchChunk)
	defer t.s.buffers.put(buf)
	for n = min(n, prefetchMax); n > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(n, int64(len(buf)))
		if _, err := t.e.Device.ReadAt(buf[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

var errEnough = errors.New("enough extents")

// blockStatus answers NBD_CMD_BLOCK_STATUS for base:allocation.
func (t *transmission) blockStatus(r request) error {
	limit := maxExtents
	if r.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	b := binary.BigEndian.AppendUint32(nil, contextAllocationID)
	extents, runs, last := 0, 0, uint32(0)
	add := func(n uint64, flags uint32) error {
		if n == 0 {
			return nil
		}
		if extents > 0 && last == flags { // alike runs are one
			at := len(b) - 8
			if sum := uint64(binary.BigEndian.Uint32(b[at:])) + n; sum <= uint64(r.length) {
				binary.BigEndian.PutUint32(b[at:], uint32(sum))
				return nil
			}
		}
		if extents == limit {
			return errEnough
		}
		b = binary.BigEndian.AppendUint32(b, uint32(n))
		b = binary.BigEndian.AppendUint32(b, flags)
		extents, last = extents+1, flags
		return nil
	}
	if m, ok := t.e.Device.(lun.Mapper); ok {
		err := m.Extents(int64(r.off), int64(r.length), func(e lun.Extent) error {
			if runs++; runs > maxRuns {
				return errEnough
			}
			flags := uint32(0)
			if e.Hole {
				flags = statusHole | statusZero
			}
			return add(uint64(min(e.Len, int64(r.length))), flags)
		})
		if err != nil && !errors.Is(err, errEnough) {
			return t.fail(r, errno(err))
		}
	}
	if extents == 0 {
		_ = add(uint64(r.length), 0)
	}
	return t.chunk(r, chunkDone, chunkBlockStatus, b)
}

func (t *transmission) done(r request) error {
	if t.structured {
		return t.chunk(r, chunkDone, chunkNone)
	}
	return t.simple(r, 0)
}

func (t *transmission) fail(r request, e Errno) error {
	if !t.structured {
		return t.simple(r, e)
	}
	text := e.Error()
	b := binary.BigEndian.AppendUint32(nil, uint32(e))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	return t.chunk(r, chunkDone, chunkErr, append(b, text...))
}

func (t *transmission) data(r request, buf []byte) error {
	if !t.structured {
		return t.simple(r, 0, buf)
	}
	if len(buf) == 0 {
		return t.done(r)
	}
	return t.chunk(r, chunkDone, chunkData, binary.BigEndian.AppendUint64(nil, r.off), buf)
}

func (t *transmission) simple(r request, e Errno, payload ...[]byte) error {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 16), magicReply)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	return t.send(b, payload)
}

func (t *transmission) chunk(r request, flags, kind uint16, payload ...[]byte) error {
	n := 0
	for _, p := range payload {
		n += len(p)
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 28), magicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return t.send(b, payload)
}

func (t *transmission) send(head []byte, payload [][]byte) error {
	bufs := append(net.Buffers{head}, payload...)
	t.write.Lock()
	defer t.write.Unlock()
	_, err := bufs.WriteTo(t.conn)
	return err
}
