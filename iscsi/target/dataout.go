package target

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/iscsi/pdu"
	"github.com/cleave-san/cleave/iscsi/scsi"
)

// maxR2T is how many R2Ts of one command may be outstanding.
const maxR2T = 8

// dataOut is what the initiator sends for a task. conn.mu guards it; the reader
// alone fills the buffer.
type dataOut struct {
	buf  *buffer
	want uint32 // bytes that the command needs and the initiator has
	got  uint32 // bytes that have come, without a gap
	// unsolicited is how far data may still come without being asked for
	// (FirstBurstLength); nothing may once it is at most got.
	unsolicited uint32
	firstSN     uint32 // DataSN of the next unsolicited PDU

	memory  int64 // what it counts for in conn.writes
	big     int64 // and in Server.big
	granted bool  // memory for all of it
	watched bool  // gotThen is got when watch last looked
	gotThen uint32
	asked   uint32
	r2tSN   uint32
	bursts  [maxR2T]burst
	open    int // of bursts
}

// burst is an R2T that has not been fulfilled.
type burst struct {
	ttt    uint32
	next   uint32 // offset of the next byte
	end    uint32
	dataSN uint32
}

func (d *dataOut) reset() { *d = dataOut{} }

// errData says that an initiator sends data as nobody agreed on. The command ends
// with it (RFC 7143 section 7.9, error recovery level 0); what still comes for
// it is passed over.
var errData = errors.New("data-out sequence error")

// mem is where the bytes from off on belong, of n at most.
func (d *dataOut) mem(off, n uint32) []byte {
	if off >= d.want {
		return nil
	}
	return d.buf.mem[off:min(off+n, d.want)]
}

// collect starts the transfer of a task that needs data: n bytes of immediate
// data stand in the reader, more may come unsolicited, the rest is asked for.
func (c *conn) collect(t *task, need int64, n uint32, more bool) error {
	d := &t.out
	d.want = uint32(min(need, int64(t.edtl)))
	first := n
	if more {
		d.unsolicited = min(t.edtl, c.par.firstBurst)
		first = d.unsolicited
	}
	// Room for what comes by itself; for the rest once there is memory.
	d.buf = lend(int(min(first, d.want)))
	whole := d.want <= uint32(len(d.buf.mem))
	if !whole {
		c.mu.Lock()
		if len(t.nx.waiting) == 0 && t.nx.grant(t) {
			d.buf.free()
			d.buf = lend(int(d.want))
		}
		c.mu.Unlock()
	}
	if err := c.fill(t, 0, n); err != nil {
		return err
	}
	d.got, d.asked = n, n
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.gone.Load() {
		return nil
	}
	c.proceed(t)
	return nil
}

// fill reads n bytes of the data segment to where they belong; what the command
// doesn't need is passed over.
func (c *conn) fill(t *task, off, n uint32) error {
	p := t.out.mem(off, n)
	if err := c.rd.Read(p); err != nil {
		return err
	}
	return c.rd.Skip()
}

// proceed does what comes next for a task that is collecting, in the reader.
// conn.mu is held.
func (c *conn) proceed(t *task) {
	d := &t.out
	switch {
	case d.got < d.unsolicited: // more comes by itself
	case d.got >= d.want:
		if d.buf != nil && d.want > 0 {
			t.cmd.Out = d.buf.mem[:d.want]
		}
		t.nx.enqueue(t)
	case d.open > 0, len(t.nx.waiting) == 0 && t.nx.grant(t), d.granted:
		c.ask(t)
		c.asked = true
	default:
		t.nx.waiting = append(t.nx.waiting, t)
	}
}

// ask queues as many R2Ts as may be outstanding (RFC 7143 section 11.8). conn.mu is
// held, and the memory is granted. The caller has them sent.
func (c *conn) ask(t *task) {
	d := &t.out
	if uint32(len(d.buf.mem)) < d.want {
		big := lend(int(d.want))
		copy(big.mem, d.buf.mem[:min(d.got, uint32(len(d.buf.mem)))])
		d.buf.free()
		d.buf = big
	}
	for d.asked < d.want && d.open < int(c.par.maxR2T) {
		n := min(d.want-d.asked, c.par.maxBurst)
		b := &d.bursts[d.open]
		*b = burst{ttt: c.newTTTLocked(), next: d.asked, end: d.asked + n}
		d.open++
		var o outgoing
		o.h.Set(pdu.OpR2T, pdu.FlagFinal)
		o.h.SetLUN(t.lun)
		o.h.SetITT(t.itt)
		o.h.SetTTT(b.ttt)
		o.h.SetDataSN(d.r2tSN)
		o.h.SetOffset(d.asked)
		o.h.SetDesired(n)
		o.stat = nextStatSN
		c.tx.add(o)
		d.r2tSN++
		d.asked += n
	}
}

// dataOut takes a SCSI Data-Out PDU (RFC 7143 section 11.7).
func (c *conn) dataOut(h *pdu.Header) error {
	c.mu.Lock()
	t := c.tasks[h.ITT()]
	if t == nil || t.state != collecting || t.gone.Load() {
		// Of a command that has ended: the initiator did not know yet.
		c.mu.Unlock()
		return c.rd.Skip()
	}
	d := &t.out
	n, off := uint32(h.DataLen()), h.Offset()
	var b *burst
	var err error
	if h.TTT() == pdu.NoTag {
		switch {
		case d.got >= d.unsolicited:
			err = fmt.Errorf("%w: unsolicited data that was not agreed on: %s", errData, h)
		case off != d.got || n > d.unsolicited-d.got:
			err = fmt.Errorf("%w: %d unsolicited bytes at %d, want %d at most at %d", errData, n, off, d.unsolicited-d.got, d.got)
		case h.DataSN() != d.firstSN:
			err = fmt.Errorf("%w: DataSN %d, want %d", errData, h.DataSN(), d.firstSN)
		}
	} else {
		// Bursts are asked for in order, and data comes in order
		// (DataSequenceInOrder=Yes, DataPDUInOrder=Yes).
		if d.open > 0 && d.bursts[0].ttt == h.TTT() {
			b = &d.bursts[0]
		}
		switch {
		case b == nil:
			err = fmt.Errorf("%w: no R2T has this tag: %s", errData, h)
		case off != b.next || n > b.end-b.next:
			err = fmt.Errorf("%w: %d bytes at %d, want %d at most at %d", errData, n, off, b.end-b.next, b.next)
		case h.DataSN() != b.dataSN:
			err = fmt.Errorf("%w: DataSN %d, want %d", errData, h.DataSN(), b.dataSN)
		case h.Final() != (off+n == b.end):
			err = fmt.Errorf("%w: F bit at %d of a burst that ends at %d", errData, off+n, b.end)
		}
	}
	if err != nil {
		t.state = running // nobody else ends it
		t.nx.waiting = slices.DeleteFunc(t.nx.waiting, func(o *task) bool { return o == t })
		c.mu.Unlock()
		c.srv.log.Debug("iSCSI command ended", "initiator", c.ss.info.Initiator, "tag", t.itt, "err", err)
		t.cmd.Fail(scsi.DataPhaseError)
		t.finish()
		return c.rd.Skip()
	}
	c.mu.Unlock()
	if err := c.fill(t, off, n); err != nil {
		return err
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if t.gone.Load() {
		return nil
	}
	d.got += n
	if b == nil {
		d.firstSN++
		d.asked = d.got
		if h.Final() {
			d.unsolicited = 0
		}
	} else {
		b.next += n
		b.dataSN++
		if h.Final() {
			copy(d.bursts[:], d.bursts[1:d.open])
			d.open--
		}
	}
	if b == nil || h.Final() {
		c.proceed(t)
	}
	return nil
}
