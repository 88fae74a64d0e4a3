package scsi

import (
	"encoding/binary"
	"slices"
	"sync"
)

// RECEIVE COPY RESULTS, and the Third-party Copy VPD page (0x8F), of SPC-4.

// COPY MANAGER STATUS (SPC-4, RECEIVE COPY STATUS).
const (
	copyRunning = 0
	copyDone    = 1
	copyFailed  = 2
)

// copyRecord is what is known of one EXTENDED COPY. Its table's mu guards it.
type copyRecord struct {
	id       byte
	usage    byte
	status   byte
	segments uint16
	bytes    int64
}

// copyTable is one nexus' copies, oldest first.
type copyTable struct {
	mu   sync.Mutex
	list []*copyRecord
}

// begin remembers a copy. ok is false if its list identifier is in use, or too many
// run.
func (t *copyTable) begin(id, usage byte) (rec *copyRecord, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if usage != usageNone {
		i := slices.IndexFunc(t.list, func(r *copyRecord) bool { return r.id == id && r.usage != usageNone })
		if i >= 0 {
			if t.list[i].status == copyRunning {
				return nil, false
			}
			t.list = slices.Delete(t.list, i, i+1)
		}
	}
	if len(t.list) == maxCopies {
		i := slices.IndexFunc(t.list, func(r *copyRecord) bool { return r.status != copyRunning })
		if i < 0 {
			return nil, false
		}
		t.list = slices.Delete(t.list, i, i+1)
	}
	rec = &copyRecord{id: id, usage: usage}
	t.list = append(t.list, rec)
	return rec, true
}

func (t *copyTable) progress(r *copyRecord, bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r.bytes += bytes
}

func (t *copyTable) segmentDone(r *copyRecord) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r.segments++
}

// end remembers how a copy ended, where the initiator may ask.
func (t *copyTable) end(r *copyRecord, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.status = copyDone; !ok {
		r.status = copyFailed
	}
	if r.usage == usageNone {
		t.list = slices.DeleteFunc(t.list, func(o *copyRecord) bool { return o == r })
	}
}

// forget drops what is remembered of copies that are over (LOGICAL UNIT RESET).
func (t *copyTable) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = slices.DeleteFunc(t.list, func(r *copyRecord) bool { return r.status != copyRunning })
}

// runCopyStatus is RECEIVE COPY STATUS(LID1).
func runCopyStatus(n *Nexus, c *Command) result {
	t := &n.copies
	t.mu.Lock()
	i := slices.IndexFunc(t.list, func(r *copyRecord) bool { return r.id == c.CDB[2] && r.usage != usageNone })
	if i < 0 {
		t.mu.Unlock()
		return badCDB(2)
	}
	r := *t.list[i]
	t.mu.Unlock()
	b := make([]byte, 12)
	b[3] = 8
	b[4] = r.status
	binary.BigEndian.PutUint16(b[5:], r.segments)
	unit := byte(0)
	for ; r.bytes > 0xffffffff; r.bytes >>= 10 {
		unit++ // KiB, MiB, …
	}
	b[7] = unit
	binary.BigEndian.PutUint32(b[8:], uint32(r.bytes))
	return c.reply(b, c.u32(10))
}

// runCopyLimits is RECEIVE COPY OPERATING PARAMETERS.
func runCopyLimits(_ *Nexus, c *Command) result {
	b := make([]byte, 44, 46)
	b[4] = 0x01 // SNLID: LIST ID USAGE 11b
	binary.BigEndian.PutUint16(b[8:], maxCSCDs)
	binary.BigEndian.PutUint16(b[10:], maxSegments)
	binary.BigEndian.PutUint32(b[12:], maxDescriptors)
	binary.BigEndian.PutUint32(b[16:], maxSegment)
	binary.BigEndian.PutUint16(b[34:], maxCopies)
	b[36] = maxCopies
	b[37] = copyGranule
	b[43] = 2
	b = append(b, blockToBlock, identificationCSCD)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return c.reply(b, c.u32(10))
}

// thirdPartyCopy is VPD page 0x8F, from byte 4 on.
func thirdPartyCopy() []byte {
	var b []byte
	add := func(kind uint16, d ...byte) {
		for len(d)%4 != 0 {
			d = append(d, 0)
		}
		b = binary.BigEndian.AppendUint16(b, kind)
		b = binary.BigEndian.AppendUint16(b, uint16(len(d)))
		b = append(b, d...)
	}
	// Supported commands: operation code, number of service actions, service actions.
	add(0x0001, 7, 0x83, 1, 0x00, 0x84, 2, 0x00, 0x03)
	params := make([]byte, 28)
	binary.BigEndian.PutUint16(params[4:], maxCSCDs)
	binary.BigEndian.PutUint16(params[6:], maxSegments)
	binary.BigEndian.PutUint32(params[8:], maxDescriptors)
	add(0x0004, params...)
	add(0x0008, 2, blockToBlock, identificationCSCD)
	general := make([]byte, 32)
	binary.BigEndian.PutUint32(general, maxCopies)
	binary.BigEndian.PutUint32(general[4:], maxCopies)
	binary.BigEndian.PutUint32(general[8:], maxSegment)
	general[12] = copyGranule
	add(0x8001, general...)
	return b
}
