package scsi

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Reservations: RESERVE and RELEASE(6) of SPC-2, persistent reservations of SPC-4
// section 5.12. They live as long as the Unit; they don't survive a restart
// (PTPL_C=0 says so).

// Types of persistent reservation (SPC-4 table 216).
const (
	writeExclusive       = 1
	exclusiveAccess      = 3
	writeExclusiveRO     = 5 // registrants only
	exclusiveAccessRO    = 6
	writeExclusiveAllReg = 7
	exclusiveAccessAll   = 8
)

func validKind(k byte) bool {
	return k == writeExclusive || k == exclusiveAccess || k >= writeExclusiveRO && k <= exclusiveAccessAll
}

// maxRegistrations bounds what initiators can make a unit remember.
const maxRegistrations = 256

type registration struct {
	port Port
	key  uint64
}

// reservations is the state of one Unit. Unit.mu guards it.
type reservations struct {
	generation uint32
	regs       []registration
	kind       byte // 0: no reservation
	holder     Port // for the kinds that have one holder
}

func (p *reservations) find(port Port) *registration {
	for i := range p.regs {
		if p.regs[i].port == port {
			return &p.regs[i]
		}
	}
	return nil
}

// holds reports whether a port is a reservation holder: with the all-registrants
// kinds each registrant is.
func (p *reservations) holds(port Port) bool {
	switch {
	case p.kind == 0:
		return false
	case p.kind >= writeExclusiveAllReg:
		return p.find(port) != nil
	}
	return p.holder == port
}

// conflict is asked when there is any reservation (SPC-4 tables 50 and 51).
func (u *Unit) conflict(n *Nexus, o *op, c *Command) result {
	no := result{status: ReservationConflict}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.reserved != nil && u.reserved != n {
		switch {
		case o.always, o.code == 0x17: // RELEASE(6) of another changes nothing
		case o.code == 0x9e && o.service == 0x10, o.code == 0x25, o.code == 0xa3:
		default:
			return no
		}
	}
	p := &u.pr
	if p.kind == 0 || p.holds(n.port) {
		return result{}
	}
	registered := p.kind >= writeExclusiveRO && p.find(n.port) != nil
	exclusive := p.kind == exclusiveAccess || p.kind == exclusiveAccessRO || p.kind == exclusiveAccessAll
	switch {
	case registered, o.access == isAllowed, o.access == isPROut:
	case o.code == 0x00, o.code == 0x1b && c.CDB[4]&0xf1 == 0x01, o.code == 0x1e && c.CDB[4]&1 == 0:
	case o.access == isRead && !exclusive:
	default:
		return no
	}
	return result{}
}

func runReserve6(n *Nexus, c *Command) result {
	if c.CDB[1]&0x11 != 0 { // third party and extents are obsolete
		return badCDB(1)
	}
	u := n.unit
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.pr.regs) > 0 || u.reserved != nil && u.reserved != n {
		return result{status: ReservationConflict}
	}
	u.reserved = n
	u.updateHeld()
	return result{}
}

func runRelease6(n *Nexus, c *Command) result {
	u := n.unit
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.pr.regs) > 0 {
		return result{status: ReservationConflict}
	}
	if u.reserved == n {
		u.reserved = nil
	}
	u.updateHeld()
	return result{}
}

// runPRIn is PERSISTENT RESERVE IN (SPC-4 section 6.15).
func runPRIn(n *Nexus, c *Command) result {
	u := n.unit
	u.mu.Lock()
	p := &u.pr
	b := binary.BigEndian.AppendUint32(nil, p.generation)
	b = append(b, 0, 0, 0, 0)
	switch c.op.service {
	case 0: // READ KEYS
		for _, r := range p.regs {
			b = binary.BigEndian.AppendUint64(b, r.key)
		}
	case 1: // READ RESERVATION
		if p.kind != 0 {
			var key uint64
			if r := p.find(p.holder); r != nil && p.kind < writeExclusiveAllReg {
				key = r.key
			}
			b = binary.BigEndian.AppendUint64(b, key)
			b = append(b, 0, 0, 0, 0, 0, p.kind, 0, 0)
		}
	case 2: // REPORT CAPABILITIES
		b = []byte{0, 8, 0x10, 0x80, // CRH; TMV
			0x80 | 0x40 | 0x20 | 0x08 | 0x02, 0x01, 0, 0}
	case 3: // READ FULL STATUS
		for _, r := range p.regs {
			d := binary.BigEndian.AppendUint64(nil, r.key)
			d = append(d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
			if p.holds(r.port) {
				d[12], d[13] = 0x01, p.kind
			}
			id := r.port.transportID()
			d = binary.BigEndian.AppendUint32(d, uint32(len(id)))
			b = append(append(b, d...), id...)
		}
	}
	u.mu.Unlock()
	if c.op.service != 2 {
		binary.BigEndian.PutUint32(b[4:], uint32(len(b)-8))
	}
	return c.reply(b, uint32(c.u16(7)))
}

// transportID is the iSCSI TransportID with ISID (SPC-4 section 7.6.4.6).
func (p Port) transportID() []byte {
	s := fmt.Sprintf("%s,i,0x%012x", p.Name, p.ISID)
	n := max((len(s)+4)&^3, 20)
	b := make([]byte, 4+n)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	copy(b[4:], s)
	return b
}

func parsePROut(_ *Nexus, c *Command) result {
	c.Want = int64(c.u32(5))
	if c.Want != 24 {
		return check(listLengthError)
	}
	return result{}
}

// runPROut is PERSISTENT RESERVE OUT (SPC-4 section 6.16).
func runPROut(n *Nexus, c *Command) result {
	if len(c.Out) < 24 {
		return check(listLengthError)
	}
	key, newKey := binary.BigEndian.Uint64(c.Out), binary.BigEndian.Uint64(c.Out[8:])
	kind, scope, action := c.CDB[2]&0x0f, c.CDB[2]>>4, c.op.service
	if c.Out[20]&0x0d != 0 { // SPEC_I_PT, ALL_TG_PT, APTPL: not offered
		return badList(20)
	}
	if action != 0 && action != 6 && action != 3 && (scope != 0 || !validKind(kind)) {
		return badCDB(2)
	}
	u := n.unit
	u.mu.Lock()
	var r result
	var aborted []*Nexus
	if u.reserved != nil && u.reserved != n {
		r = result{status: ReservationConflict}
	} else {
		r, aborted = u.prOut(n, action, kind, key, newKey)
	}
	u.updateHeld()
	u.mu.Unlock()
	for _, a := range aborted {
		if a.preempted != nil {
			a.preempted()
		}
	}
	return r
}

// prOut performs one service action with Unit.mu held. It returns the nexuses
// whose commands have to be aborted.
func (u *Unit) prOut(n *Nexus, action, kind byte, key, newKey uint64) (result, []*Nexus) {
	p := &u.pr
	conflict := result{status: ReservationConflict}
	mine := p.find(n.port)
	if action == 0 || action == 6 {
		return u.register(n, mine, action == 6, key, newKey), nil
	}
	if mine == nil || mine.key != key {
		return conflict, nil
	}
	switch action {
	case 1: // RESERVE
		if p.kind == 0 {
			p.kind, p.holder = kind, n.port
			return result{}, nil
		}
		if !p.holds(n.port) || p.kind != kind {
			return conflict, nil
		}
	case 2: // RELEASE
		if !p.holds(n.port) {
			return result{}, nil
		}
		if p.kind != kind {
			return check(invalidRelease), nil
		}
		u.release(n.port)
	case 3: // CLEAR
		for _, r := range p.regs {
			u.tell(r.port, reservationsPreempted, n)
		}
		p.regs, p.kind, p.holder = nil, 0, Port{}
		p.generation++
	case 4, 5: // PREEMPT, PREEMPT AND ABORT
		return u.preempt(n, action == 5, kind, newKey)
	}
	return result{}, nil
}

// register is REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4 section 5.12.7).
func (u *Unit) register(n *Nexus, mine *registration, ignore bool, key, newKey uint64) result {
	p := &u.pr
	switch {
	case mine == nil && key != 0 && !ignore, mine != nil && !ignore && mine.key != key:
		return result{status: ReservationConflict}
	case mine == nil && newKey == 0:
		return result{}
	case mine == nil && len(p.regs) >= maxRegistrations:
		return check(insufficientRegs)
	case mine == nil:
		p.regs = append(p.regs, registration{n.port, newKey})
	case newKey == 0:
		holder := p.holds(n.port)
		p.regs = slices.DeleteFunc(p.regs, func(r registration) bool { return r.port == n.port })
		if holder && (p.kind < writeExclusiveAllReg || len(p.regs) == 0) {
			u.release(n.port)
		}
	default:
		mine.key = newKey
	}
	p.generation++
	return result{}
}

// release ends the reservation; with the registrants-only and all-registrants
// kinds the others are told.
func (u *Unit) release(by Port) {
	p := &u.pr
	told := p.kind >= writeExclusiveRO
	p.kind, p.holder = 0, Port{}
	for _, r := range p.regs {
		if told && r.port != by {
			u.tell(r.port, reservationsReleased, nil)
		}
	}
}

// preempt is SPC-4 section 5.12.11.4.
func (u *Unit) preempt(n *Nexus, abort bool, kind byte, victim uint64) (result, []*Nexus) {
	p := &u.pr
	all := p.kind >= writeExclusiveAllReg
	takes := false // the reservation too
	switch {
	case p.kind == 0:
	case all && victim == 0:
		takes = true
	case !all:
		h := p.find(p.holder)
		takes = h != nil && h.key == victim
	}
	if victim == 0 && !takes {
		return badList(8), nil
	}
	goes := func(r registration) bool {
		return r.port != n.port && (r.key == victim || all && victim == 0)
	}
	if !takes && !slices.ContainsFunc(p.regs, func(r registration) bool { return r.key == victim }) {
		return result{status: ReservationConflict}, nil
	}
	var aborted []*Nexus
	for _, r := range p.regs {
		if !goes(r) {
			continue
		}
		u.tell(r.port, regsPreempted, n)
		for other := range u.nexuses {
			if abort && other.port == r.port {
				aborted = append(aborted, other)
			}
		}
	}
	changed := takes && p.kind != kind
	p.regs = slices.DeleteFunc(p.regs, goes)
	if takes {
		p.kind, p.holder = kind, n.port
	}
	if changed {
		for _, r := range p.regs {
			u.tell(r.port, reservationsReleased, n)
		}
	}
	p.generation++
	return result{}, aborted
}

// tell raises a unit attention for every nexus of a port but one.
func (u *Unit) tell(port Port, c Code, but *Nexus) {
	for n := range u.nexuses {
		if n.port == port && n != but {
			n.Attention(c)
		}
	}
}
