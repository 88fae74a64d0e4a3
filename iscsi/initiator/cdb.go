package initiator

import (
	"encoding/binary"
	"math"
)

// Operation codes (SPC-4 annex D, SBC-3 annex A).
const (
	opTestUnitReady  = 0x00
	opInquiry        = 0x12
	opModeSense6     = 0x1a
	opReadCapacity10 = 0x25
	opRead10         = 0x28
	opWrite10        = 0x2a
	opSyncCache10    = 0x35
	opUnmap          = 0x42
	opRead16         = 0x88
	opWrite16        = 0x8a
	opWriteSame16    = 0x93
	opServiceIn16    = 0x9e
	opReportLUNs     = 0xa0

	serviceReadCapacity = 0x10
	serviceLBAStatus    = 0x12
)

// transferCDB is READ or WRITE, of 10 bytes where that is enough: not every
// target knows the longer ones.
func transferCDB(write bool, block uint64, n uint32) (c [16]byte) {
	if block+uint64(n) <= math.MaxUint32 && n <= math.MaxUint16 {
		c[0] = opRead10
		if write {
			c[0] = opWrite10
		}
		binary.BigEndian.PutUint32(c[2:], uint32(block))
		binary.BigEndian.PutUint16(c[7:], uint16(n))
		return c
	}
	c[0] = opRead16
	if write {
		c[0] = opWrite16
	}
	return long(c, block, n)
}

// long fills in the block and the count of a CDB of 16 bytes.
func long(c [16]byte, block uint64, n uint32) [16]byte {
	binary.BigEndian.PutUint64(c[2:], block)
	binary.BigEndian.PutUint32(c[10:], n)
	return c
}

func inquiryCDB(vpd bool, page byte, n int) (c [16]byte) {
	c[0], c[2] = opInquiry, page
	if vpd {
		c[1] = 0x01 // EVPD
	}
	binary.BigEndian.PutUint16(c[3:], uint16(n))
	return c
}

// serviceCDB is a service action of SERVICE ACTION IN(16).
func serviceCDB(action byte, block uint64, n int) [16]byte {
	return long([16]byte{opServiceIn16, action}, block, uint32(n))
}

// writeSameCDB writes one block all over, which releases the space if unmap
// and reads as that block all the same.
func writeSameCDB(unmap bool, block uint64, n uint32) [16]byte {
	c := [16]byte{opWriteSame16}
	if unmap {
		c[1] = 0x08
	}
	return long(c, block, n)
}

// unmapCommand is UNMAP with one descriptor (SBC-3 section 5.28).
func unmapCommand(block uint64, n uint32) *command {
	list := make([]byte, 24)
	binary.BigEndian.PutUint16(list[0:], 22)
	binary.BigEndian.PutUint16(list[2:], 16)
	binary.BigEndian.PutUint64(list[8:], block)
	binary.BigEndian.PutUint32(list[16:], n)
	return &command{cdb: [16]byte{opUnmap, 8: byte(len(list))}, out: list}
}
