package scsi

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// WRITE SAME, UNMAP and GET LBA STATUS: SBC-3 sections 5.28, 5.42, 5.43, 5.6.

func parseWriteSame10(n *Nexus, c *Command) result {
	c.lba, c.blocks = uint64(c.u32(2)), uint64(c.u16(7))
	return n.parseWriteSame(c)
}

func parseWriteSame16(n *Nexus, c *Command) result {
	c.lba, c.blocks = c.u64(2), uint64(c.u32(10))
	return n.parseWriteSame(c)
}

func (n *Nexus) parseWriteSame(c *Command) result {
	u := n.unit
	unmap, anchor, ndob := c.CDB[1]&0x08 != 0, c.CDB[1]&0x10 != 0, c.CDB[0] == 0x93 && c.CDB[1]&0x01 != 0
	switch {
	case c.CDB[1]&0xe0 != 0, anchor, unmap && u.trim == nil:
		return badCDB(1)
	case c.CDB[0] == 0x41 && c.CDB[1]&0x07 != 0: // PBDATA and LBDATA are obsolete
		return badCDB(1)
	case c.blocks == 0 || c.blocks > maxWriteSame: // WSNZ=1, MAXIMUM WRITE SAME LENGTH
		return badCDB(lengthField(c.CDB[0]))
	}
	if r := n.inRange(c); !r.ok() {
		return r
	}
	if !ndob {
		c.Want = u.blockSize()
	}
	if c.Limit != c.Want {
		// One block, no more and no less, is what this command takes.
		return badCDB(lengthField(c.CDB[0]))
	}
	return result{}
}

func runWriteSame(n *Nexus, c *Command) result {
	u := n.unit
	off, length := int64(c.lba)<<u.shift, int64(c.blocks)<<u.shift
	u.exclusive.RLock()
	defer u.exclusive.RUnlock()
	u.stats.writes.Add(1)
	var err error
	switch {
	case !isZero(c.Out):
		err = u.fill(c.Out[:u.blockSize()], off, length)
	case c.CDB[1]&0x08 != 0:
		err = u.trim.Trim(off, length)
	case u.zero != nil:
		err = u.zero.WriteZeroes(off, length)
	default:
		err = u.fill(nil, off, length)
	}
	if err != nil {
		return deviceError(err, true)
	}
	return u.stable(false)
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// fill writes one block over a range, zeroes if there is none.
func (u *Unit) fill(block []byte, off, length int64) error {
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	b := (*buf)[:min(length, Chunk)]
	if block == nil {
		clear(b)
	} else {
		for n := copy(b, block); n < len(b); n *= 2 {
			copy(b[n:], b[:n])
		}
	}
	for length > 0 {
		b = b[:min(length, int64(len(b)))]
		if _, err := u.dev.WriteAt(b, off); err != nil {
			return err
		}
		off, length = off+int64(len(b)), length-int64(len(b))
		u.stats.writeBytes.Add(uint64(len(b)))
	}
	return nil
}

func parseUnmap(n *Nexus, c *Command) result {
	if c.CDB[1]&0x01 != 0 { // ANCHOR
		return badCDB(1)
	}
	c.Want = int64(c.u16(7))
	return result{}
}

// runUnmap reads the parameter list (SBC-3 section 5.28.2), checks every
// descriptor, and then trims: a list that is wrong anywhere changes nothing.
func runUnmap(n *Nexus, c *Command) result {
	u := n.unit
	p := c.Out
	if c.Want == 0 {
		return result{}
	}
	if len(p) < 8 {
		return check(listLengthError)
	}
	descs := int(binary.BigEndian.Uint16(p[2:])) / 16
	if len(p) < 8+16*descs {
		descs = (len(p) - 8) / 16
	}
	if descs > maxUnmapDescs {
		return badList(2)
	}
	capacity, total := u.blocks.Load(), uint64(0)
	for i := range descs {
		d := p[8+16*i:]
		lba, blocks := binary.BigEndian.Uint64(d), uint64(binary.BigEndian.Uint32(d[8:]))
		if lba > capacity || blocks > capacity-lba {
			return check(lbaOutOfRange)
		}
		if total += blocks; total > maxUnmap {
			return badList(uint16(8 + 16*i + 8))
		}
	}
	u.exclusive.RLock()
	defer u.exclusive.RUnlock()
	for i := range descs {
		d := p[8+16*i:]
		lba, blocks := binary.BigEndian.Uint64(d), uint64(binary.BigEndian.Uint32(d[8:]))
		if blocks == 0 {
			continue
		}
		if err := u.trim.Trim(int64(lba)<<u.shift, int64(blocks)<<u.shift); err != nil {
			return deviceError(err, true)
		}
	}
	return u.stable(false)
}

func parseLBAStatus(n *Nexus, c *Command) result {
	c.lba = c.u64(2)
	if c.lba >= n.unit.blocks.Load() {
		return check(lbaOutOfRange)
	}
	return result{}
}

// maxStatusDescs bounds the answer of GET LBA STATUS; an initiator asks again
// from where it ended.
const maxStatusDescs = 64

var (
	errEnough   = errors.New("enough extents")
	errNoExtent = errors.New("extents leave a gap or don't go on")
)

// runLBAStatus tells holes from data. Without a lun.Mapper everything is mapped.
func runLBAStatus(n *Nexus, c *Command) result {
	u := n.unit
	alloc := c.u32(10)
	room := min(maxStatusDescs, (int(min(alloc, 1<<20))-8)/16)
	off := int64(c.lba) << u.shift
	end := int64(u.blocks.Load()) << u.shift
	out := make([]byte, 8, 8+16*maxStatusDescs)
	add := func(from, to int64, hole bool) {
		var d [16]byte
		binary.BigEndian.PutUint64(d[:], uint64(from)>>u.shift)
		binary.BigEndian.PutUint32(d[8:], uint32(min((to-from)>>u.shift, 0xffffffff)))
		if hole {
			d[12] = 1 // deallocated
		}
		out = append(out, d[:]...)
	}
	if u.extents == nil {
		add(off, end, false)
	} else if err := u.status(off, end, max(room, 1), add); err != nil {
		return deviceError(err, false)
	}
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return c.reply(out, alloc)
}

// status walks the device's extents as whole blocks: a block is a hole if all of
// it is. Neighbours that are alike become one.
func (u *Unit) status(off, end int64, room int, add func(from, to int64, hole bool)) error {
	// Past this many extents the answer ends early, which it may.
	const most = 4096
	mask := u.blockSize() - 1
	from, hole, have, seen := off, false, false, 0
	at, next := off, off // where the answer stands; where the device does
	err := u.extents.Extents(off, end-off, func(e lun.Extent) error {
		to := min(e.Off+e.Len, end)
		if e.Off > next || e.Len <= 0 {
			return fmt.Errorf("extent [%d,+%d) after byte %d: %w", e.Off, e.Len, next, errNoExtent)
		}
		next = e.Off + e.Len
		if e.Hole {
			to &^= mask // a hole that ends within a block ends before it
		} else {
			to = min((to+mask)&^mask, end)
		}
		if to <= at {
			return nil
		}
		if have && e.Hole != hole {
			add(from, at, hole)
			if room--; room == 0 {
				have = false
				return errEnough
			}
			from = at
		}
		hole, have, at = e.Hole, true, to
		if seen++; seen >= most {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if have {
		add(from, at, hole)
	} else if from == at && room > 0 {
		add(off, end, false)
	}
	return nil
}
