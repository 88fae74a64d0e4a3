package scsi

import (
	"encoding/binary"
)

// Commands that report on the unit and its target.

// runRequestSense reports a pending unit attention as parameter data (SPC-4
// section 6.39).
func runRequestSense(n *Nexus, c *Command) result {
	code, _ := n.takeAttention()
	var sense [SenseLen]byte
	length := check(code).put(&sense, c.CDB[1]&1 != 0)
	return c.reply(sense[:length], uint32(c.CDB[4]))
}

func parseCapacity10(_ *Nexus, c *Command) result {
	if c.CDB[8]&1 == 0 && c.u32(2) != 0 {
		return badCDB(2)
	}
	return result{}
}

func runCapacity10(n *Nexus, c *Command) result {
	u := n.unit
	var b [8]byte
	binary.BigEndian.PutUint32(b[:], uint32(min(u.blocks.Load()-1, 0xffffffff)))
	binary.BigEndian.PutUint32(b[4:], uint32(u.blockSize()))
	return c.reply(b[:], uint32(len(b)))
}

// runCapacity16 is READ CAPACITY(16) (SBC-3 section 5.16).
func runCapacity16(n *Nexus, c *Command) result {
	u := n.unit
	var b [32]byte
	binary.BigEndian.PutUint64(b[:], u.blocks.Load()-1)
	binary.BigEndian.PutUint32(b[8:], uint32(u.blockSize()))
	b[13] = u.phys
	if u.trim != nil {
		b[14] = 0x80 | 0x40 // LBPME, LBPRZ
	}
	return c.reply(b[:], c.u32(10))
}

func parseReportLUNs(_ *Nexus, c *Command) result {
	if c.CDB[2] > 2 {
		return badCDB(2)
	}
	if c.u32(6) < 16 {
		return badCDB(6) // SPC-4 section 6.33
	}
	return result{}
}

func runReportLUNs(n *Nexus, c *Command) result {
	n.dropAttention(lunsChanged)
	var luns []uint16
	if n.path.LUNs != nil && c.CDB[2] != 1 {
		luns = n.path.LUNs()
	}
	return c.reply(LUNList(luns), c.u32(6))
}

// LUNList is the parameter data of REPORT LUNS.
func LUNList(luns []uint16) []byte {
	b := make([]byte, 8+8*len(luns))
	binary.BigEndian.PutUint32(b, uint32(8*len(luns)))
	for i, l := range luns {
		binary.BigEndian.PutUint64(b[8+8*i:], EncodeLUN(l))
	}
	return b
}

// EncodeLUN writes a LUN number in the peripheral addressing method up to 255, in
// the flat space method above (SAM-5 section 4.7.7).
func EncodeLUN(n uint16) uint64 {
	if n < 256 {
		return uint64(n) << 48
	}
	return uint64(0x4000|n) << 48
}

// DecodeLUN reads both; ok is false for any other eight bytes.
func DecodeLUN(v uint64) (n uint16, ok bool) {
	if v<<16 != 0 {
		return 0, false
	}
	top := uint16(v >> 48)
	switch top >> 14 {
	case 0:
		return top, top < 256 // bus 0 only
	case 1:
		return top & 0x3fff, true
	}
	return 0, false
}

// runReportTMF is REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 section 6.36).
func runReportTMF(_ *Nexus, c *Command) result {
	if c.u32(6) < 4 {
		return badCDB(6)
	}
	b := []byte{0x80 | 0x40 | 0x10 | 0x08 | 0x02, 0, 0, 0} // ATS, ATSS, CTSS, LURS, TRS
	if c.CDB[2]&0x80 != 0 {                                // REPD: extended
		b = append(b, make([]byte, 12)...)
		b[3] = 12
	}
	return c.reply(b, c.u32(6))
}

// runReportOpcodes is REPORT SUPPORTED OPERATION CODES (SPC-4 section 6.35).
func runReportOpcodes(n *Nexus, c *Command) result {
	rctd, option := c.CDB[2]&0x80 != 0, c.CDB[2]&0x07
	code, service, alloc := c.CDB[3], c.u16(4), c.u32(6)
	if option == 0 {
		b := make([]byte, 4)
		for i := range n.unit.table {
			o := &n.unit.table[i]
			if o.needs != nil && !o.needs(n.unit) {
				continue
			}
			d := []byte{o.code, 0, 0, o.service, 0, 0, 0, byte(len(o.usage))}
			if o.hasSA {
				d[5] |= 0x01 // SERVACTV
			}
			if rctd {
				d[5] |= 0x02 // CTDP
				d = append(d, noTimeouts()...)
			}
			b = append(b, d...)
		}
		binary.BigEndian.PutUint32(b, uint32(len(b)-4))
		return c.reply(b, alloc)
	}

	var found *op
	exists, needsSA := false, false
	for i := range n.unit.table {
		o := &n.unit.table[i]
		if o.code != code || o.needs != nil && !o.needs(n.unit) {
			continue
		}
		exists, needsSA = true, o.hasSA
		if !o.hasSA && (service == 0 || option == 1) || o.hasSA && uint16(o.service) == service {
			found = o
			break
		}
	}
	switch option {
	case 1: // the code alone: not for one that has service actions
		if exists && needsSA {
			return badCDB(2)
		}
	case 2: // with a service action: only for one that has
		if exists && !needsSA {
			return badCDB(2)
		}
	case 3: // either
	default:
		return badCDB(2)
	}
	b := make([]byte, 4)
	b[1] = 0x01 // not supported
	if found != nil {
		b[1] = 0x03 // supported as the standard says
		binary.BigEndian.PutUint16(b[2:], uint16(len(found.usage)))
		b = append(b, found.usage...)
		if rctd {
			b[1] |= 0x80
			b = append(b, noTimeouts()...)
		}
	}
	return c.reply(b, alloc)
}

// noTimeouts is a command timeouts descriptor that promises nothing.
func noTimeouts() []byte { return []byte{0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} }

// runDefects10 and runDefects12 report that there are no defects (SBC-3 sections
// 5.17 and 5.18): the lists are empty in whatever format was asked for.
func runDefects10(_ *Nexus, c *Command) result {
	return c.reply([]byte{0, c.CDB[2] & 0x1f, 0, 0}, uint32(c.u16(7)))
}

func runDefects12(_ *Nexus, c *Command) result {
	return c.reply([]byte{0, c.CDB[1] & 0x1f, 0, 0, 0, 0, 0, 0}, c.u32(6))
}
