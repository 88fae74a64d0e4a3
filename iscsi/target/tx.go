package target

import (
	"sync"
	"sync/atomic"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// numbering says what a PDU does to StatSN (RFC 7143 section 4.2.2.2).
type numbering uint8

const (
	noStatSN   numbering = iota // the field is reserved: Data-In without status
	hasStatSN                   // takes the next number
	nextStatSN                  // shows it and leaves it: R2T, NOP-In of ours
)

// outgoing is a PDU that waits to be sent.
type outgoing struct {
	h      pdu.Header
	stat   numbering
	inline [scsiResponseMax]byte // short data: sense
	ninl   uint8
	data   []byte  // or longer data
	buf    *buffer // what data is a part of; freed when this PDU has been sent
	debt   int64   // bytes that count against ReadMemory until then

	digest [4]byte
	tail   [8]byte // padding and data digest
}

const scsiResponseMax = 40

// sender is the writing side of a connection. send never waits; reserve does.
type sender struct {
	mu      sync.Mutex
	work    sync.Cond
	room    sync.Cond
	queue   []outgoing
	owed    int64         // bytes reserved and not yet sent
	limit   *atomic.Int64 // of owed
	closed  bool
	writing bool    // the writer is at it
	direct  bool    // somebody sends past the writer, see sendNow
	rest    []byte  // what the socket did not take of that; goes first
	lent    *buffer // rest's

	waiting atomic.Int32  // length of queue
	sent    atomic.Uint64 // batches
	busy    atomic.Bool   // in the middle of one
}

// maxWaiting is how many PDUs may wait to be sent before the connection's reader
// stops: what an initiator that doesn't read can make us answer.
const maxWaiting = 512

func (s *sender) init(limit *atomic.Int64) {
	s.work.L, s.room.L, s.limit = &s.mu, &s.mu, limit
}

// send queues a PDU. Once the sender is closed it is forgotten.
func (s *sender) send(o outgoing) {
	s.add(o)
	s.work.Signal()
}

// add is send by somebody who calls sendNow after it.
func (s *sender) add(o outgoing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.queue = append(s.queue, o)
	s.waiting.Store(int32(len(s.queue)))
}

// reserve waits until n more bytes may wait to be sent. One reservation always
// gets through. It reports false once the sender is closed or gone says
// that nobody waits for the data; wake makes it look again.
func (s *sender) reserve(n int64, gone func() bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.owed > 0 && s.owed+n > s.limit.Load() {
		if s.closed || gone() {
			return false
		}
		s.work.Signal() // what the reader has queued, the writer may not know of
		s.room.Wait()
	}
	if s.closed {
		return false
	}
	s.owed += n
	return true
}

// throttle waits while too many PDUs wait to be sent.
func (s *sender) throttle() {
	if s.waiting.Load() < maxWaiting {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) >= maxWaiting && !s.closed {
		s.room.Wait()
	}
}

// unreserve gives back what will not be sent.
func (s *sender) unreserve(n int64) {
	s.mu.Lock()
	s.owed -= n
	s.mu.Unlock()
	s.room.Broadcast()
}

// wake takes mu so that it can't fall between a look at gone and the wait.
func (s *sender) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room.Broadcast()
}

// close lets what is queued be sent if flush, and forgets it if not.
func (s *sender) close(flush bool) {
	s.mu.Lock()
	s.closed = true
	if !flush {
		s.queue = nil
	}
	s.mu.Unlock()
	s.work.Broadcast()
	s.room.Broadcast()
}

// write is the connection's writer: it sends all that is queued in one writev,
// until the sender is closed or the connection breaks. StatSN is whose turn it is to
// send: its own, or sendNow's.
func (c *conn) write() {
	s := &c.tx
	var spare []outgoing
	var vec [][]byte
	for {
		s.mu.Lock()
		for s.direct || len(s.queue) == 0 && len(s.rest) == 0 && !s.closed {
			s.work.Wait()
		}
		batch, rest, lent := s.queue, s.rest, s.lent
		s.queue, s.rest, s.lent = spare[:0], nil, nil
		s.waiting.Store(0)
		if len(batch) == 0 && len(rest) == 0 {
			s.mu.Unlock()
			return
		}
		s.writing = true
		s.mu.Unlock()
		if len(batch) >= maxWaiting {
			s.room.Broadcast()
		}
		vec = vec[:0]
		if len(rest) > 0 {
			vec = append(vec, rest)
		}
		for i := range batch {
			vec = c.encode(vec, &batch[i])
		}
		c.vec = vec
		s.busy.Store(true)
		_, err := c.vec.WriteTo(c.nc)
		s.busy.Store(false)
		s.sent.Add(1)
		lent.free()
		debt := settle(batch)
		clear(vec)
		s.mu.Lock()
		s.writing = false
		s.owed -= debt
		s.mu.Unlock()
		if debt > 0 {
			s.room.Broadcast()
		}
		if err != nil {
			c.drop("write: " + err.Error())
			return
		}
		spare = batch
		if cap(spare) > 1024 {
			spare = nil
		}
	}
}

// settle gives back the buffers of PDUs that were sent, and returns what they counted
// for.
func settle(batch []outgoing) (debt int64) {
	for i := range batch {
		batch[i].buf.free()
		debt += batch[i].debt
		batch[i].buf, batch[i].data = nil, nil
	}
	return debt
}

// commandWindow is ExpCmdSN and MaxCmdSN (RFC 7143 section 4.2.2.1). A command
// takes its place in the window until it has ended, so an initiator that keeps
// to it never has more than that here.
func (c *conn) commandWindow() (exp, last uint32) {
	exp = c.expCmdSN.Load() // before credits, see sequence
	return exp, exp + c.window - min(c.credits.Load(), c.window) - 1
}

// encode numbers a PDU and appends its pieces to vec.
func (c *conn) encode(vec [][]byte, o *outgoing) [][]byte {
	switch o.stat {
	case hasStatSN:
		o.h.SetStatSN(c.statSN)
		c.statSN++
	case nextStatSN:
		o.h.SetStatSN(c.statSN)
	case noStatSN:
	}
	o.h.SetWindow(c.commandWindow())
	data := o.data
	if o.ninl > 0 {
		data = o.inline[:o.ninl]
	}
	o.h.SetDataLen(len(data))
	vec = append(vec, o.h[:])
	if c.par.headerDigest {
		pdu.PutDigest(o.digest[:], pdu.Digest(0, o.h[:]))
		vec = append(vec, o.digest[:])
	}
	if len(data) == 0 {
		return vec
	}
	vec = append(vec, data)
	pad := -len(data) & 3
	n := pad
	clear(o.tail[:4])
	if c.par.dataDigest {
		pdu.PutDigest(o.tail[pad:], pdu.Digest(pdu.Digest(0, data), o.tail[:pad]))
		n += 4
	}
	if n > 0 {
		vec = append(vec, o.tail[:n])
	}
	return vec
}
