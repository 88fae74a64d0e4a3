package initiator

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
	"github.com/cleave-san/cleave/iscsi/scsi"
)

// receive takes one PDU. Its error is the session's.
func (s *session) receive(h *pdu.Header) error {
	if h.AHSLen() > 0 {
		return protocolError("additional header segments: %s", h)
	}
	switch op := h.Opcode(); op {
	case pdu.OpDataIn:
		return s.dataIn(h)
	case pdu.OpSCSIResponse:
		return s.response(h)
	case pdu.OpR2T:
		s.window(h)
		return s.readyToTransfer(h)
	case pdu.OpNopIn:
		s.window(h)
		return s.nopIn(h)
	case pdu.OpAsync:
		s.counted(h)
		return s.asynchronous(h)
	case pdu.OpLogoutResp:
		if h.ITT() != logoutTag {
			return protocolError("unasked %s", h)
		}
		return errLogout
	case pdu.OpReject:
		return protocolError("it rejects a PDU for reason 0x%02x", h[2])
	default:
		return protocolError("unexpected %s", h)
	}
}

// counted takes StatSN and the command window of a PDU that has a status.
func (s *session) counted(h *pdu.Header) {
	if n := h.StatSN() + 1; pdu.Less(s.expStatSN.Load(), n) {
		s.expStatSN.Store(n)
	}
	s.window(h)
}

// window takes ExpCmdSN and MaxCmdSN (RFC 7143 section 4.2.2.1); older values
// than the last are passed over.
func (s *session) window(h *pdu.Header) {
	exp, last := h.Window()
	old := s.maxCmdSN.Load()
	if pdu.Less(last, exp-1) || !pdu.Less(old, last) {
		return
	}
	s.maxCmdSN.Store(last)
	n := min(int64(last-old), int64(s.waiters.Load()))
	if n == 0 {
		return
	}
	// Taken so that a waiter can't fall asleep between its look and this.
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.room.Signal()
	}
}

// find returns the task that a PDU belongs to.
func (s *session) find(h *pdu.Header) (*task, error) {
	tag := h.ITT()
	if i := tag & indexMask; i < uint32(len(s.tasks)) && tag != 0 {
		if t := &s.tasks[i]; t.tag.Load() == tag {
			return t, nil
		}
	}
	return nil, protocolError("no such command is under way: %s", h)
}

// dataIn takes read data, in order, as DataPDUInOrder and DataSequenceInOrder
// promise, and the status that may come with the last of it.
func (s *session) dataIn(h *pdu.Header) error {
	t, err := s.find(h)
	if err != nil {
		return err
	}
	n := h.DataLen()
	switch {
	case h.DataSN() != t.dataSN:
		return protocolError("DataSN %d, next is %d: %s", h.DataSN(), t.dataSN, h)
	case h.Offset() != t.got:
		return protocolError("data at %d, next is %d: %s", h.Offset(), t.got, h)
	case n > len(t.c.in)-int(t.got):
		return protocolError("%d bytes of data at %d, %d were asked: %s", n, t.got, len(t.c.in), h)
	}
	if err := s.rd.Read(t.c.in[t.got:][:n]); err != nil {
		return err
	}
	t.got += uint32(n)
	t.dataSN++
	if h.Flags()&pdu.FlagStatus == 0 {
		return nil
	}
	if !h.Final() {
		return protocolError("status before the last of the data: %s", h)
	}
	s.counted(h)
	t.response, t.status, t.flags, t.residual = 0, scsi.Status(h[3]), h.Flags(), h.Residual()
	return s.complete(t)
}

// response takes the status of a command, and sense data.
func (s *session) response(h *pdu.Header) error {
	t, err := s.find(h)
	if err != nil {
		return err
	}
	t.response, t.status, t.flags, t.residual = h[2], scsi.Status(h[3]), h.Flags(), h.Residual()
	if n := h.DataLen(); n >= 2 {
		var length [2]byte
		if err := s.rd.Read(length[:]); err != nil {
			return err
		}
		t.nsense = min(int(binary.BigEndian.Uint16(length[:])), n-2, senseMax)
		if err := s.rd.Read(t.sense[:t.nsense]); err != nil {
			return err
		}
	}
	// The digest of what follows counts too: the status is not taken before.
	if err := s.rd.Skip(); err != nil {
		return err
	}
	if t.status == scsi.CheckCondition {
		s.attention(t.sense[:t.nsense])
	}
	s.counted(h)
	return s.complete(t)
}

// attention takes down what sense data means for more than its command, before
// the answers that come after it.
func (s *session) attention(b []byte) {
	e, ok := parseSense(b)
	if ok && (e.identityMoved() || e.code() == codeNoUnit) {
		s.doubts.Add(1)
	}
	if ok && (e.Deferred || e.Key == UnitAttention && e.ASC == codeReset>>8 && e.code() != codeNexusLoss) {
		s.epoch.Add(1)
	}
}

// complete gives a task that has its answer back to its caller, once nothing of
// its data waits to be sent.
func (s *session) complete(t *task) error {
	if err := t.checkResidual(); err != nil {
		return err
	}
	t.tag.Store(0)
	if len(t.c.out) > 0 {
		s.mu.Lock()
		t.answered, t.late = true, t.refs > 0
		if t.late && t.slot != nil {
			t.slot.q.late.Add(1)
		}
		late := t.late
		s.mu.Unlock()
		if late {
			return nil // the writer completes it
		}
	}
	s.hand(t)
	s.handed++
	return nil
}

// readyToTransfer queues the data that the target asks for. R2Ts come in order
// and ask for each byte once (RFC 7143 section 11.8).
func (s *session) readyToTransfer(h *pdu.Header) error {
	t, err := s.find(h)
	if err != nil {
		return err
	}
	from, n := h.Offset(), h.Desired()
	switch {
	case h.DataSN() != t.r2tSN:
		return protocolError("R2TSN %d, next is %d: %s", h.DataSN(), t.r2tSN, h)
	case n == 0 || n > s.par.maxBurst:
		return protocolError("R2T for %d bytes, a burst has at most %d: %s", n, s.par.maxBurst, h)
	case from != t.asked || uint64(from)+uint64(n) > uint64(len(t.c.out)):
		return protocolError("R2T for %d bytes at %d, next of %d is %d: %s", n, from, len(t.c.out), t.asked, h)
	}
	t.r2tSN++
	t.asked += n
	s.mu.Lock()
	s.dataOut(t, h.TTT(), h.LUN(), from, from+n)
	s.mu.Unlock()
	return nil
}

// nopIn answers a ping, or takes the answer to ours (RFC 7143 section 11.19).
func (s *session) nopIn(h *pdu.Header) error {
	switch {
	case h.ITT() == pingTag:
		s.counted(h)
		return nil
	case h.ITT() != pdu.NoTag:
		return protocolError("unasked %s", h)
	case h.TTT() == pdu.NoTag:
		return nil // only tells the window
	}
	o := outgoing{}
	o.h.Set(pdu.OpNopOut, pdu.FlagFinal)
	o.h[0] |= immediate
	o.h.SetLUN(h.LUN())
	o.h.SetITT(pdu.NoTag)
	o.h.SetTTT(h.TTT())
	s.mu.Lock()
	o.h.SetCmdSN(s.cmdSN)
	s.queue = append(s.queue, o)
	n := len(s.queue)
	s.mu.Unlock()
	if n > answersMax+len(s.tasks) {
		return protocolError("over %d pings wait for their answer", answersMax)
	}
	return nil
}

// Events of an asynchronous message (RFC 7143 section 11.9.1).
const (
	eventSCSI        = 0
	eventLogout      = 1
	eventDropConn    = 2
	eventDropSession = 3
	eventNegotiate   = 4
	waitMax          = 20 * time.Second
)

func (s *session) asynchronous(h *pdu.Header) error {
	switch event := h[36]; event {
	case eventSCSI:
		s.doubts.Add(1) // whatever it is about
	case eventLogout, eventNegotiate:
		s.drain()
	case eventDropConn, eventDropSession:
		s.mu.Lock()
		s.wait = time.Duration(binary.BigEndian.Uint16(h[40:])) * time.Second // Time2Wait
		s.mu.Unlock()
		return fmt.Errorf("the target drops the connection (event %d)", event)
	}
	return nil
}
