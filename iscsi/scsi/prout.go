package scsi

import (
	"encoding/binary"
	"slices"
)

// Service actions of PERSISTENT RESERVE OUT (SPC-4 section 6.16).
const (
	prRegister       = 0x00
	prReserve        = 0x01
	prRelease        = 0x02
	prClear          = 0x03
	prPreempt        = 0x04
	prPreemptAbort   = 0x05
	prRegisterIgnore = 0x06
	prRegisterMove   = 0x07
)

// Lengths of the parameter list, in bytes.
const (
	prListBasic = 24
	prListMax   = prListBasic + 4 + 64*maxTransportID
)

// prRequest is what a command asks for.
type prRequest struct {
	action, kind byte
	key, newKey  uint64
	aptpl        bool
	allPorts     bool // ALL_TG_PT
	also         []Port
	ofAnyISID    []string // TransportIDs that name a device
	specified    bool     // SPEC_I_PT
	moveTo       nexusID
	unregister   bool // UNREG of REGISTER AND MOVE
}

func parsePROut(_ *Nexus, c *Command) result {
	c.Want = int64(c.u32(5))
	if c.Want < prListBasic || c.Want > prListMax {
		return check(listLengthError)
	}
	action, kind, scope := c.op.service, c.CDB[2]&0x0f, c.CDB[2]>>4
	switch action {
	case prReserve, prRelease, prPreempt, prPreemptAbort, prRegisterMove:
		if scope != 0 || !validKind(kind) && action != prRegisterMove {
			return badCDB(2)
		}
	}
	return result{}
}

// request reads the parameter list (SPC-4 sections 6.16.3 and 6.16.4).
func (u *Unit) request(c *Command) (q prRequest, r result) {
	p := c.Out
	if int64(len(p)) < c.Want {
		return q, check(listLengthError)
	}
	q = prRequest{action: c.op.service, kind: c.CDB[2] & 0x0f,
		key: binary.BigEndian.Uint64(p), newKey: binary.BigEndian.Uint64(p[8:])}
	if q.action == prRegisterMove {
		return q, q.readMove(p)
	}
	q.aptpl, q.allPorts, q.specified = p[20]&0x01 != 0, p[20]&0x04 != 0, p[20]&0x08 != 0
	switch registers := q.action == prRegister || q.action == prRegisterIgnore; {
	case q.specified && q.action != prRegister:
		return q, badList(20)
	case q.aptpl && registers && u.opt.Store == nil:
		return q, badList(20)
	case !q.specified && len(p) != prListBasic:
		return q, check(listLengthError)
	case q.specified:
		return q, q.readPorts(p)
	}
	return q, result{}
}

// readPorts reads the TransportIDs of SPEC_I_PT.
func (q *prRequest) readPorts(p []byte) result {
	if len(p) < prListBasic+4 {
		return check(listLengthError)
	}
	end := int64(prListBasic+4) + int64(binary.BigEndian.Uint32(p[prListBasic:]))
	if end != int64(len(p)) {
		return check(listLengthError)
	}
	for at := prListBasic + 4; at < len(p); {
		port, one, size, err := parseTransportID(p[at:])
		if err != nil {
			return badList(uint16(at))
		}
		if one {
			q.also = append(q.also, port)
		} else {
			q.ofAnyISID = append(q.ofAnyISID, port.Name)
		}
		at += size
	}
	return result{}
}

// readMove reads the parameter list of REGISTER AND MOVE.
func (q *prRequest) readMove(p []byte) result {
	if len(p) < prListBasic+24 || int64(binary.BigEndian.Uint32(p[20:])) != int64(len(p)-prListBasic) {
		return check(listLengthError)
	}
	q.unregister, q.aptpl = p[17]&0x02 != 0, p[17]&0x01 != 0
	q.moveTo.target = binary.BigEndian.Uint16(p[18:])
	port, one, size, err := parseTransportID(p[prListBasic:])
	switch {
	case err != nil, !one, size != len(p)-prListBasic:
		return badList(prListBasic)
	case q.newKey == 0:
		return badList(8)
	}
	q.moveTo.Port = port
	return result{}
}

// prChange is one PERSISTENT RESERVE OUT: the state as it will be, and who has to
// be told. Unit.prMu is held while it is made and put in place.
type prChange struct {
	u       *Unit
	by      nexusID
	next    *reservations
	changed bool
	told    []prNotice
	aborted []nexusID
}

type prNotice struct {
	to   nexusID
	code Code
}

// runPROut is PERSISTENT RESERVE OUT. What has to survive a restart is stable
// before the command is answered, or it changes nothing.
func runPROut(n *Nexus, c *Command) result {
	u := n.unit
	q, r := u.request(c)
	if !r.ok() {
		return r
	}
	if q.action == prRegisterMove && q.aptpl && u.opt.Store == nil {
		return badList(17)
	}
	t := &prChange{u: u, by: n.id()}
	if r := t.perform(&q); !r.ok() || len(t.aborted) == 0 {
		return r
	}
	if !u.abortAll(t.aborted) {
		// The victim's commands may still reach the medium: whoever asked for
		// this fence must not believe that it stands.
		return check(internalFailure)
	}
	return result{}
}

func (t *prChange) perform(q *prRequest) result {
	u := t.u
	u.prMu.Lock()
	defer u.prMu.Unlock()
	if u.reserved.Load() != nil {
		return reservationConflict // RESERVE(6): SPC-2 section 5.5.1
	}
	old := u.pr.Load()
	t.next = old.clone()
	if r := t.apply(q); !r.ok() || !t.changed {
		return r
	}
	if len(t.next.regs) == 0 {
		t.next.aptpl = false
	}
	if old.aptpl || t.next.aptpl {
		if err := u.saveReservations(t.next); err != nil {
			return check(internalFailure)
		}
	}
	u.pr.Store(t.next)
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, m := range t.told {
		for n := range u.nexuses {
			if n.id() == m.to {
				n.Attention(m.code)
			}
		}
	}
	return result{}
}

// abortAll ends the commands of nexuses that were preempted, and waits until
// none of theirs is in the device.
func (u *Unit) abortAll(ids []nexusID) bool {
	u.mu.Lock()
	var victims []*Nexus
	for n := range u.nexuses {
		if slices.Contains(ids, n.id()) {
			victims = append(victims, n)
		}
	}
	u.mu.Unlock()
	all := true
	for _, n := range victims {
		if n.path.Abort != nil {
			all = n.path.Abort() && all
		}
	}
	// What the victims copy to here by way of other units is no command of
	// theirs on this one.
	return all && u.steps.wait(ids)
}

// tell raises a unit attention for a nexus other than the command's.
func (t *prChange) tell(to nexusID, c Code) {
	if to != t.by {
		t.told = append(t.told, prNotice{to, c})
	}
}

// apply performs one service action on t.next.
func (t *prChange) apply(q *prRequest) result {
	p := t.next
	if q.action == prRegister || q.action == prRegisterIgnore {
		return t.register(q)
	}
	mine := p.find(t.by)
	if mine == nil || mine.key != q.key {
		return reservationConflict
	}
	switch q.action {
	case prReserve:
		if p.kind == 0 {
			p.kind, p.holder, t.changed = q.kind, t.by, true
			return result{}
		}
		if !p.holds(t.by) || p.kind != q.kind {
			return reservationConflict
		}
	case prRelease:
		if !p.holds(t.by) {
			return result{}
		}
		if p.kind != q.kind {
			return check(invalidRelease)
		}
		t.release()
		t.changed = true
	case prClear:
		for _, r := range p.regs {
			t.tell(r.nexusID, reservationsPreempted)
		}
		p.regs, p.kind, p.holder = nil, 0, nexusID{}
		p.generation++
		t.changed = true
	case prPreempt, prPreemptAbort:
		return t.preempt(q)
	case prRegisterMove:
		return t.move(q)
	}
	return result{}
}

// release ends the reservation; the others who had access by it are told (SPC-4
// section 5.12.11.2.2).
func (t *prChange) release() {
	p := t.next
	if forRegistrants(p.kind) {
		for _, r := range p.regs {
			t.tell(r.nexusID, reservationsReleased)
		}
	}
	p.kind, p.holder = 0, nexusID{}
}

// register is REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4 section
// 5.12.7).
func (t *prChange) register(q *prRequest) result {
	p := t.next
	ignore := q.action == prRegisterIgnore
	mine := p.find(t.by)
	switch {
	case mine == nil && q.key != 0 && !ignore, mine != nil && !ignore && mine.key != q.key:
		return reservationConflict
	case q.specified && (mine != nil || q.newKey == 0):
		return badCDB(1)
	case mine == nil && q.newKey == 0 && !q.allPorts:
		return result{}
	}
	ids, r := t.registrants(q)
	if !r.ok() {
		return r
	}
	for _, id := range ids {
		if r := t.registerOne(id, q, ignore); !r.ok() {
			return r
		}
	}
	if len(p.regs) > maxRegistrations {
		return check(insufficientRegs)
	}
	p.generation++
	p.aptpl, t.changed = q.aptpl, true
	return result{}
}

// registrants are the nexuses that a registration is for.
func (t *prChange) registrants(q *prRequest) ([]nexusID, result) {
	ports := append([]Port{t.by.Port}, q.also...)
	targets := []uint16{t.by.target}
	t.u.mu.Lock()
	defer t.u.mu.Unlock()
	for _, name := range q.ofAnyISID {
		found := false
		for n := range t.u.nexuses {
			if n.path.Port.Name == name {
				ports, found = append(ports, n.path.Port), true
			}
		}
		if !found {
			return nil, badList(prListBasic + 4)
		}
	}
	if q.allPorts {
		for _, g := range t.u.groups {
			targets = append(targets, g.Ports...)
		}
	}
	var ids []nexusID
	for _, port := range ports {
		for _, target := range targets {
			if id := (nexusID{port, target}); !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		if len(ids) > maxRegistrations {
			return nil, check(insufficientRegs)
		}
	}
	return ids, result{}
}

// registerOne registers one nexus, changes its key, or takes it out.
func (t *prChange) registerOne(id nexusID, q *prRequest, ignore bool) result {
	p := t.next
	r := p.find(id)
	switch {
	case r == nil && q.newKey == 0:
	case r == nil && q.key != 0 && !ignore:
		return reservationConflict // by another target port it is not registered
	case r == nil:
		p.regs = append(p.regs, registration{id, q.newKey})
	case !ignore && r.key != q.key:
		if q.specified && r.key == q.newKey {
			return result{} // it is already what is asked for
		}
		return reservationConflict
	case q.newKey != 0:
		r.key = q.newKey
	default:
		held := p.holds(id)
		p.drop(func(r registration) bool { return r.nexusID == id })
		if held && (!allRegistrants(p.kind) || len(p.regs) == 0) {
			t.release()
		}
	}
	return result{}
}

// preempt is PREEMPT and PREEMPT AND ABORT (SPC-4 sections 5.12.11.2.4
// to 5.12.11.2.6): the registrations with a key go, and the reservation if its holder
// is among them. Key 0 stands for all others of an all registrants reservation.
func (t *prChange) preempt(q *prRequest) result {
	p := t.next
	all := allRegistrants(p.kind)
	takes := false // the reservation too
	switch {
	case p.kind == 0:
	case all:
		takes = q.newKey == 0
	default:
		h := p.find(p.holder)
		takes = h != nil && h.key == q.newKey
	}
	if q.newKey == 0 && !takes {
		return badList(8)
	}
	match := func(r registration) bool { return takes && all || r.key == q.newKey }
	if !slices.ContainsFunc(p.regs, match) {
		return reservationConflict
	}
	for _, r := range p.regs {
		if !match(r) {
			continue
		}
		t.tell(r.nexusID, regsPreempted)
		if q.action == prPreemptAbort && r.nexusID != t.by {
			t.aborted = append(t.aborted, r.nexusID)
		}
	}
	p.drop(func(r registration) bool { return r.nexusID != t.by && match(r) })
	if takes {
		if p.kind != q.kind {
			for _, r := range p.regs {
				t.tell(r.nexusID, reservationsReleased)
			}
		}
		p.kind, p.holder = q.kind, t.by
	}
	p.generation++
	t.changed = true
	return result{}
}

// move is REGISTER AND MOVE (SPC-4 section 5.12.8): another nexus is registered
// and gets the reservation.
func (t *prChange) move(q *prRequest) result {
	p := t.next
	switch {
	case p.kind == 0, allRegistrants(p.kind), !p.holds(t.by):
		return reservationConflict
	case q.moveTo == t.by:
		return badList(prListBasic)
	case !t.u.hasPort(q.moveTo.target):
		return badList(18)
	}
	if r := p.find(q.moveTo); r != nil {
		r.key = q.newKey
	} else if len(p.regs) < maxRegistrations {
		p.regs = append(p.regs, registration{q.moveTo, q.newKey})
	} else {
		return check(insufficientRegs)
	}
	p.holder = q.moveTo
	if q.unregister {
		p.drop(func(r registration) bool { return r.nexusID == t.by })
	}
	p.generation++
	p.aptpl, t.changed = q.aptpl, true
	return result{}
}

// hasPort reports whether there is a target port of that relative identifier.
func (u *Unit) hasPort(port uint16) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.groupOf(port) != nil
}
