package target

import (
	"errors"
	"syscall"
)

// Limits of what goes past the writer: PDUs, and bytes of data.
const (
	directPDUs  = 2 * inlineBatch
	directBytes = 128 << 10
)

// direct sends past the writer. Whoever has set sender.direct uses it.
type direct struct {
	raw   syscall.RawConn // nil: not this kind of connection
	try   func(fd uintptr) bool
	piece []byte
	n     int
	err   error
	batch [directPDUs]outgoing
	vec   [][]byte
}

func (d *direct) init(nc any) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	d.raw = raw
	d.try = func(fd uintptr) bool {
		d.n, d.err = syscall.Write(int(fd), d.piece)
		return true // one attempt: nobody waits here
	}
}

// sendNow sends what add has queued, short as it is, from the caller's goroutine:
// with nothing else under way, waking the writer would take longer. It never waits
// for the initiator. What the socket doesn't take at once, and whatever is not
// short or finds another sending, is the writer's.
func (c *conn) sendNow() {
	s, d := &c.tx, &c.direct
	s.mu.Lock()
	n := len(s.queue)
	size := 0
	for i := range min(n, directPDUs) {
		size += len(s.queue[i].data)
	}
	if d.raw == nil || s.closed || s.writing || s.direct || len(s.rest) > 0 || n == 0 || n > directPDUs || size > directBytes {
		s.mu.Unlock()
		s.work.Signal()
		return
	}
	s.direct = true
	batch := d.batch[:copy(d.batch[:], s.queue)]
	clear(s.queue)
	s.queue = s.queue[:0]
	s.waiting.Store(0)
	s.mu.Unlock()

	d.vec = d.vec[:0]
	total := 0
	for i := range batch {
		d.vec = c.encode(d.vec, &batch[i])
	}
	for _, p := range d.vec {
		total += len(p)
	}
	buf := lend(total)
	d.piece = buf.mem[:0]
	for _, p := range d.vec {
		d.piece = append(d.piece, p...)
	}
	clear(d.vec)
	debt := settle(batch)
	d.n = 0
	err := d.raw.Write(d.try)
	if err == nil && d.err != nil && !errors.Is(d.err, syscall.EAGAIN) && !errors.Is(d.err, syscall.EINTR) {
		err = d.err
	}
	rest := d.piece[max(d.n, 0):]
	d.piece = nil
	s.sent.Add(1)

	s.mu.Lock()
	s.direct = false
	s.owed -= debt
	if err == nil && len(rest) > 0 {
		s.rest, s.lent = rest, buf
	} else {
		buf.free()
	}
	more := len(s.queue) > 0 || len(s.rest) > 0 || s.closed
	s.mu.Unlock()
	if more {
		s.work.Signal()
	}
	if debt > 0 {
		s.room.Broadcast()
	}
	if err != nil {
		c.drop("write: " + err.Error())
	}
}
