package target

import (
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cleave-san/cleave/iscsi/pdu"
	"github.com/cleave-san/cleave/iscsi/scsi"
)

// state is where a task stands.
type state uint8

const (
	collecting state = iota // waits for data from the initiator
	queued                  // waits for a worker
	running                 // a worker has it, and the device may
)

// task is one SCSI command of one connection.
type task struct {
	conn *conn
	nx   *nexus // nil: the LUN is not there
	cmd  scsi.Command
	itt  uint32
	edtl uint32
	lun  uint64
	// credit says that it took a CmdSN, which opens the command window again
	// when the task ends.
	credit bool
	// inline says that the reader performs it, and sends the answer.
	inline bool

	// conn.mu guards these.
	state state
	abort []*waiter // who waits for the end of it
	out   dataOut

	// gone says that nobody waits for an answer any more. It is set with
	// conn.mu and in.mu held.
	gone atomic.Bool
	in   dataIn
}

var taskPool = sync.Pool{New: func() any { return new(task) }}

func newTask(c *conn) *task {
	t := taskPool.Get().(*task)
	t.conn = c
	return t
}

// recycle gives a task back that nobody else knows any more.
func (t *task) recycle() {
	t.nx, t.conn, t.abort, t.inline = nil, nil, nil, false
	t.cmd.Reset()
	t.out.reset()
	t.in.reset()
	t.gone.Store(false)
	taskPool.Put(t)
}

// dataIn is what a task returns to the initiator. One worker uses it; mu keeps
// its PDUs and the answer of somebody who cuts the task off from crossing.
type dataIn struct {
	mu     sync.Mutex
	lent   *buffer // of the last Get
	lentN  int     // and what was asked for
	last   *buffer // the data that the status goes with
	lastN  int
	sent   uint32
	dataSN uint32
	burst  uint32 // bytes since the last F bit
}

func (d *dataIn) reset() {
	d.lent, d.lentN, d.last, d.lastN, d.sent, d.dataSN, d.burst = nil, 0, nil, 0, 0, 0, 0
}

// abandon gives back what was to be sent with the status.
func (d *dataIn) abandon(c *conn) {
	if d.last != nil {
		c.tx.unreserve(int64(d.lastN))
		d.last.free()
		d.last = nil
	}
}

// Get implements scsi.Sink.
func (t *task) Get(n int) ([]byte, error) {
	if !t.conn.tx.reserve(int64(n), t.gone.Load) {
		return nil, scsi.ErrGone
	}
	t.in.lent, t.in.lentN = lend(n), n
	return t.in.lent.mem[:n], nil
}

// Put implements scsi.Sink. The last data of a command is kept until its status is
// known, and sent with it.
func (t *task) Put(b []byte) error {
	d := &t.in
	buf := d.lent
	d.lent = nil
	d.mu.Lock()
	defer d.mu.Unlock()
	if t.gone.Load() || len(b) == 0 {
		t.conn.tx.unreserve(int64(d.lentN))
		buf.free()
		if t.gone.Load() {
			return scsi.ErrGone
		}
		return nil
	}
	if int64(d.sent)+int64(len(b)) >= min(t.cmd.Want, t.cmd.Limit) {
		d.last, d.lastN = buf, len(b)
		return nil
	}
	t.sendData(buf, len(b), false)
	t.conn.tx.work.Signal()
	return nil
}

// sendData queues n bytes of buf as Data-In PDUs: each no longer than the initiator
// takes, F at the end of each burst (RFC 7143 section 11.7). With status, the
// last carries it. conn.mu or in.mu is held.
func (t *task) sendData(buf *buffer, n int, status bool) {
	c, d := t.conn, &t.in
	for at := 0; at < n; {
		size := min(n-at, int(c.sendMax.Load()), int(c.par.maxBurst-d.burst))
		var o outgoing
		o.h.Set(pdu.OpDataIn, 0)
		o.h.SetLUN(0)
		o.h.SetITT(t.itt)
		o.h.SetTTT(pdu.NoTag)
		o.h.SetDataSN(d.dataSN)
		o.h.SetOffset(d.sent)
		o.data = buf.mem[at : at+size]
		d.dataSN++
		d.sent += uint32(size)
		d.burst += uint32(size)
		at += size
		flags := byte(0)
		if d.burst == c.par.maxBurst || at == n && int64(d.sent) >= min(t.cmd.Want, t.cmd.Limit) {
			flags, d.burst = pdu.FlagFinal, 0
		}
		if at == n {
			o.buf, o.debt = buf, int64(n)
			if status {
				flags |= pdu.FlagFinal | pdu.FlagStatus | t.residual(&o.h)
				o.h[3] = byte(t.cmd.Status)
				o.stat = hasStatSN
			}
		}
		o.h.SetFlags(flags)
		c.tx.add(o)
	}
}

// residual sets the residual count and returns its flag (RFC 7143 section 11.4.5).
// A read that failed has transferred what was sent before.
func (t *task) residual(h *pdu.Header) byte {
	want, limit := t.cmd.Want, t.cmd.Limit
	if t.cmd.Status != scsi.Good && t.cmd.Read {
		want = int64(t.in.sent)
	}
	switch {
	case want > limit:
		h.SetResidual(uint32(min(want-limit, 0xffffffff)))
		return pdu.FlagOverflow
	case want < limit:
		h.SetResidual(uint32(limit - want))
		return pdu.FlagUnderflow
	}
	return 0
}

// respond queues what is left of the data, and the status. conn.mu is held.
func (t *task) respond() {
	d := &t.in
	if d.last != nil {
		buf := d.last
		d.last = nil
		if t.cmd.Status == scsi.Good {
			t.sendData(buf, d.lastN, true)
			return
		}
		t.sendData(buf, d.lastN, false)
	}
	t.conn.tx.add(t.response())
}

// response makes the SCSI Response PDU (RFC 7143 section 11.4).
func (t *task) response() outgoing {
	var o outgoing
	o.h.Set(pdu.OpSCSIResponse, pdu.FlagFinal)
	o.h[3] = byte(t.cmd.Status)
	o.h.SetITT(t.itt)
	o.h.SetDataSN(t.in.dataSN + t.out.r2tSN)
	o.h.SetFlags(pdu.FlagFinal | t.residual(&o.h))
	o.stat = hasStatSN
	if n := t.cmd.SenseLen; n > 0 {
		binary.BigEndian.PutUint16(o.inline[:], uint16(n))
		copy(o.inline[2:], t.cmd.Sense[:n])
		o.ninl = uint8(2 + n)
	}
	return o
}

// finish ends a task that was run: out of the table, answered, given back.
func (t *task) finish() {
	c, n := t.conn, t.nx
	c.mu.Lock()
	c.forget(t)
	waiters := t.abort
	gone := t.gone.Load()
	if !gone {
		// Before mu is let go: a task management function that doesn't find
		// the task any more must not be answered before it.
		t.respond()
	}
	c.mu.Unlock()
	if !gone && !t.inline {
		c.sendNow()
	}
	if gone {
		t.in.abandon(c)
	} else {
		t.out.buf.free()
	}
	if n != nil {
		n.entry.leave()
	}
	for _, w := range waiters {
		w.done()
	}
	if !gone {
		t.recycle()
	}
}

// forget takes a task out of the table, its memory off the account and its place
// in the command window. conn.mu is held.
func (c *conn) forget(t *task) {
	if c.tasks[t.itt] == t {
		delete(c.tasks, t.itt)
	}
	if t.credit {
		t.credit = false
		c.credits.Add(^uint32(0))
	}
	if t.nx != nil {
		t.nx.count--
		t.releaseMemory()
	}
}

// waiter waits for tasks that were aborted and are in the device.
type waiter struct {
	left atomic.Int64
	ch   chan struct{} // closed when none is left
}

// newWaiter makes one with a count of its own, which keeps it open while tasks
// are being marked; done gives it back.
func newWaiter() *waiter {
	w := &waiter{ch: make(chan struct{})}
	w.left.Add(1)
	return w
}

func (w *waiter) done() {
	if w.left.Add(-1) == 0 {
		close(w.ch)
	}
}

// abort ends the tasks that match, without an answer. Those that no device has
// yet are over when it returns; for the others w, if there is one, waits.
func (c *conn) abort(match func(*task) bool, w *waiter) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tasks {
		if match(t) {
			n++
			c.stop(t, w)
		}
	}
	c.tx.wake()
	return n
}

// stop ends one task without an answer. conn.mu is held.
func (c *conn) stop(t *task, w *waiter) {
	t.in.mu.Lock()
	t.gone.Store(true)
	t.in.mu.Unlock()
	switch t.state {
	case running:
		if w != nil {
			w.left.Add(1)
			t.abort = append(t.abort, w)
		}
		return
	case queued:
		t.nx.queue.remove(t)
	case collecting: // its data is on its way, and will find no task
		if t.nx != nil {
			t.nx.waiting = slices.DeleteFunc(t.nx.waiting, func(o *task) bool { return o == t })
		}
	}
	c.forget(t)
	if t.nx != nil {
		t.nx.entry.leave()
	}
}

// cut answers every command to a LUN that was taken away, though the device may
// still have it. Server.mu is held.
func (ss *session) cut(e *entry) {
	c := ss.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tasks {
		if t.nx == nil || t.nx.entry != e || t.gone.Load() {
			continue
		}
		var answer task
		answer.itt, answer.edtl = t.itt, t.edtl
		t.in.mu.Lock()
		answer.in.dataSN, answer.out.r2tSN = t.in.dataSN, t.out.r2tSN
		answer.cmd.Limit = int64(t.edtl)
		answer.cmd.Fail(scsi.UnitNotSupported)
		t.gone.Store(true)
		c.tx.send(answer.response())
		t.in.mu.Unlock()
		c.stop(t, nil)
		// The initiator may use the tag again.
		delete(c.tasks, t.itt)
	}
	c.tx.wake()
}
