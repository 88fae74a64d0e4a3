package scsi

import (
	"encoding/binary"
)

// Sink takes the data that a command returns, in order. It belongs to one
// command and is used by one goroutine at a time.
type Sink interface {
	// Get lends a buffer of n bytes, at most Chunk, that nobody else uses. It may
	// wait until the initiator has taken what was sent before. Its
	// content is undefined.
	Get(n int) ([]byte, error)
	// Put takes back the buffer of the last Get, filled, as the next bytes of
	// the data. The buffer is no longer the caller's, whatever is returned.
	Put(b []byte) error
}

// Command is one SCSI command on its way through a Nexus. A transport may use it
// again for another after Reset.
type Command struct {
	CDB [16]byte
	// Limit is how much the initiator is ready to take or has to send (the
	// expected data transfer length), in bytes.
	Limit int64
	// Read and Write are the directions that the initiator announced.
	Read, Write bool
	// Out is the data that the initiator sent, set between Begin and Run: as
	// much as Begin asked for, or Limit if that is less.
	Out []byte
	// In takes the data for the initiator. At most Limit bytes are put into it.
	In Sink

	// Want is what the CDB itself asks to transfer, in bytes, in either
	// direction: the difference to Limit is the residual.
	Want int64

	// Status and Sense are the answer, valid after Run, or after Begin if that
	// returned done.
	Status   Status
	Sense    [SenseLen]byte
	SenseLen int

	op     *op
	lba    uint64
	blocks uint64
}

// Reset makes a Command ready for another use.
func (c *Command) Reset() {
	*c = Command{}
}

// data is the length of Want that really moves: what both sides agree on.
func (c *Command) data() int64 { return min(c.Want, c.Limit) }

func (c *Command) u16(at int) uint16 { return binary.BigEndian.Uint16(c.CDB[at:]) }
func (c *Command) u32(at int) uint32 { return binary.BigEndian.Uint32(c.CDB[at:]) }
func (c *Command) u64(at int) uint64 { return binary.BigEndian.Uint64(c.CDB[at:]) }

// reply sends parameter data, cut to the allocation length of the CDB.
func (c *Command) reply(data []byte, alloc uint32) result {
	c.Want = min(int64(len(data)), int64(alloc))
	for data = data[:c.data()]; len(data) > 0; {
		b, err := c.In.Get(min(len(data), Chunk))
		if err != nil {
			return deviceError(err, false)
		}
		data = data[copy(b, data):]
		if err := c.In.Put(b); err != nil {
			return deviceError(err, false)
		}
	}
	return result{}
}

// Begin looks at a command. If it is refused done is true and the answer is in
// c; else out is how many bytes of data the command needs from the initiator
// before Run. It does not wait for the device.
func (n *Nexus) Begin(c *Command) (out int64, done bool) {
	r := n.begin(c)
	if !r.ok() {
		n.finish(c, r)
		return 0, true
	}
	if c.op.out {
		if c.Want > maxTransfer {
			n.finish(c, check(invalidFieldInCDB))
			return 0, true
		}
		return c.Want, false
	}
	return 0, false
}

func (n *Nexus) begin(c *Command) result {
	u := n.unit
	o, r := lookup(c)
	if !r.ok() && n.pending.Load() {
		// A unit attention comes before an error in the CDB (SAM-5 5.14).
		if code, ok := n.takeAttention(); ok {
			return check(code)
		}
	}
	if !r.ok() {
		return r
	}
	c.op = o
	if !o.always {
		if code, ok := n.takeAttention(); ok {
			return check(code)
		}
	}
	if last := len(o.usage) - 1; c.CDB[last]&0x04 != 0 {
		return badCDB(uint16(last)) // NACA: there is no auto contingent allegiance (SAM-5, CONTROL byte)
	}
	if r := n.reachable(o); !r.ok() {
		return r
	}
	if r := u.conflict(n, o, &c.CDB); !r.ok() {
		return r
	}
	if o.needs != nil && !o.needs(u) {
		return check(invalidOpcode)
	}
	if o.writes {
		if code, no := n.protected(); no {
			return check(code)
		}
	}
	if o.parse != nil {
		if r := o.parse(n, c); !r.ok() {
			return r
		}
	}
	return result{}
}

// Run performs a command that Begin let through. It may wait for the device and
// for the Sink.
func (n *Nexus) Run(c *Command) {
	u := n.unit
	u.stats.running.Add(1)
	r := c.op.run(n, c)
	u.stats.running.Add(-1)
	n.finish(c, r)
}

// finish writes down the answer.
func (n *Nexus) finish(c *Command, r result) {
	c.Status, c.SenseLen = r.status, 0
	if r.status == CheckCondition {
		n.unit.stats.errors.Add(1)
		c.SenseLen = r.put(&c.Sense, n.unit.dsense.Load())
	}
}

// Fail ends a command with a condition that the transport has found.
func (c *Command) Fail(code Code) {
	c.Status = CheckCondition
	c.SenseLen = check(code).put(&c.Sense, false)
}
