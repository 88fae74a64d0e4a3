package scsi

import (
	"encoding/binary"
)

// Service actions of PERSISTENT RESERVE IN (SPC-4 section 6.15).
const (
	prReadKeys         = 0x00
	prReadReservation  = 0x01
	prReportCapability = 0x02
	prReadFullStatus   = 0x03
)

// runPRIn is PERSISTENT RESERVE IN.
func runPRIn(n *Nexus, c *Command) result {
	u := n.unit
	if u.reserved.Load() != nil {
		return reservationConflict // RESERVE(6): SPC-2 section 5.5.1
	}
	p := u.pr.Load()
	if c.op.service == prReportCapability {
		return c.reply(u.prCapabilities(p), uint32(c.u16(7)))
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 64), p.generation)
	b = append(b, 0, 0, 0, 0)
	switch c.op.service {
	case prReadKeys:
		for _, r := range p.regs {
			b = binary.BigEndian.AppendUint64(b, r.key)
		}
	case prReadReservation:
		if p.kind != 0 {
			var key uint64
			if r := p.find(p.holder); r != nil && !allRegistrants(p.kind) {
				key = r.key
			}
			b = binary.BigEndian.AppendUint64(b, key)
			b = append(b, 0, 0, 0, 0, 0, p.kind, 0, 0)
		}
	case prReadFullStatus:
		for _, r := range p.regs {
			b = p.appendStatus(b, r)
		}
	}
	binary.BigEndian.PutUint32(b[4:], uint32(len(b)-8))
	return c.reply(b, uint32(c.u16(7)))
}

// appendStatus is one full status descriptor (SPC-4 section 6.15.5).
func (p *reservations) appendStatus(b []byte, r registration) []byte {
	d := binary.BigEndian.AppendUint64(make([]byte, 0, 24), r.key)
	d = append(d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(r.target>>8), byte(r.target))
	if p.holds(r.nexusID) {
		d[12], d[13] = 0x01, p.kind // R_HOLDER
	}
	id := r.transportID()
	d = binary.BigEndian.AppendUint32(d, uint32(len(id)))
	return append(append(b, d...), id...)
}

// prCapabilities is REPORT CAPABILITIES (SPC-4 section 6.15.4): all types, SPEC_I_PT,
// ALL_TG_PT, and APTPL where there is a store.
func (u *Unit) prCapabilities(p *reservations) []byte {
	b := []byte{0, 8,
		0x10 | 0x08 | 0x04, // CRH, SIP_C, ATP_C
		0x80,               // TMV
		0x80 | 0x40 | 0x20 | 0x08 | 0x02, 0x01, 0, 0}
	if u.opt.Store != nil {
		b[2] |= 0x01 // PTPL_C
	}
	if p.aptpl {
		b[3] |= 0x01 // PTPL_A
	}
	return b
}
