package scsi

import "encoding/binary"

// Mode pages: SPC-4 section 7.5, SBC-3 section 6.5.

// modePage makes the current, or the changeable (PC=01b), or the default
// (PC=10b) values of one page.
func (u *Unit) modePage(code, pc byte) []byte {
	bit := func(on bool, mask byte) byte {
		if on {
			return mask
		}
		return 0
	}
	switch code {
	case 0x01: // read-write error recovery: AWRE and ARRE do not apply
		b := make([]byte, 12)
		b[0], b[1] = 0x01, 10
		return b
	case 0x08: // caching
		b := make([]byte, 20)
		b[0], b[1] = 0x08, 18
		switch pc {
		case 0:
			b[2] = bit(u.wce.Load(), 0x04)
		default: // both changeable and on by default
			b[2] = 0x04
		}
		return b
	case 0x0a: // control
		b := make([]byte, 12)
		b[0], b[1] = 0x0a, 10
		switch pc {
		case 1:
			b[2], b[4] = 0x04, 0x08 // D_SENSE, SWP
			return b
		case 0:
			b[2], b[4] = bit(u.dsense.Load(), 0x04), bit(u.swp.Load(), 0x08)
		}
		b[3] = 0x10                               // unrestricted reordering
		binary.BigEndian.PutUint16(b[8:], 0xffff) // busy timeout: none
		return b
	case 0x1c: // informational exceptions: none
		b := make([]byte, 12)
		b[0], b[1] = 0x1c, 10
		return b
	}
	return nil
}

var modePages = [...]byte{0x01, 0x08, 0x0a, 0x1c}

// modeData makes the pages that a CDB asks for.
func (u *Unit) modeData(c *Command) ([]byte, result) {
	pc, code, sub := c.CDB[2]>>6, c.CDB[2]&0x3f, c.CDB[3]
	if pc == 3 {
		return nil, check(savingNotSupported)
	}
	if sub != 0 && sub != 0xff {
		return nil, badCDB(3)
	}
	if code == 0x3f {
		var all []byte
		for _, p := range modePages {
			all = append(all, u.modePage(p, pc)...)
		}
		return all, result{}
	}
	p := u.modePage(code, pc)
	if p == nil {
		return nil, badCDB(2)
	}
	return p, result{}
}

// deviceSpecific is WP and DPOFUA in the mode parameter header (SBC-3 table 152).
func (n *Nexus) deviceSpecific() byte {
	b := byte(0x10)
	if !n.unit.writable.Load() || n.readOnly.Load() || n.unit.swp.Load() {
		b |= 0x80
	}
	return b
}

func (u *Unit) shortDescriptor() []byte {
	d := make([]byte, 8)
	binary.BigEndian.PutUint32(d, uint32(min(u.blocks.Load(), 0xffffffff)))
	d[5], d[6], d[7] = byte(u.blockSize()>>16), byte(u.blockSize()>>8), byte(u.blockSize())
	return d
}

func runModeSense6(n *Nexus, c *Command) result {
	pages, r := n.unit.modeData(c)
	if !r.ok() {
		return r
	}
	b := make([]byte, 4, 64)
	b[2] = n.deviceSpecific()
	if c.CDB[1]&0x08 == 0 {
		b[3] = 8
		b = append(b, n.unit.shortDescriptor()...)
	}
	b = append(b, pages...)
	b[0] = byte(len(b) - 1)
	return c.reply(b, uint32(c.CDB[4]))
}

func runModeSense10(n *Nexus, c *Command) result {
	u := n.unit
	pages, r := u.modeData(c)
	if !r.ok() {
		return r
	}
	b := make([]byte, 8, 96)
	b[3] = n.deviceSpecific()
	switch {
	case c.CDB[1]&0x08 != 0:
	case c.CDB[1]&0x10 != 0: // LLBAA: long block descriptor
		b[4], b[7] = 0x01, 16
		d := make([]byte, 16)
		binary.BigEndian.PutUint64(d, u.blocks.Load())
		binary.BigEndian.PutUint32(d[12:], uint32(u.blockSize()))
		b = append(b, d...)
	default:
		b[7] = 8
		b = append(b, u.shortDescriptor()...)
	}
	b = append(b, pages...)
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	return c.reply(b, uint32(c.u16(7)))
}

func parseModeSelect6(_ *Nexus, c *Command) result {
	c.Want = int64(c.CDB[4])
	return parseModeSelect(c)
}

func parseModeSelect10(_ *Nexus, c *Command) result {
	c.Want = int64(c.u16(7))
	return parseModeSelect(c)
}

func parseModeSelect(c *Command) result {
	if c.CDB[1]&0x01 != 0 { // SP: nothing can be saved
		return badCDB(1)
	}
	return result{}
}

// runModeSelect takes WCE, D_SENSE and SWP; any other field that differs from
// what MODE SENSE shows is refused, and nothing is changed.
func runModeSelect(n *Nexus, c *Command) result {
	u, p := n.unit, c.Out
	if c.Want == 0 {
		return result{}
	}
	if int64(len(p)) < c.Want {
		return check(listLengthError)
	}
	at, r := u.modeHeader(p, c.CDB[0] == 0x55)
	if !r.ok() {
		return r
	}
	wce, dsense, swp := u.wce.Load(), u.dsense.Load(), u.swp.Load()
	for at < len(p) {
		page := p[at:]
		if len(page) < 2 || len(page) < 2+int(page[1]) {
			return check(listLengthError)
		}
		page = page[:2+int(page[1])]
		code := page[0] & 0x3f
		now, may := u.modePage(code, 0), u.modePage(code, 1)
		switch {
		case now == nil || page[0]&0x40 != 0:
			return badList(uint16(at))
		case len(page) != len(now):
			return badList(uint16(at + 1))
		}
		for i := 2; i < len(page); i++ {
			if (page[i]^now[i])&^may[i] != 0 {
				return badList(uint16(at + i))
			}
		}
		switch code {
		case 0x08:
			wce = page[2]&0x04 != 0
		case 0x0a:
			dsense, swp = page[2]&0x04 != 0, page[4]&0x08 != 0
		}
		at += len(page)
	}
	if wce == u.wce.Load() && dsense == u.dsense.Load() && swp == u.swp.Load() {
		return result{}
	}
	if u.wce.Swap(wce) && !wce {
		if err := u.dev.Sync(); err != nil {
			u.wce.Store(true)
			return deviceError(err, true)
		}
	}
	u.dsense.Store(dsense)
	u.swp.Store(swp)
	u.attentionAll(modeChanged, n)
	return result{}
}

// modeHeader checks the header and the block descriptor of a mode parameter list
// (SPC-4 section 7.5.5, SBC-3 section 6.5.2) and returns where the pages begin. The
// descriptor must not ask for another block length or capacity.
func (u *Unit) modeHeader(p []byte, ten bool) (pages int, r result) {
	var desc int
	head, long := 4, false
	if ten {
		head = 8
	}
	if len(p) < head {
		return 0, check(listLengthError)
	}
	if ten {
		desc, long = int(binary.BigEndian.Uint16(p[6:])), p[4]&0x01 != 0 // LONGLBA
	} else {
		desc = int(p[3])
	}
	want := 8
	if long {
		want = 16
	}
	switch {
	case desc == 0:
		return head, result{}
	case desc != want:
		return 0, badList(uint16(head - 1))
	case len(p) < head+desc:
		return 0, check(listLengthError)
	}
	d := p[head : head+desc]
	blocks, all := uint64(binary.BigEndian.Uint32(d)), uint64(0xffffffff)
	size, sizeAt := int64(d[5])<<16|int64(d[6])<<8|int64(d[7]), head+5
	if long {
		blocks, all = binary.BigEndian.Uint64(d), ^uint64(0)
		size, sizeAt = int64(binary.BigEndian.Uint32(d[12:])), head+12
	}
	switch {
	case size != u.blockSize() && size != 0:
		return 0, badList(uint16(sizeAt))
	case blocks != 0 && blocks != all && blocks != u.blocks.Load():
		return 0, badList(uint16(head))
	}
	return head + desc, result{}
}
