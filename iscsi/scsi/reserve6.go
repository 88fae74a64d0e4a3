package scsi

// RESERVE(6) and RELEASE(6) of SPC-2, beside persistent
// reservations: with CRH=1 (SPC-4 section 5.12.3) both are no-ops for an
// initiator that a persistent reservation lets in, and conflict for others.

var reservationConflict = result{status: ReservationConflict}

// conflict is asked for every command that is not performed in spite of any
// reservation (SPC-4 section 5.12.1).
func (u *Unit) conflict(n *Nexus, o *op, cdb *[16]byte) result {
	if r := u.reserved.Load(); r != nil && r != n && !o.despiteReserve() {
		return reservationConflict
	}
	p := u.pr.Load()
	if p.kind == 0 || o.access == isAllowed || o.access == isPROut || p.admits(n.id(), o.access) {
		return result{}
	}
	switch o.code {
	case 0x00: // TEST UNIT READY
		return result{}
	case 0x1b: // START STOP UNIT that starts
		if cdb[4]&0xf1 == 0x01 {
			return result{}
		}
	case 0x1e: // PREVENT ALLOW MEDIUM REMOVAL that allows
		if cdb[4]&0x03 == 0 {
			return result{}
		}
	}
	return reservationConflict
}

// despiteReserve reports whether a command is performed though another initiator
// holds RESERVE(6).
func (o *op) despiteReserve() bool {
	switch o.code {
	case 0x17, // RELEASE(6) of another changes nothing
		0x25, 0xa3:
		return true
	case 0x9e:
		return o.service == 0x10
	}
	return o.always
}

func parseReserve6(_ *Nexus, c *Command) result {
	if c.CDB[1]&0x1f != 0 { // third party and extents are obsolete
		return badCDB(1)
	}
	return result{}
}

// compatible is the answer to RESERVE(6) and RELEASE(6) where persistent
// reservations are in use; done is false where they are not.
func (u *Unit) compatible(n *Nexus) (r result, done bool) {
	p := u.pr.Load()
	switch {
	case len(p.regs) == 0:
		return result{}, false
	case p.kind != 0 && p.admits(n.id(), isWrite):
		return result{}, true
	}
	return reservationConflict, true
}

func runReserve6(n *Nexus, _ *Command) result {
	u := n.unit
	u.prMu.Lock() // no registration appears meanwhile
	defer u.prMu.Unlock()
	if r, done := u.compatible(n); done {
		return r
	}
	if !u.reserved.CompareAndSwap(nil, n) && u.reserved.Load() != n {
		return reservationConflict
	}
	return result{}
}

func runRelease6(n *Nexus, _ *Command) result {
	u := n.unit
	if r, done := u.compatible(n); done {
		return r
	}
	u.reserved.CompareAndSwap(n, nil)
	return result{}
}
