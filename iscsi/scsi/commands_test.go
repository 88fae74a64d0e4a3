package scsi

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/lun"
)

// Many initiators count in one block by COMPARE AND WRITE while others write, set
// bits, zero and trim beside it: no count is lost.
func TestCompareAndWriteIsAtomic(t *testing.T) {
	d := &lockedThin{thin: thin{disk{data: make([]byte, 1<<20)}}}
	b := newBench(t, d)
	const workers, rounds = 8, 50
	var wg sync.WaitGroup
	for w := range workers {
		n := b.initiator(fmt.Sprint("w", w))
		wg.Go(func() {
			for done := 0; done < rounds; {
				_, old := do(n, cdb10(0x28, 7, 1), nil, 512)
				next := bytes.Clone(old)
				binary.BigEndian.PutUint32(next[100:], binary.BigEndian.Uint32(old[100:])+1)
				c, _ := do(n, []byte{0x89, 9: 7, 13: 1, 15: 0}, append(old, next...), 0)
				if c.Status == Good {
					done++
				}
				// Beside it.
				other := []byte{0x8b, 9: 8 + byte(w), 13: 1, 15: 0}
				do(n, other, next, 0)
				do(n, cdb10(0x41, uint32(20+w), 1), make([]byte, 512), 0)
			}
		})
	}
	// ORWRITE of nothing into the same block is a write that must not undo one.
	n := b.initiator("or")
	wg.Go(func() {
		for range workers * rounds {
			do(n, []byte{0x8b, 9: 7, 13: 1, 15: 0}, make([]byte, 512), 0)
		}
	})
	wg.Wait()
	if got := binary.BigEndian.Uint32(d.data[7*512+100:]); got != workers*rounds {
		t.Errorf("counted %d, want %d", got, workers*rounds)
	}
}

// lockedThin is a device whose single calls are whole, and nothing more.
type lockedThin struct {
	mu sync.Mutex
	thin
}

func (d *lockedThin) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.thin.ReadAt(p, off)
}

func (d *lockedThin) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.thin.WriteAt(p, off)
}

func (d *lockedThin) Trim(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.thin.Trim(off, n)
}

func TestNACAIsRefused(t *testing.T) {
	b := newBench(t, &thin{disk{data: make([]byte, 1<<20)}})
	for i := range ops {
		cdb := make([]byte, 16)
		cdb[0], cdb[1] = ops[i].code, ops[i].service
		cdb[len(ops[i].usage)-1] = 0x04
		c, _ := do(b.n, cdb, nil, 512)
		b.want(c, invalidFieldInCDB)
	}
}

// unmapList is a parameter list of LBA and number of blocks, alternating.
func unmapList(ranges ...uint32) []byte {
	p := make([]byte, 8)
	for i := 0; i < len(ranges); i += 2 {
		p = binary.BigEndian.AppendUint64(p, uint64(ranges[i]))
		p = binary.BigEndian.AppendUint32(p, ranges[i+1])
		p = append(p, 0, 0, 0, 0)
	}
	binary.BigEndian.PutUint16(p, uint16(len(p)-2))
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)-8))
	return p
}

func TestUnmapLists(t *testing.T) {
	ones := bytes.Repeat([]byte{1}, 1000*512)
	for name, c := range map[string]struct {
		list []byte
		want Code
		zero [][2]int // blocks from, to
	}{
		"overlapping":           {unmapList(10, 20, 15, 20, 10, 1), noSense, [][2]int{{10, 35}}},
		"off the granularity":   {unmapList(13, 3), noSense, [][2]int{{13, 16}}},
		"nothing":               {unmapList(), noSense, nil},
		"no blocks":             {unmapList(5, 0), noSense, nil},
		"no blocks at the end":  {unmapList(1000, 0), noSense, nil},
		"all":                   {unmapList(0, 1000), noSense, [][2]int{{0, 1000}}},
		"past the end":          {unmapList(1, 1, 999, 2), lbaOutOfRange, nil},
		"overflow":              {unmapList(1, 1, 0xffffffff, 0xffffffff), lbaOutOfRange, nil},
		"too many descriptors":  {unmapList(make([]uint32, 2*(maxUnmapDescs+1))...), invalidFieldInList, nil},
		"half a descriptor":     {unmapList(10, 1)[:16], noSense, nil},
		"a header that is less": {unmapList()[:7], listLengthError, nil},
	} {
		d := &thin{disk{data: bytes.Clone(ones)}}
		b := newBench(t, d)
		got, _ := do(b.n, cdb10(0x42, 0, uint16(len(c.list))), c.list, 0)
		b.want(got, c.want)
		want := bytes.Clone(ones)
		for _, z := range c.zero {
			clear(want[z[0]*512 : z[1]*512])
		}
		if !bytes.Equal(d.data, want) {
			t.Errorf("%s: other blocks are zero", name)
		}
	}
}

func TestWriteSame(t *testing.T) {
	d := &thin{disk{data: bytes.Repeat([]byte{1}, 1<<20)}}
	b := newBench(t, d)
	pattern := bytes.Repeat([]byte("cleave.."), 64)
	ws16 := func(flags byte, lba, n uint32, data []byte) *Command {
		cdb := make([]byte, 16)
		cdb[0], cdb[1] = 0x93, flags
		binary.BigEndian.PutUint32(cdb[6:], lba)
		binary.BigEndian.PutUint32(cdb[10:], n)
		c, _ := do(b.n, cdb, data, 0)
		return c
	}
	b.good(ws16(0, 10, 900, pattern))
	if !bytes.Equal(d.data[10*512:910*512], bytes.Repeat(pattern, 900)) || d.data[10*512-1] != 1 || d.data[910*512] != 1 {
		t.Error("pattern")
	}
	b.good(ws16(0x09, 100, 10, nil)) // UNMAP, NDOB
	b.good(ws16(0x01, 200, 10, nil)) // NDOB
	b.good(ws16(0x08, 300, 10, make([]byte, 512)))
	b.good(ws16(0x08, 400, 10, pattern)) // data that is not zero is written, UNMAP or not
	for _, lba := range []int{100, 200, 300} {
		if !isZero(d.data[lba*512:(lba+10)*512]) || isZero(d.data[(lba+10)*512:(lba+11)*512]) {
			t.Errorf("block %d", lba)
		}
	}
	if !bytes.Equal(d.data[400*512:401*512], pattern) {
		t.Error("UNMAP has dropped data")
	}
	b.want(ws16(0x18, 0, 1, pattern), invalidFieldInCDB)            // ANCHOR
	b.want(ws16(0x20, 0, 1, pattern), invalidFieldInCDB)            // WRPROTECT
	b.want(ws16(0, 0, 0, pattern), invalidFieldInCDB)               // WSNZ
	b.want(ws16(0, 0, maxWriteSame+1, pattern), invalidFieldInCDB)  // as VPD page 0xB0 says
	b.want(ws16(0, 2040, 10, pattern), lbaOutOfRange)               //
	b.want(ws16(0, 0, 1, slices.Concat(pattern, pattern)), badCDBs) // two blocks
}

func TestVerify(t *testing.T) {
	d := &disk{data: bytes.Repeat([]byte{7}, 1<<20)}
	b := newBench(t, d)
	for _, op := range []byte{0x2f, 0xaf, 0x8f} {
		verify := func(bytchk byte, n int, data []byte) *Command {
			cdb := make([]byte, 16)
			cdb[0], cdb[1] = op, bytchk<<1
			at := map[byte]int{0x2f: 8, 0xaf: 9, 0x8f: 13}[op]
			cdb[at] = byte(n)
			c, _ := do(b.n, cdb, data, 0)
			return c
		}
		good, bad := bytes.Repeat([]byte{7}, 4*512), bytes.Repeat([]byte{7}, 4*512)
		bad[700] = 8
		b.good(verify(0, 4, nil), verify(0, 0, nil), verify(1, 4, good), verify(3, 200, good[:512]))
		c := verify(1, 4, bad)
		b.want(c, miscompare)
		if at := binary.BigEndian.Uint32(c.Sense[3:]); at != 700 {
			t.Errorf("INFORMATION %d, want the offset 700", at)
		}
		b.want(verify(3, 200, bad[512:1024]), miscompare)
		b.want(verify(2, 4, good), invalidFieldInCDB)
		b.want(verify(1, 4, good[:512]), invalidFieldInCDB) // what was not sent was not compared
	}
	// WRITE AND VERIFY is stable when it is answered.
	syncs := d.syncs
	wv := cdb10(0x2e, 3, 1)
	wv[1] = 0x02
	c, _ := do(b.n, wv, bytes.Repeat([]byte{9}, 512), 0)
	b.good(c)
	if d.syncs == syncs || d.data[3*512] != 9 {
		t.Error("WRITE AND VERIFY")
	}
}

func TestModeSelect(t *testing.T) {
	d := &disk{data: make([]byte, 1<<20)}
	b := newBench(t, d)
	other := b.initiator("b")
	sense := func(page byte) []byte {
		_, got := do(b.n, []byte{0x5a, 0x08, page, 8: 255, 9: 0}, nil, 255)
		return got[8:]
	}
	sel := func(p []byte) *Command {
		c, _ := do(b.n, []byte{0x55, 0x10, 7: byte(len(p) >> 8), 8: byte(len(p)), 9: 0}, p, 0)
		return c
	}
	head := make([]byte, 8)
	caching := sense(0x08)
	if caching[2]&0x04 == 0 {
		t.Error("WCE is off")
	}
	caching[2] = 0
	b.good(sel(append(bytes.Clone(head), caching...)))
	if d.syncs == 0 {
		t.Error("the cache was turned off with data in it")
	}
	if c := told(other); c != modeChanged {
		t.Errorf("another is told %06x", c)
	}
	syncs := d.syncs
	if write1(b.n); d.syncs == syncs {
		t.Error("a write without cache is not stable")
	}
	// Nothing changes if anything is wrong.
	control := sense(0x0a)
	control[4] |= 0x08 // SWP
	wrong := bytes.Clone(control)
	wrong[8] ^= 1 // BUSY TIMEOUT can't be changed
	b.want(sel(slices.Concat(head, control, wrong)), invalidFieldInList)
	b.want(sel(append(bytes.Clone(head), control[:5]...)), listLengthError)
	if write1(b.n) != Good {
		t.Error("a wrong list has set SWP")
	}
	b.good(sel(append(bytes.Clone(head), control...)))
	c, _ := do(b.n, cdb10(0x2a, 0, 1), make([]byte, 512), 0)
	b.want(c, softwareProtected)
	control[4] = 0
	control[2] |= 0x04 // D_SENSE
	b.good(sel(append(bytes.Clone(head), control...)))
	if c, _ := do(b.n, []byte{0xff}, nil, 0); c.Sense[0] != 0x72 || c.Sense[1] != keyIllegalRequest {
		t.Errorf("sense %x", c.Sense[:c.SenseLen])
	}
	b.u.Reset()
	told(b.n)
	// Block descriptors: neither another length nor another capacity.
	long := append([]byte{0, 0, 0, 0, 1, 0, 0, 16}, make([]byte, 16)...)
	for blocks, want := range map[uint64]Code{0: noSense, 2048: noSense, ^uint64(0): noSense, 1000: invalidFieldInList} {
		binary.BigEndian.PutUint64(long[8:], blocks)
		b.want(sel(long), want)
	}
	long[8+14] = 0x10
	b.want(sel(long), invalidFieldInList)
	b.want(sel([]byte{0, 0, 0, 0, 0, 0, 0, 16}), invalidFieldInList)
	b.want(sel([]byte{0, 0, 0, 0, 0, 0, 0, 8}), listLengthError)
}

// Each command that the list of all names is found when asked for alone, and the
// other way round; so is none that is not there.
func TestReportedOpcodes(t *testing.T) {
	for _, d := range []lun.Device{&thin{disk{data: make([]byte, 1<<20)}}, &disk{data: make([]byte, 1<<20)}} {
		b := newBench(t, d)
		_, all := do(b.n, []byte{0xa3, 0x0c, 8: 0x40, 11: 0}, nil, 1<<14)
		listed := map[uint16]bool{}
		for at := 4; at < len(all); at += 8 {
			code, sa := all[at], all[at+3]
			listed[uint16(code)<<8|uint16(sa)] = true
			option := byte(1)
			if all[at+5]&1 != 0 {
				option = 2
			}
			for _, o := range []byte{option, 3} {
				c, got := do(b.n, []byte{0xa3, 0x0c, o, code, 0, sa, 8: 1, 11: 0}, nil, 256)
				b.good(c)
				if len(got) < 4 || got[1] != 3 || len(got) != 4+int(all[at+7]) || got[4] != code {
					t.Errorf("%02x/%02x by option %d: %x", code, sa, o, got)
				}
			}
			c, _ := do(b.n, []byte{0xa3, 0x0c, 3 - option, code, 0, sa, 8: 1, 11: 0}, nil, 256)
			b.want(c, invalidFieldInCDB)
		}
		_, thin := d.(lun.Trimmer)
		if listed[0x4200] != thin || listed[0x9e12] != thin {
			t.Errorf("thin %t: UNMAP %t, GET LBA STATUS %t", thin, listed[0x4200], listed[0x9e12])
		}
		for _, code := range []byte{0x48, 0x9c, 0x04} { // SANITIZE, WRITE ATOMIC, FORMAT UNIT
			_, got := do(b.n, []byte{0xa3, 0x0c, 1, code, 8: 1, 11: 0}, nil, 256)
			if got[1] != 1 {
				t.Errorf("%02x: %x", code, got)
			}
		}
		// With timeouts descriptors.
		_, got := do(b.n, []byte{0xa3, 0x0c, 0x81, 0x28, 8: 1, 11: 0}, nil, 256)
		if got[1] != 0x83 || len(got) != 4+10+12 {
			t.Errorf("with timeouts: %x", got)
		}
	}
}

func TestResizeOnline(t *testing.T) {
	d := &disk{data: make([]byte, 1<<20)}
	b := newBench(t, d)
	d.data = append(d.data, make([]byte, 1<<20)...)
	c, _ := do(b.n, cdb10(0x28, 3000, 1), nil, 512)
	b.want(c, lbaOutOfRange) // as long as nobody has been told
	b.u.Resized()
	c, _ = do(b.n, cdb10(0x28, 3000, 1), nil, 512)
	b.want(c, capacityChanged)
	c, _ = do(b.n, cdb10(0x28, 3000, 1), nil, 512)
	b.good(c)
	_, got := do(b.n, []byte{0x9e, 0x10, 13: 32, 15: 0}, nil, 32)
	if binary.BigEndian.Uint64(got) != 4095 {
		t.Errorf("capacity %x", got)
	}
}

func TestReportLUNs(t *testing.T) {
	b := newBench(t, &disk{data: make([]byte, 1<<20)})
	for sel, want := range map[byte][]uint16{0: {0, 300}, 1: nil, 2: {0, 300}} {
		c, got := do(b.n, []byte{0xa0, 0, sel, 9: 64, 11: 0}, nil, 64)
		b.good(c)
		if !bytes.Equal(got, LUNList(want)) {
			t.Errorf("SELECT REPORT %d: %x", sel, got)
		}
	}
	c, _ := do(b.n, []byte{0xa0, 0, 3, 9: 64, 11: 0}, nil, 64)
	b.want(c, invalidFieldInCDB)
	c, _ = do(b.n, []byte{0xa0, 9: 15, 11: 0}, nil, 64)
	b.want(c, invalidFieldInCDB)
}

// Neighbours that are alike are one descriptor, and a block is a hole only if all
// of it is.
func TestStatusIsCoalesced(t *testing.T) {
	d := &thin{disk{data: make([]byte, 400*512)}}
	for _, block := range []int{50, 51, 120} {
		d.data[block*512+511] = 1
	}
	b := newBench(t, d)
	status := func(lba byte, room int) (out [][3]uint64) {
		_, got := do(b.n, []byte{0x9e, 0x12, 9: lba, 12: byte((8 + 16*room) >> 8), 13: byte(8 + 16*room), 15: 0}, nil, 4096)
		for at := 8; at < len(got); at += 16 {
			out = append(out, [3]uint64{binary.BigEndian.Uint64(got[at:]), uint64(binary.BigEndian.Uint32(got[at+8:])), uint64(got[at+12])})
		}
		return out
	}
	all := status(0, 64)
	if len(all) != 5 {
		t.Errorf("%v: want hole, data, hole, data, hole", all)
	}
	for i := 1; i < len(all); i++ {
		if all[i][2] == all[i-1][2] {
			t.Errorf("%v and %v are not one", all[i-1], all[i])
		}
	}
	if got := status(0, 2); len(got) != 2 || got[1] != all[1] {
		t.Errorf("the first two: %v", got)
	}
	if got := status(10, 1); len(got) != 1 || got[0][0] != 10 || got[0][0]+got[0][1] != all[1][0] {
		t.Errorf("from within a hole: %v", got)
	}
}

func TestReportedTaskManagement(t *testing.T) {
	b := newBench(t, &disk{data: make([]byte, 1<<20)})
	_, got := do(b.n, []byte{0xa3, 0x0d, 9: 64, 11: 0}, nil, 64)
	if len(got) != 4 || got[0] != 0xda { // ABORT TASK, ABORT and CLEAR TASK SET, LUN RESET, target reset
		t.Errorf("%x", got)
	}
	_, got = do(b.n, []byte{0xa3, 0x0d, 0x80, 9: 64, 11: 0}, nil, 64)
	if len(got) != 16 || got[3] != 12 {
		t.Errorf("extended: %x", got)
	}
}

func TestRequestSense(t *testing.T) {
	b := newBench(t, &disk{data: make([]byte, 1<<20)})
	b.n.Attention(capacityChanged)
	_, got := do(b.n, []byte{0x03, 1, 4: 255, 5: 0}, nil, 255)
	if len(got) < 8 || got[0] != 0x72 || got[1] != keyUnitAttention || got[2] != 0x2a || got[3] != 0x09 {
		t.Errorf("descriptor format: %x", got)
	}
	_, got = do(b.n, []byte{0x03, 0, 4: 255, 5: 0}, nil, 255)
	if len(got) != 18 || got[0] != 0x70 || got[2] != 0 {
		t.Errorf("nothing pending, fixed format: %x", got)
	}
}
