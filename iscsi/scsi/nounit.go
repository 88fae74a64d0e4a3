package scsi

// NoUnit answers a command to a LUN that the initiator does not see (SPC-4
// section 4.3.3.4, SAM-5 section 4.7.4): INQUIRY and REPORT LUNS work, so
// that hosts can scan; REQUEST SENSE reports the condition as data; all else is
// LOGICAL UNIT NOT SUPPORTED. It does not wait for any device, but may for the
// Sink.
func NoUnit(c *Command, luns []uint16) {
	r := check(unitNotSupported)
	switch c.CDB[0] {
	case 0x12:
		switch r = parseInquiry(nil, c); {
		case c.CDB[1]&1 != 0: // no vital product data of what isn't there
			r = badCDB(1)
		case r.ok():
			r = c.reply(NoUnitInquiry(), uint32(c.u16(3)))
		}
	case 0xa0:
		if r = parseReportLUNs(nil, c); r.ok() {
			r = c.reply(LUNList(luns), c.u32(6))
		}
	case 0x03:
		var sense [SenseLen]byte
		n := r.put(&sense, c.CDB[1]&1 != 0)
		r = c.reply(sense[:n], uint32(c.CDB[4]))
	}
	c.Status, c.SenseLen = r.status, 0
	if r.status == CheckCondition {
		c.SenseLen = r.put(&c.Sense, false)
	}
}
