package scsi

import (
	"encoding/binary"
)

// EXTENDED COPY(LID1) of SPC-4. Blocks are copied between
// units that the same initiator sees on the same target, named by their NAA
// designators. The copy is over when the command is answered.

// Limits of one EXTENDED COPY, as RECEIVE COPY RESULTS and VPD page 0x8F report
// them.
const (
	copyHead        = 16 // bytes of the parameter list header
	cscdLen         = 32
	blockSegmentLen = 28

	maxCSCDs       = 32
	maxSegments    = 32
	maxDescriptors = maxCSCDs*cscdLen + maxSegments*blockSegmentLen
	maxSegment     = 64 << 20 // bytes
	maxCopies      = 16       // of one initiator on one unit, under way or remembered
	copyGranule    = 9        // log2 of bytes
)

// Descriptor type codes (SPC-4, EXTENDED COPY descriptor type codes).
const (
	blockToBlock       = 0x02
	identificationCSCD = 0xe4
)

// cscd is a copy source and copy destination.
type cscd struct {
	naa     [8]byte
	usable  bool // designated by an NAA
	block   int64
	nexus   *Nexus
	release func()
}

// segment is what one segment descriptor asks for.
type segment struct {
	from, to       uint16 // index of the cscd
	destination    bool   // DC: blocks counts those of the destination
	blocks         uint16
	fromLBA, toLBA uint64
}

// copyList is a parameter list that was read.
type copyList struct {
	id, usage byte
	cscds     []cscd
	segments  []segment
}

// LIST ID USAGE (SPC-4, EXTENDED COPY parameter list).
const (
	usageHold    = 0
	usageDiscard = 2
	usageNone    = 3
)

func parseCopy(_ *Nexus, c *Command) result {
	c.Want = int64(c.u32(10))
	if c.Want > 0 && c.Want < copyHead || c.Want > copyHead+maxDescriptors {
		return check(listLengthError)
	}
	return result{}
}

// readCopyList checks everything that can be wrong without looking at a device, so
// that a list that is wrong anywhere copies nothing.
func readCopyList(p []byte) (l copyList, r result) {
	l.id, l.usage = p[0], p[1]>>3&3
	cscds, segments := int(binary.BigEndian.Uint16(p[2:])), int64(binary.BigEndian.Uint32(p[8:]))
	switch {
	case l.usage == 1, l.usage == usageNone && l.id != 0:
		return l, badList(1)
	case binary.BigEndian.Uint32(p[12:]) != 0:
		return l, check(inlineTooLong)
	case copyHead+int64(cscds)+segments != int64(len(p)), cscds%cscdLen != 0:
		return l, check(listLengthError)
	case cscds > maxCSCDs*cscdLen:
		return l, check(tooManyTargets)
	}
	for at := copyHead; at < copyHead+cscds; at += cscdLen {
		d, r := readCSCD(p[at:at+cscdLen], at)
		if !r.ok() {
			return l, r
		}
		l.cscds = append(l.cscds, d)
	}
	for at := copyHead + cscds; at < len(p); {
		if len(l.segments) == maxSegments {
			return l, check(tooManySegments)
		}
		d := p[at:]
		switch {
		case d[0] != blockToBlock:
			return l, check(unsupportedSegment)
		case len(d) < blockSegmentLen:
			return l, check(listLengthError)
		case binary.BigEndian.Uint16(d[2:]) != blockSegmentLen-4:
			return l, badList(uint16(at + 2))
		}
		l.segments = append(l.segments, segment{
			destination: d[1]&0x02 != 0,
			from:        binary.BigEndian.Uint16(d[4:]), to: binary.BigEndian.Uint16(d[6:]),
			blocks:  binary.BigEndian.Uint16(d[10:]),
			fromLBA: binary.BigEndian.Uint64(d[12:]), toLBA: binary.BigEndian.Uint64(d[20:]),
		})
		at += blockSegmentLen
	}
	return l, result{}
}

// readCSCD reads one identification CSCD descriptor. LU ID TYPE does not concern
// this type, and NUL is obsolete (SPC-4, identification descriptor CSCD descriptor).
func readCSCD(d []byte, at int) (cscd, result) {
	switch {
	case d[0] != identificationCSCD:
		return cscd{}, check(unsupportedTarget)
	case d[1]&0x1f != 0: // PERIPHERAL DEVICE TYPE: disks only
		return cscd{}, badList(uint16(at + 1))
	}
	c := cscd{block: int64(d[29])<<16 | int64(d[30])<<8 | int64(d[31])}
	if d[4]&0x0f == binaryCode && d[5]&0x3f == ofUnit|typeNAA && d[7] == 8 {
		c.usable, c.naa = true, [8]byte(d[8:16])
	}
	return c, result{}
}

// runCopy is EXTENDED COPY(LID1).
func runCopy(n *Nexus, c *Command) result {
	if c.Want == 0 {
		return result{}
	}
	if int64(len(c.Out)) < c.Want {
		return check(listLengthError)
	}
	l, r := readCopyList(c.Out)
	if !r.ok() {
		return r
	}
	rec, ok := n.copies.begin(l.id, l.usage)
	if !ok {
		return check(operationInProgress)
	}
	defer l.release()
	r = n.copyAll(c, &l, rec)
	n.copies.end(rec, r.ok())
	return r
}

func (l *copyList) release() {
	for i := range l.cscds {
		if d := &l.cscds[i]; d.release != nil {
			d.release()
		}
	}
}

// copyAll performs the segments in order. The first that fails ends the copy.
func (n *Nexus) copyAll(c *Command, l *copyList, rec *copyRecord) result {
	jobs := make([]copyJob, 0, len(l.segments))
	for i := range l.segments {
		j, r := n.plan(l, &l.segments[i])
		if !r.ok() {
			return r
		}
		jobs = append(jobs, j)
	}
	gone, _ := c.In.(interface{ Gone() bool })
	for i := range jobs {
		j := &jobs[i]
		j.gone, j.done = gone, func(bytes int64) { n.copies.progress(rec, bytes) }
		if r := j.run(); !r.ok() {
			return r
		}
		n.copies.segmentDone(rec)
	}
	return result{}
}

// reach finds the unit of a descriptor.
func (n *Nexus) reach(l *copyList, index uint16) (*cscd, result) {
	if int(index) >= len(l.cscds) || !l.cscds[index].usable {
		return nil, check(unreachableTarget)
	}
	d := &l.cscds[index]
	if d.nexus == nil && n.path.Borrow != nil {
		d.nexus, d.release = n.path.Borrow(d.naa)
	}
	switch {
	case d.nexus == nil:
		return nil, check(targetNotReachable)
	case d.block != d.nexus.unit.blockSize():
		return nil, badList(uint16(copyHead + int(index)*cscdLen + 29))
	}
	return d, result{}
}

// plan checks one segment against its units.
func (n *Nexus) plan(l *copyList, s *segment) (copyJob, result) {
	from, r := n.reach(l, s.from)
	if !r.ok() {
		return copyJob{}, r
	}
	to, r := n.reach(l, s.to)
	if !r.ok() {
		return copyJob{}, r
	}
	length := int64(s.blocks) * from.block
	if s.destination {
		length = int64(s.blocks) * to.block
	}
	switch {
	case length > maxSegment:
		return copyJob{}, badList(uint16(copyHead))
	case length%from.block != 0 || length%to.block != 0:
		return copyJob{}, check(inexactSegment)
	case !from.nexus.unit.covers(s.fromLBA, length) || !to.nexus.unit.covers(s.toLBA, length):
		return copyJob{}, check(copyAborted)
	}
	return copyJob{from: from.nexus, to: to.nexus, length: length,
		fromOff: int64(s.fromLBA) * from.block, toOff: int64(s.toLBA) * to.block}, result{}
}

// covers reports whether length bytes from a block on are within the unit.
func (u *Unit) covers(lba uint64, length int64) bool {
	capacity, blocks := u.blocks.Load(), uint64(length)>>u.shift
	return lba <= capacity && blocks <= capacity-lba
}
