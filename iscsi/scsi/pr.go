package scsi

import "slices"

// Persistent reservations: SPC-4 section 5.12.

// Types of persistent reservation (SPC-4, persistent reservation type codes).
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

// forRegistrants reports whether a type lets every registrant in.
func forRegistrants(k byte) bool { return k >= writeExclusiveRO }

// allRegistrants reports whether with a type every registrant is a holder.
func allRegistrants(k byte) bool { return k >= writeExclusiveAllReg }

// maxRegistrations bounds what initiators can make a unit remember.
const maxRegistrations = 256

// nexusID is an I_T nexus: which initiator port by which target port.
type nexusID struct {
	Port
	target uint16
}

type registration struct {
	nexusID
	key uint64
}

// reservations is the persistent reservation state of one Unit. It is never
// changed: a command that changes something puts another in its place, so that
// the commands that ask need no lock.
type reservations struct {
	generation uint32
	regs       []registration
	kind       byte    // 0: no reservation
	holder     nexusID // for the types that have one holder
	aptpl      bool    // survives a restart
}

// clone is a copy that may be changed.
func (p *reservations) clone() *reservations {
	c := *p
	c.regs = slices.Clone(p.regs)
	return &c
}

func (p *reservations) find(id nexusID) *registration {
	for i := range p.regs {
		if p.regs[i].nexusID == id {
			return &p.regs[i]
		}
	}
	return nil
}

// holds reports whether a nexus is a reservation holder.
func (p *reservations) holds(id nexusID) bool {
	switch {
	case p.kind == 0:
		return false
	case allRegistrants(p.kind):
		return p.find(id) != nil
	}
	return p.holder == id
}

// admits reports whether the reservation lets a nexus read or write.
func (p *reservations) admits(id nexusID, access byte) bool {
	switch p.kind {
	case writeExclusive, writeExclusiveRO, writeExclusiveAllReg:
		if access == isRead {
			return true
		}
	}
	return p.holds(id) || forRegistrants(p.kind) && p.find(id) != nil
}

// drop takes out the registrations that match and reports how many there were.
func (p *reservations) drop(match func(registration) bool) int {
	n := len(p.regs)
	p.regs = slices.DeleteFunc(p.regs, match)
	return n - len(p.regs)
}
