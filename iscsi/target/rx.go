package target

import (
	"errors"
	"fmt"
	"io"

	"github.com/cleave-san/cleave/iscsi/pdu"
	"github.com/cleave-san/cleave/iscsi/scsi"
)

// Reasons of a Reject PDU (RFC 7143 section 11.17.1).
const (
	rejectProtocol     = 0x04
	rejectNotSupported = 0x05
	rejectInvalidField = 0x09
	rejectDataDigest   = 0x02
)

// errProtocol ends a connection whose initiator does what can't be answered.
var errProtocol = errors.New("protocol error")

// maxTasks bounds the commands of one connection over all LUNs.
const maxTasks = 2048

// read is the full feature phase, until the initiator logs out (nil), goes away
// (io.EOF), or has to be dropped.
func (c *conn) read() error {
	var h pdu.Header
	owed := 0 // answers that wait for more of them
	for !c.loggedOut {
		if len(c.kept) > 0 && (len(c.kept) == inlineKept || c.idle()) {
			var ours bool
			if owed, ours = c.serve(owed); !ours {
				return errRelieved
			}
		}
		if owed > 0 && c.idle() && !c.more() {
			c.sendNow()
			owed = 0
		}
		if err := c.rd.Next(&h); err != nil {
			return err
		}
		c.tx.throttle()
		c.heard.Add(1)
		if err := c.handle(&h); err != nil {
			if errors.Is(err, pdu.ErrDataDigest) {
				c.reject(&h, rejectDataDigest)
			}
			return err
		}
		if c.asked {
			c.sendNow()
			c.asked, owed = false, 0
		}
	}
	return nil
}

// handle performs one PDU. An error ends the connection.
func (c *conn) handle(h *pdu.Header) error {
	op := h.Opcode()
	if op == pdu.OpDataOut { // has no CmdSN
		return c.dataOut(h)
	}
	switch op {
	case pdu.OpNopOut, pdu.OpSCSICommand, pdu.OpTaskMgmt, pdu.OpText, pdu.OpLogout:
	case pdu.OpSNACK, pdu.OpLogin:
		// SNACK needs error recovery level 1; a session logs in once.
		c.reject(h, rejectProtocol)
		return fmt.Errorf("%w: %s in full feature phase at error recovery level 0", errProtocol, op)
	default:
		c.reject(h, rejectNotSupported)
		return nil
	}
	if ok, err := c.sequence(h); err != nil || !ok {
		return err
	}
	if c.ss.target == nil && (op == pdu.OpSCSICommand || op == pdu.OpTaskMgmt) {
		// RFC 7143 section 4.3: a discovery session is for text and logout.
		c.reject(h, rejectProtocol)
		return nil
	}
	switch op {
	case pdu.OpSCSICommand:
		return c.command(h)
	case pdu.OpNopOut:
		return c.nop(h)
	case pdu.OpTaskMgmt:
		c.taskMgmt(h)
		return nil
	case pdu.OpText:
		return c.textRequest(h)
	default:
		c.logout(h)
		return nil
	}
}

// sequence checks CmdSN (RFC 7143 section 4.2.2.1). Outside the window a PDU is
// ignored. One that skips numbers can't come on a single connection.
func (c *conn) sequence(h *pdu.Header) (bool, error) {
	exp, sn := c.expCmdSN.Load(), h.CmdSN()
	switch {
	case h.Immediate():
		// Not counted, but it may not be from another time.
		return !pdu.Less(sn, exp-c.window) && !pdu.Less(exp+c.window, sn), nil
	case h.Opcode() == pdu.OpNopOut && h.ITT() == pdu.NoTag:
		return true, nil // must be immediate; an answer to our ping all the same
	case sn == exp:
		if h.Opcode() == pdu.OpSCSICommand {
			c.credits.Add(1) // before ExpCmdSN moves: MaxCmdSN may lag, never lead
		}
		c.expCmdSN.Store(exp + 1)
		return true, nil
	case pdu.Less(sn, exp) || pdu.Less(exp+c.window-1, sn):
		return false, nil
	}
	return false, fmt.Errorf("%w: CmdSN %d after %d", errProtocol, sn, exp-1)
}

// reject answers with the header that can't be accepted (RFC 7143 section 11.17).
func (c *conn) reject(h *pdu.Header, reason byte) {
	var o outgoing
	o.h.Set(pdu.OpReject, pdu.FlagFinal)
	o.h[2] = reason
	o.h.SetITT(pdu.NoTag)
	o.data = append([]byte(nil), h[:]...)
	o.stat = hasStatSN
	c.tx.send(o)
}

// command takes a SCSI Command PDU (RFC 7143 section 11.3).
func (c *conn) command(h *pdu.Header) error {
	imm, edtl, flags := uint32(h.DataLen()), h.EDTL(), h.Flags()
	extended, bidi := false, false
	if h.AHSLen() > 0 {
		var err error
		if extended, bidi, err = pdu.CheckAHS(c.rd.AHS()); err != nil {
			c.reject(h, rejectInvalidField)
			return fmt.Errorf("%w: %w", errProtocol, err)
		}
	}
	read, write := flags&pdu.FlagRead != 0, flags&pdu.FlagWrite != 0
	final := h.Final()
	switch {
	case imm > 0 && (!c.par.immediateData || imm > c.par.firstBurst),
		imm > 0 && (!write || imm > edtl),
		!final && (!write || c.par.initialR2T):
		// RFC 7143 section 13.11: immediate or unsolicited data against what
		// was agreed.
		c.reject(h, rejectProtocol)
		return fmt.Errorf("%w: %d bytes of immediate data: %s", errProtocol, imm, h)
	case read && write || bidi:
		c.reject(h, rejectNotSupported)
		return c.rd.Skip()
	}

	t := newTask(c)
	t.itt, t.edtl, t.lun, t.credit = h.ITT(), edtl, h.LUN(), !h.Immediate()
	t.cmd.Limit, t.cmd.Read, t.cmd.Write = int64(edtl), read, write
	if !read && !write {
		t.cmd.Limit, t.edtl = 0, 0
	}
	t.cmd.In = t
	copy(t.cmd.CDB[:], h.CDB())

	n := c.ss.lookup(t.lun)
	if n == nil {
		return c.noUnit(t)
	}
	if !n.entry.enter() {
		return c.noUnit(t)
	}
	t.nx = n

	c.mu.Lock()
	switch {
	case c.over:
		c.mu.Unlock()
		n.entry.leave()
		return c.rd.Skip() // the connection ends
	case t.itt == pdu.NoTag || c.tasks[t.itt] != nil:
		// A tag in use: RFC 7143 section 11.2.1.8 leaves no way to tell the
		// two apart afterwards.
		c.mu.Unlock()
		n.entry.leave()
		c.reject(h, rejectInvalidField)
		return fmt.Errorf("%w: task tag 0x%08x is in use", errProtocol, h.ITT())
	}
	unsolicited := imm
	if !final {
		unsolicited = min(edtl, c.par.firstBurst)
	}
	full := n.count >= c.srv.opt.QueueDepth || len(c.tasks) >= maxTasks ||
		!n.admitUnsolicited(t, unsolicited)
	t.state = collecting
	c.tasks[t.itt] = t
	n.count++
	c.mu.Unlock()

	if full {
		t.cmd.Status = scsi.TaskSetFull
		t.finish()
		return c.rd.Skip()
	}
	if extended {
		t.cmd.CDB[0] = 0x7f // no variable length CDB is known
	}
	need, done := n.scsi.Begin(&t.cmd)
	if done {
		t.finish()
		return c.rd.Skip()
	}
	if need == 0 && imm == 0 && final {
		c.mu.Lock()
		if !t.gone.Load() {
			n.enqueue(t)
		}
		c.mu.Unlock()
		return nil
	}
	if need > 0 && !write {
		// The command takes data that the initiator doesn't mean to send.
		need = 0
	}
	return c.collect(t, need, imm, !final)
}

// noUnit answers a command to a LUN that the initiator doesn't see.
func (c *conn) noUnit(t *task) error {
	var luns []uint16
	if c.ss.target != nil {
		luns = c.ss.luns()
	}
	scsi.NoUnit(&t.cmd, luns)
	t.finish()
	return c.rd.Skip()
}

// nop takes a NOP-Out (RFC 7143 section 11.18): a ping, or the answer to ours.
func (c *conn) nop(h *pdu.Header) error {
	n := h.DataLen()
	if h.ITT() == pdu.NoTag {
		return c.rd.Skip()
	}
	var o outgoing
	o.h.Set(pdu.OpNopIn, pdu.FlagFinal)
	o.h.SetITT(h.ITT())
	o.h.SetTTT(pdu.NoTag)
	o.h.SetLUN(h.LUN())
	o.stat = hasStatSN
	if n > 0 {
		// No more comes back than the initiator takes, and a flood of
		// pings waits for room.
		if !c.tx.reserve(int64(n), func() bool { return false }) {
			return io.EOF
		}
		buf := lend(n)
		if err := c.rd.Read(buf.mem[:n]); err != nil {
			return err
		}
		o.data, o.buf, o.debt = buf.mem[:min(n, int(c.sendMax.Load()))], buf, int64(n)
	}
	c.tx.send(o)
	return nil
}

// logout takes a Logout Request (RFC 7143 section 11.14). Session and connection
// are the same here; recovery needs a higher level.
func (c *conn) logout(h *pdu.Header) {
	var o outgoing
	o.h.Set(pdu.OpLogoutResp, pdu.FlagFinal)
	o.h.SetITT(h.ITT())
	switch reason := h.Flags() & 0x7f; {
	case reason == 2:
		o.h[2] = 2 // connection recovery is not supported
	case reason > 2:
		o.h[2] = 3
	case reason == 1 && h.CID() != c.par.cid:
		o.h[2] = 1 // CID not found
	default:
		c.loggedOut = true
	}
	if c.loggedOut {
		c.abandon()
	}
	o.stat = hasStatSN
	c.tx.send(o)
}

// abandon ends all tasks; none can start after it.
func (c *conn) abandon() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.abort(func(*task) bool { return true }, nil)
}
