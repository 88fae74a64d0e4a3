package scsi

import (
	"bytes"
	"sync"
)

// READ, WRITE and their relatives: SBC-3 sections 5.8 to 5.51.

// parseRW6 reads READ(6) and WRITE(6): a length of 0 means 256 blocks.
func parseRW6(n *Nexus, c *Command) result {
	c.lba = uint64(c.CDB[1]&0x1f)<<16 | uint64(c.CDB[2])<<8 | uint64(c.CDB[3])
	if c.blocks = uint64(c.CDB[4]); c.blocks == 0 {
		c.blocks = 256
	}
	return n.transfer(c)
}

func parseRW10(n *Nexus, c *Command) result {
	c.lba, c.blocks = uint64(c.u32(2)), uint64(c.u16(7))
	return n.transferProtected(c)
}

func parseRW12(n *Nexus, c *Command) result {
	c.lba, c.blocks = uint64(c.u32(2)), uint64(c.u32(6))
	return n.transferProtected(c)
}

func parseRW16(n *Nexus, c *Command) result {
	c.lba, c.blocks = c.u64(2), uint64(c.u32(10))
	return n.transferProtected(c)
}

// transferProtected refuses RDPROTECT and WRPROTECT: the unit is formatted without
// protection information (SBC-3 section 5.10, table 44).
func (n *Nexus) transferProtected(c *Command) result {
	if c.CDB[1]&0xe0 != 0 {
		return badCDB(1)
	}
	return n.transfer(c)
}

// transfer checks the range and sets what the CDB asks for.
func (n *Nexus) transfer(c *Command) result {
	if r := n.inRange(c); !r.ok() {
		return r
	}
	if c.blocks > maxTransfer>>n.unit.shift {
		return badCDB(lengthField(c.CDB[0]))
	}
	c.Want = int64(c.blocks) << n.unit.shift
	if c.Want > 0 && c.Limit > 0 && c.op.out != c.Write {
		// The initiator announced the other direction. A write without its
		// data must not look done; a read whose data nobody takes is
		// all residual (RFC 7143 section 11.4.5.1).
		if c.op.out {
			return badCDB(0)
		}
		c.Limit = 0
	}
	return result{}
}

// lengthField is where the transfer length of a CDB stands.
func lengthField(code byte) uint16 {
	switch code >> 5 {
	case 0:
		return 4
	case 1, 2:
		return 7
	case 5:
		return 6
	}
	return 10
}

// inRange checks lba and blocks against the capacity.
func (n *Nexus) inRange(c *Command) result {
	capacity := n.unit.blocks.Load()
	if c.lba > capacity || c.blocks > capacity-c.lba || c.lba == capacity && c.blocks == 0 {
		r := check(lbaOutOfRange)
		r.info, r.hasInfo = c.lba, true
		return r
	}
	return result{}
}

// fua reports whether the data has to be on stable storage when the command ends.
func (c *Command) fua() bool { return c.CDB[0] > 0x1f && c.CDB[1]&0x08 != 0 }

func runNothing(*Nexus, *Command) result { return result{} }

// OnlyMoves reports whether c, after Begin, only moves data between the initiator
// and the device's cache, and at most so many bytes: a READ or WRITE that makes
// nothing stable.
func (n *Nexus) OnlyMoves(c *Command, most int64) bool {
	return c.op != nil && c.op.moves && c.Want <= most && !c.fua() && (!c.op.writes || n.unit.wce.Load())
}

func runRead(n *Nexus, c *Command) result {
	u := n.unit
	off, left := int64(c.lba)<<u.shift, c.data()
	if c.fua() && u.writable.Load() {
		// What is newer in the cache goes to the medium first.
		if err := u.dev.Sync(); err != nil {
			return deviceError(err, true)
		}
	}
	u.stats.reads.Add(1)
	for left > 0 {
		// The device is asked for whole blocks, though the initiator
		// may take less than one of the last.
		b, err := c.In.Get(int(min(left, Chunk)))
		if err != nil {
			return deviceError(err, false)
		}
		part := b
		if tail := int64(len(b)) & (u.blockSize() - 1); tail != 0 {
			part = make([]byte, int64(len(b))-tail+u.blockSize())
		}
		if _, err := u.dev.ReadAt(part, off); err != nil {
			_ = c.In.Put(b[:0])
			return u.mediumError(err, false, off)
		}
		if len(part) != len(b) {
			copy(b, part)
		}
		off, left = off+int64(len(b)), left-int64(len(b))
		u.stats.readBytes.Add(uint64(len(b)))
		if err := c.In.Put(b); err != nil {
			return deviceError(err, false)
		}
	}
	return result{}
}

// mediumError is deviceError with the block at which it happened.
func (u *Unit) mediumError(err error, write bool, off int64) result {
	r := deviceError(err, write)
	if r.code.key() == keyMedium {
		r.info, r.hasInfo = uint64(off)>>u.shift, true
	}
	return r
}

// whole cuts the data that was sent to whole blocks: what the initiator announced
// may be less than what the CDB asks for, and end within a block.
func (u *Unit) whole(p []byte) []byte { return p[:int64(len(p))&^(u.blockSize()-1)] }

func runWrite(n *Nexus, c *Command) result {
	u := n.unit
	p := u.whole(c.Out)
	u.exclusive.RLock()
	r := u.write(p, int64(c.lba)<<u.shift)
	u.exclusive.RUnlock()
	if !r.ok() {
		return r
	}
	return u.stable(c.fua())
}

func (u *Unit) write(p []byte, off int64) result {
	if len(p) == 0 {
		return result{}
	}
	u.stats.writes.Add(1)
	if _, err := u.dev.WriteAt(p, off); err != nil {
		return u.mediumError(err, true, off)
	}
	u.stats.writeBytes.Add(uint64(len(p)))
	return result{}
}

// stable syncs if it was asked for, or if the initiator has turned the write
// cache off.
func (u *Unit) stable(fua bool) result {
	if !fua && u.wce.Load() {
		return result{}
	}
	return deviceError(u.dev.Sync(), true)
}

// stableErr is stable for what is not told a sense code.
func (u *Unit) stableErr() error {
	if u.wce.Load() {
		return nil
	}
	return u.dev.Sync()
}

// runWriteVerify writes and reads back; with BYTCHK 01b it compares.
func runWriteVerify(n *Nexus, c *Command) result {
	u := n.unit
	if b := c.CDB[1] >> 1 & 3; b > 1 {
		return badCDB(1)
	}
	p, off := u.whole(c.Out), int64(c.lba)<<u.shift
	u.exclusive.RLock()
	r := u.write(p, off)
	u.exclusive.RUnlock()
	if !r.ok() {
		return r
	}
	if r := deviceError(u.dev.Sync(), true); !r.ok() {
		return r
	}
	return u.compare(p, off)
}

// parseVerify reads VERIFY(10), (12) and (16) (SBC-3 sections 5.31 to 5.33).
// BYTCHK says what the initiator sends: 00b nothing, 01b all blocks, 11b one
// block that all are compared with.
func parseVerify(n *Nexus, c *Command) result {
	switch c.CDB[0] {
	case 0x2f:
		c.lba, c.blocks = uint64(c.u32(2)), uint64(c.u16(7))
	case 0xaf:
		c.lba, c.blocks = uint64(c.u32(2)), uint64(c.u32(6))
	default:
		c.lba, c.blocks = c.u64(2), uint64(c.u32(10))
	}
	if c.CDB[1]&0xe0 != 0 {
		return badCDB(1)
	}
	if r := n.inRange(c); !r.ok() {
		return r
	}
	switch c.CDB[1] >> 1 & 3 {
	case 0:
		if c.blocks > maxVerify>>n.unit.shift {
			return badCDB(lengthField(c.CDB[0]))
		}
		return result{}
	case 1:
		return n.transfer(c)
	case 3:
		if c.blocks > maxVerify>>n.unit.shift {
			return badCDB(lengthField(c.CDB[0]))
		}
		if c.blocks > 0 {
			c.Want = n.unit.blockSize()
		}
		return result{}
	}
	return badCDB(1)
}

func runVerify(n *Nexus, c *Command) result {
	u := n.unit
	off, length := int64(c.lba)<<u.shift, int64(c.blocks)<<u.shift
	if int64(len(c.Out)) < c.Want {
		// What was not sent was not compared, and must not look so.
		return check(invalidFieldInCDB)
	}
	switch c.CDB[1] >> 1 & 3 {
	case 0:
		return u.scan(off, length, nil)
	case 1:
		return u.compare(u.whole(c.Out), off)
	}
	if p := u.whole(c.Out); len(p) > 0 {
		return u.scan(off, length, p)
	}
	return result{}
}

// scratch holds the buffers of comparisons and fills.
var scratch = sync.Pool{New: func() any { b := make([]byte, Chunk); return &b }}

// scan reads a range, and compares every block with pattern if there is one.
func (u *Unit) scan(off, length int64, pattern []byte) result {
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	for length > 0 {
		b := (*buf)[:min(length, Chunk)]
		if _, err := u.dev.ReadAt(b, off); err != nil {
			return u.mediumError(err, false, off)
		}
		for i := 0; pattern != nil && i < len(b); i += len(pattern) {
			if at := differs(b[i:i+len(pattern)], pattern); at >= 0 {
				return miscompareAt(int64(i + at))
			}
		}
		off, length = off+int64(len(b)), length-int64(len(b))
	}
	return result{}
}

// compare reads a range and compares it with p.
func (u *Unit) compare(p []byte, off int64) result {
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	for done := 0; done < len(p); {
		b := (*buf)[:min(len(p)-done, Chunk)]
		if _, err := u.dev.ReadAt(b, off+int64(done)); err != nil {
			return u.mediumError(err, false, off+int64(done))
		}
		if at := differs(b, p[done:]); at >= 0 {
			return miscompareAt(int64(done + at))
		}
		done += len(b)
	}
	return result{}
}

// differs finds the first byte of a that is not b's, -1 if none.
func differs(a, b []byte) int {
	if bytes.Equal(a, b[:len(a)]) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func miscompareAt(at int64) result {
	r := check(miscompare)
	r.info, r.hasInfo = uint64(at), true
	return r
}

// parseCompareAndWrite reads COMPARE AND WRITE (SBC-3 section 5.2): the initiator
// sends what it expects and what it wants, each as long as the range.
func parseCompareAndWrite(n *Nexus, c *Command) result {
	c.lba, c.blocks = c.u64(2), uint64(c.CDB[13])
	if c.CDB[1]&0xe0 != 0 {
		return badCDB(1)
	}
	if r := n.inRange(c); !r.ok() {
		return r
	}
	if c.blocks > min(maxCompare, uint64(maxTransfer/2)>>n.unit.shift) {
		return badCDB(13)
	}
	c.Want = 2 * int64(c.blocks) << n.unit.shift
	if c.Limit != c.Want {
		// Neither can half of it be compared, nor does anybody know what
		// the rest would be for.
		return badCDB(13)
	}
	return result{}
}

func runCompareAndWrite(n *Nexus, c *Command) result {
	u := n.unit
	half := int(c.Want / 2)
	off := int64(c.lba) << u.shift
	u.exclusive.Lock()
	r := u.compare(c.Out[:half], off)
	if r.ok() {
		r = u.write(c.Out[half:2*half], off)
	}
	u.exclusive.Unlock()
	if !r.ok() {
		return r
	}
	return u.stable(c.fua())
}

// runOrWrite is ORWRITE(16) (SBC-3 section 5.5).
func runOrWrite(n *Nexus, c *Command) result {
	u := n.unit
	u.exclusive.Lock()
	r := u.or(u.whole(c.Out), int64(c.lba)<<u.shift)
	u.exclusive.Unlock()
	if !r.ok() {
		return r
	}
	return u.stable(c.fua())
}

// or sets the bits of p in a range. u.exclusive is held.
func (u *Unit) or(p []byte, off int64) result {
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	for len(p) > 0 {
		b := (*buf)[:min(len(p), Chunk)]
		if _, err := u.dev.ReadAt(b, off); err != nil {
			return u.mediumError(err, false, off)
		}
		for i := range b {
			b[i] |= p[i]
		}
		if r := u.write(b, off); !r.ok() {
			return r
		}
		p, off = p[len(b):], off+int64(len(b))
	}
	return result{}
}

// parsePrefetch checks the range; there is no cache of ours to fill.
func parsePrefetch(n *Nexus, c *Command) result {
	if c.CDB[0] == 0x34 {
		c.lba, c.blocks = uint64(c.u32(2)), uint64(c.u16(7))
	} else {
		c.lba, c.blocks = c.u64(2), uint64(c.u32(10))
	}
	return n.inRange(c)
}

// parseSync reads SYNCHRONIZE CACHE(10) and (16); no blocks means to the end.
func parseSync(n *Nexus, c *Command) result {
	if c.CDB[0] == 0x35 {
		c.lba, c.blocks = uint64(c.u32(2)), uint64(c.u16(7))
	} else {
		c.lba, c.blocks = c.u64(2), uint64(c.u32(10))
	}
	return n.inRange(c)
}

// runSync makes everything stable, whatever range was named. IMMED is not
// honoured early: the answer after the sync is true, before it would not be.
func runSync(n *Nexus, c *Command) result {
	return deviceError(n.unit.dev.Sync(), true)
}

// parseStartStop refuses power conditions and loading of media.
func parseStartStop(n *Nexus, c *Command) result {
	if c.CDB[4]&0xf0 != 0 {
		return badCDB(4)
	}
	return result{}
}

// runStartStop stops nothing: a LUN is there for others too. A stop without
// NO_FLUSH makes the cache stable.
func runStartStop(n *Nexus, c *Command) result {
	if c.CDB[4]&0x05 == 0 && n.unit.writable.Load() {
		return deviceError(n.unit.dev.Sync(), true)
	}
	return result{}
}
