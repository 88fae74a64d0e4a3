package initiator

import (
	"github.com/cleave-san/cleave/iscsi/pdu"
)

// outgoing is a PDU that waits to be sent.
type outgoing struct {
	h      pdu.Header
	data   []byte
	t      *task // whose data it is, nil if none
	digest [4]byte
	tail   [8]byte // padding and data digest
}

// answersMax is how many PDUs may wait to be sent that the target has asked for:
// one that asks and doesn't read is cut off.
const answersMax = 8192

// enqueue queues a command, and as much of its data as may be sent unasked: with
// the command (ImmediateData) and after it (InitialR2T=No), FirstBurstLength in
// all (RFC 7143 section 13.14). s.mu is held.
func (s *session) enqueue(t *task) {
	var h pdu.Header
	flags := uint8(pdu.FlagFinal | attrSimple)
	first := 0
	edtl := len(t.c.in)
	if len(t.c.in) > 0 {
		flags |= pdu.FlagRead
	}
	if n := len(t.c.out); n > 0 {
		flags |= pdu.FlagWrite
		edtl = n
		burst := min(n, int(s.par.firstBurst))
		if s.par.immediateData {
			first = min(burst, int(s.par.sendMax))
		}
		t.asked = uint32(first)
		if !s.par.initialR2T && burst > first {
			flags &^= pdu.FlagFinal
			t.asked = uint32(burst)
		}
	}
	h.Set(pdu.OpSCSICommand, flags)
	h.SetLUN(s.lun)
	h.SetITT(t.tag.Load())
	h.SetEDTL(uint32(edtl))
	h.SetCmdSN(s.cmdSN)
	s.cmdSN++
	copy(h.CDB(), t.c.cdb[:])
	o := outgoing{h: h}
	if first > 0 {
		o.data, o.t = t.c.out[:first], t
		t.refs++
	}
	s.queue = append(s.queue, o)
	if int(t.asked) > first {
		s.dataOut(t, pdu.NoTag, 0, uint32(first), t.asked)
	}
}

// attrSimple is the task attribute SIMPLE (RFC 7143 section 11.3.1).
const attrSimple = 1

// dataOut queues one sequence of Data-Out PDUs: the bytes of t.c.out in
// [from, to). s.mu is held.
func (s *session) dataOut(t *task, ttt uint32, lun uint64, from, to uint32) {
	for sn := uint32(0); from < to; sn++ {
		n := min(to-from, s.par.sendMax)
		var flags uint8
		if from+n == to {
			flags = pdu.FlagFinal
		}
		o := outgoing{data: t.c.out[from : from+n], t: t}
		o.h.Set(pdu.OpDataOut, flags)
		o.h.SetLUN(lun)
		o.h.SetITT(t.tag.Load())
		o.h.SetTTT(ttt)
		o.h.SetDataSN(sn)
		o.h.SetOffset(from)
		t.refs++
		s.queue = append(s.queue, o)
		from += n
	}
}

// flush sends what is queued, unless somebody is at it, or about to, who then does
// this as well. It is called with s.mu held, and lets it go.
func (s *session) flush() {
	if s.writing || s.err != nil || s.led && s.awake {
		s.mu.Unlock()
		return
	}
	s.writing = true
	if s.short() {
		s.sendShort()
	} else {
		if !s.led && len(s.tasks)-len(s.free) > 1 {
			// The target may be sending, and take nothing before that is read.
			s.due = true
			s.turn.Signal()
		}
		s.send()
	}
	s.rest()
	s.mu.Unlock()
}

// flushNow is flush for the leader, who must not wait for the target: what is not
// short is the writer's. s.mu is held.
func (s *session) flushNow() {
	switch {
	case s.writing || s.err != nil || len(s.queue) == 0:
	case s.short():
		s.writing = true
		s.sendShort()
		s.rest()
	default:
		s.work.Signal()
	}
}

// rest ends a writer's turn. s.mu is held.
func (s *session) rest() {
	s.writing = false
	switch {
	case s.err != nil:
		s.idle.Broadcast()
	case len(s.queue) > 0 || len(s.direct.left) > 0:
		s.work.Signal()
	}
}

// write is the session's writer: it sends what those leave who have something
// better to do.
func (s *session) write() {
	defer s.wg.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for s.err == nil && (s.writing || len(s.queue) == 0 && len(s.direct.left) == 0) {
			s.work.Wait()
		}
		if s.err != nil {
			return
		}
		s.writing = true
		s.send()
		s.rest()
	}
}

// send sends all that is queued in one writev. It is called with s.mu held and
// s.writing set, and lets s.mu go meanwhile.
func (s *session) send() {
	if s.err != nil || len(s.queue) == 0 && len(s.direct.left) == 0 {
		return
	}
	batch, vec := s.queue, s.vec[:0]
	s.queue, s.spare = s.spare[:0], nil
	if len(s.direct.left) > 0 {
		vec = append(vec, s.direct.left)
		s.direct.left = nil // its memory is not used before s.writing ends
	}
	s.mu.Unlock()
	stat := s.expStatSN.Load()
	for i := range batch {
		batch[i].h.SetExpStatSN(stat)
		vec = batch[i].encode(vec, &s.par)
	}
	s.vec = vec
	err := s.nc.writeAll(vec)
	clear(vec)
	if err != nil {
		s.fail(err)
	}
	s.mu.Lock()
	s.sent(batch)
	if cap(batch) <= 4*maxDepth {
		s.spare = batch
	}
}

// sent gives back the commands whose data is no longer needed. s.mu is held, and let
// go meanwhile.
func (s *session) sent(batch []outgoing) {
	for i := range batch {
		if t := batch[i].t; t != nil {
			batch[i].t, batch[i].data = nil, nil
			if t.refs--; t.refs == 0 && t.answered {
				s.mu.Unlock()
				s.hand(t)
				s.mu.Lock()
			}
		}
	}
}

// encode appends the pieces of a PDU to vec.
func (o *outgoing) encode(vec [][]byte, par *params) [][]byte {
	o.h.SetDataLen(len(o.data))
	vec = append(vec, o.h[:])
	if par.headerDigest {
		pdu.PutDigest(o.digest[:], pdu.Digest(0, o.h[:]))
		vec = append(vec, o.digest[:])
	}
	if len(o.data) == 0 {
		return vec
	}
	vec = append(vec, o.data)
	pad := -len(o.data) & 3
	n := pad
	clear(o.tail[:4])
	if par.dataDigest {
		pdu.PutDigest(o.tail[pad:], pdu.Digest(pdu.Digest(0, o.data), o.tail[:pad]))
		n += 4
	}
	if n > 0 {
		vec = append(vec, o.tail[:n])
	}
	return vec
}
