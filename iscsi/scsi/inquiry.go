package scsi

import (
	"encoding/binary"
	"fmt"
)

// INQUIRY: SPC-4 section 6.6, vital product data: section 7.8 and SBC-3 section 6.6.

func parseInquiry(_ *Nexus, c *Command) result {
	if c.CDB[1]&0x02 != 0 { // CMDDT is obsolete
		return badCDB(1)
	}
	if c.CDB[1]&0x01 == 0 && c.CDB[2] != 0 {
		return badCDB(2)
	}
	return result{}
}

func runInquiry(n *Nexus, c *Command) result {
	u := n.unit
	if c.CDB[1]&0x01 == 0 {
		return c.reply(u.standardInquiry(), uint32(c.u16(3)))
	}
	page := u.vpd(c.CDB[2], n.path.TargetPort)
	if page == nil {
		return badCDB(2)
	}
	return c.reply(page, uint32(c.u16(3)))
}

// versionDescriptors are the standards that the unit follows (SPC-4 table 143):
// SAM-5, iSCSI, SPC-4, SBC-3.
var versionDescriptors = [...]uint16{0x00a0, 0x0960, 0x0460, 0x04c0}

const revision = "1.0 "

func (u *Unit) standardInquiry() []byte {
	b := make([]byte, 96)
	b[2] = 0x06 // SPC-4
	b[3] = 0x12 // HISUP, response data format 2
	b[4] = byte(len(b) - 5)
	b[5] = 0x30 | 0x08 // TPGS: implicit and explicit; 3PC
	b[7] = 0x02        // CMDQUE
	padded(b[8:16], u.opt.Vendor)
	padded(b[16:32], u.opt.Product)
	padded(b[32:36], revision)
	for i, v := range versionDescriptors {
		binary.BigEndian.PutUint16(b[58+2*i:], v)
	}
	return b
}

// NoUnitInquiry is standard INQUIRY data for a LUN that is not there: peripheral
// qualifier 011b, type 1Fh (SPC-4 section 6.6.2).
func NoUnitInquiry() []byte {
	b := make([]byte, 36)
	b[0], b[2], b[3], b[4], b[7] = 0x7f, 0x06, 0x12, byte(len(b)-5), 0x02
	padded(b[8:16], "CLEAVE")
	padded(b[16:32], "NO-UNIT")
	padded(b[32:36], revision)
	return b
}

// padded fills b with ASCII, left aligned, spaces after.
func padded(b []byte, s string) {
	n := copy(b, s)
	for i := range b {
		if i >= n || b[i] < 0x20 || b[i] > 0x7e {
			b[i] = ' '
		}
	}
}

// vpd makes a vital product data page as it is seen by a target port, nil if there
// is none of that code.
func (u *Unit) vpd(code byte, port uint16) []byte {
	var body []byte
	switch code {
	case 0x00:
		body = []byte{0x00, 0x80, 0x83, 0x86, 0x8f, 0xb0, 0xb1, 0xb2}
	case 0x80:
		body = []byte(u.opt.Identity.Serial())
	case 0x83:
		body = u.designators(port)
	case 0x86:
		body = make([]byte, 60)
		body[1] = 0x07 // HEADSUP, ORDSUP, SIMPSUP
		body[2] = 0x01 // V_SUP: the cache is volatile
		body[3] = 0x01 // LUICLR
	case 0x8f:
		body = thirdPartyCopy()
	case 0xb0:
		body = u.blockLimits()
	case 0xb1:
		body = make([]byte, 60)
		binary.BigEndian.PutUint16(body, 1) // medium rotation rate: not rotating
	case 0xb2:
		body = make([]byte, 4)
		if u.trim != nil {
			body[1] = 0x80 | 0x40 | 0x20 | 0x04 // LBPU, LBPWS, LBPWS10, LBPRZ
			body[2] = 0x02                      // thin provisioned
		}
	default:
		return nil
	}
	page := make([]byte, 4, 4+len(body))
	page[1] = code
	binary.BigEndian.PutUint16(page[2:], uint16(len(body)))
	return append(page, body...)
}

// Association and type of designators (SPC-4 section 7.8.6).
const (
	ofUnit, ofPort, ofTarget = 0x00, 0x10, 0x20

	typeT10, typeNAA, typeRelPort, typePortGroup, typeName = 1, 3, 4, 5, 8

	binaryCode, asciiCode, utf8Code = 1, 2, 3
	isISCSI                         = 0x80 // PIV, with protocol identifier 5
)

// designators is page 0x83: NAA type 3 of the unit, its T10 vendor text with the
// UUID, and by which port of which target it is reached.
func (u *Unit) designators(port uint16) []byte {
	var b []byte
	add := func(code, kind byte, d []byte) {
		h := []byte{code, kind, 0, byte(len(d))}
		if kind&0x30 != ofUnit {
			h[0] |= 0x50 // PROTOCOL IDENTIFIER: iSCSI
			h[1] |= isISCSI
		}
		b = append(append(b, h...), d...)
	}
	naa := u.opt.Identity.NAA()
	add(binaryCode, ofUnit|typeNAA, naa[:])
	t10 := make([]byte, 8)
	padded(t10, u.opt.Vendor)
	add(asciiCode, ofUnit|typeT10, append(t10, u.opt.Identity.String()...))
	add(binaryCode, ofPort|typeRelPort, []byte{0, 0, byte(port >> 8), byte(port)})
	u.mu.Lock()
	if g := u.groupOf(port); g != nil {
		add(binaryCode, ofPort|typePortGroup, []byte{0, 0, byte(g.ID >> 8), byte(g.ID)})
	}
	u.mu.Unlock()
	if u.opt.Target != "" {
		// The portal group tag is the relative target port identifier.
		add(utf8Code, ofPort|typeName, nameString(fmt.Sprintf("%s,t,0x%04x", u.opt.Target, port)))
		add(utf8Code, ofTarget|typeName, nameString(u.opt.Target))
	}
	return b
}

// nameString ends a SCSI name string with one to four zero bytes (SPC-4 section
// 7.8.6.11).
func nameString(s string) []byte {
	return append([]byte(s), make([]byte, 4-len(s)%4)...)
}

// blockLimits is page 0xB0 (SBC-3 section 6.6.3).
func (u *Unit) blockLimits() []byte {
	b := make([]byte, 60) // from byte 4 of the page on
	p := func(at int, v int64) { binary.BigEndian.PutUint32(b[at-4:], uint32(v>>u.shift)) }
	b[0] = 0x01 // WSNZ
	b[5-4] = byte(min(maxCompare, maxTransfer/2>>u.shift))
	binary.BigEndian.PutUint16(b[6-4:], uint16(1<<u.phys))
	p(8, maxTransfer)
	p(12, max(1<<20, u.blockSize()))
	if u.trim != nil {
		binary.BigEndian.PutUint32(b[20-4:], maxUnmap)
		binary.BigEndian.PutUint32(b[24-4:], maxUnmapDescs)
		binary.BigEndian.PutUint32(b[28-4:], uint32(max(4096>>u.shift, 1)))
		b[32-4] = 0x80 // UGAVALID, alignment 0
	}
	binary.BigEndian.PutUint64(b[36-4:], maxWriteSame)
	return b
}
