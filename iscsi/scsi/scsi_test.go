package scsi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/cleave-san/cleave/lun"
)

// disk is a device in memory that fails on demand.
type disk struct {
	data  []byte
	fail  error
	syncs int
}

func (d *disk) Size() int64 { return int64(len(d.data)) }

func (d *disk) Sync() error { d.syncs++; return d.fail }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if d.fail != nil {
		return 0, d.fail
	}
	if err := lun.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	return copy(p, d.data[off:]), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if d.fail != nil {
		return 0, d.fail
	}
	if err := lun.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	return copy(d.data[off:], p), nil
}

// thin is a disk that can trim and knows its holes, in steps of 1000 bytes: not of
// blocks.
type thin struct{ disk }

func (d *thin) Trim(off, n int64) error {
	if err := lun.CheckRange(off, n, d.Size()); err != nil {
		return err
	}
	clear(d.data[off : off+n])
	return nil
}

func (d *thin) Extents(off, n int64, fn func(lun.Extent) error) error {
	for end := off + n; off < end; {
		to := min((off/1000+1)*1000, end)
		if err := fn(lun.Extent{Off: off, Len: to - off, Hole: isZero(d.data[off:to])}); err != nil {
			return err
		}
		off = to
	}
	return nil
}

// sink collects what a command returns.
type sink struct{ got []byte }

func (s *sink) Get(n int) ([]byte, error) { return bytes.Repeat([]byte{0xee}, n), nil }
func (s *sink) Put(b []byte) error        { s.got = append(s.got, b...); return nil }

// bench is a unit with one initiator that has seen its power-on.
type bench struct {
	t testing.TB
	u *Unit
	n *Nexus
}

func newBench(t testing.TB, dev lun.Device) *bench {
	t.Helper()
	u, err := NewUnit(dev, Options{Writable: true, Target: "iqn.2026-01.test:t"})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t, u, nil}
	b.n = b.initiator("a")
	return b
}

func (b *bench) initiator(name string) *Nexus {
	n := b.u.Attach(Path{Port: Port{Name: "iqn.2026-01.test:" + name}, LUNs: func() []uint16 { return []uint16{0, 300} }})
	n.takeAttention()
	return n
}

// do performs a CDB; with out it sends that, else it takes up to limit bytes.
func do(n *Nexus, cdb []byte, out []byte, limit int64) (*Command, []byte) {
	var s sink
	c := &Command{In: &s, Limit: limit, Read: out == nil && limit > 0, Write: out != nil}
	copy(c.CDB[:], cdb)
	if out != nil {
		c.Limit = int64(len(out))
	}
	need, done := n.Begin(c)
	if !done {
		c.Out = out[:min(need, int64(len(out)))]
		n.Run(c)
	}
	return c, s.got
}

func (b *bench) want(c *Command, code Code) {
	b.t.Helper()
	if code == noSense {
		if c.Status != Good {
			b.t.Errorf("CDB %x: status %#x sense %x, want GOOD", c.CDB, c.Status, c.Sense[:c.SenseLen])
		}
		return
	}
	got := Code(c.Sense[2])<<16 | Code(c.Sense[12])<<8 | Code(c.Sense[13])
	if c.Status != CheckCondition || got != code {
		b.t.Errorf("CDB %x: status %#x sense %06x, want %06x", c.CDB, c.Status, got, code)
	}
}

func cdb10(op byte, lba uint32, n uint16) []byte {
	c := make([]byte, 10)
	c[0] = op
	binary.BigEndian.PutUint32(c[2:], lba)
	binary.BigEndian.PutUint16(c[7:], n)
	return c
}

func TestReadWrite(t *testing.T) {
	d := &disk{data: make([]byte, 1<<20)}
	b := newBench(t, d)
	p := bytes.Repeat([]byte("cleave!!"), 128) // two blocks
	c, _ := do(b.n, cdb10(0x2a, 5, 2), p, 0)
	b.want(c, noSense)
	if !bytes.Equal(d.data[5*512:7*512], p) || d.syncs != 0 {
		t.Error("write")
	}
	c, got := do(b.n, cdb10(0x28, 5, 2), nil, 1024)
	b.want(c, noSense)
	if !bytes.Equal(got, p) {
		t.Error("read")
	}
	// Less than the CDB asks for, ending within a block: the rest is residual.
	c, got = do(b.n, cdb10(0x28, 5, 2), nil, 700)
	b.want(c, noSense)
	if !bytes.Equal(got, p[:700]) || c.Want != 1024 {
		t.Errorf("short read: %d bytes, want %d", len(got), c.Want)
	}
	// The short forms; a length of 0 means 256 blocks.
	c, _ = do(b.n, []byte{0x0a, 0, 0, 5, 2, 0}, p, 0)
	b.want(c, noSense)
	c, got = do(b.n, []byte{0x08, 0, 0, 0, 0, 0}, nil, 256*512)
	b.want(c, noSense)
	if !bytes.Equal(got, d.data[:256*512]) {
		t.Error("READ(6)")
	}
	// FUA makes it stable.
	fua := cdb10(0x2a, 5, 2)
	fua[1] = 0x08
	c, _ = do(b.n, fua, p, 0)
	b.want(c, noSense)
	if d.syncs != 1 {
		t.Errorf("%d syncs after FUA", d.syncs)
	}
	if st := b.u.Stats(); st.Writes != 3 || st.WriteBytes != 3072 || st.Reads != 3 || st.ReadBytes != 1724+256*512 {
		t.Errorf("%+v", st)
	}
}

func TestRanges(t *testing.T) {
	b := newBench(t, &disk{data: make([]byte, 100*512)})
	huge := make([]byte, 16)
	huge[0] = 0x88
	for i := 2; i < 14; i++ {
		huge[i] = 0xff // LBA and length that overflow when added
	}
	for _, c := range []struct {
		cdb  []byte
		want Code
	}{
		{cdb10(0x28, 99, 1), noSense},
		{cdb10(0x28, 99, 2), lbaOutOfRange},
		{cdb10(0x28, 100, 1), lbaOutOfRange},
		{cdb10(0x28, 0xffffffff, 0xffff), lbaOutOfRange},
		{huge, lbaOutOfRange},
		{cdb10(0x35, 0, 101), lbaOutOfRange},
		{cdb10(0xff, 0, 0), invalidOpcode},
		{[]byte{0x7f}, invalidOpcode},
		{cdb10(0x42, 0, 24), invalidOpcode}, // UNMAP: the device can't
	} {
		got, _ := do(b.n, c.cdb, nil, 512)
		b.want(got, c.want)
	}
}

// One row for each error that a device may give.
func TestDeviceErrors(t *testing.T) {
	other := errors.New("cable pulled")
	for _, c := range []struct {
		err         error
		read, write Code
	}{
		{lun.ErrNoSpace, spaceFailed, spaceFailed},
		{lun.ErrReadOnly, writeProtected, writeProtected},
		{lun.ErrOutOfRange, lbaOutOfRange, lbaOutOfRange},
		{lun.ErrClosed, notReady, notReady},
		{other, readError, writeError},
		{fmt.Errorf("pool: %w", lun.ErrNoSpace), spaceFailed, spaceFailed},
	} {
		d := &disk{data: make([]byte, 1<<20)}
		b := newBench(t, d)
		d.fail = c.err
		got, _ := do(b.n, cdb10(0x28, 3, 1), nil, 512)
		b.want(got, c.read)
		if c.read == readError && binary.BigEndian.Uint32(got.Sense[3:]) != 3 {
			t.Errorf("INFORMATION is not the block: %x", got.Sense[:18])
		}
		got, _ = do(b.n, cdb10(0x2a, 3, 1), make([]byte, 512), 0)
		b.want(got, c.write)
		got, _ = do(b.n, cdb10(0x35, 0, 0), nil, 0)
		b.want(got, c.write)
	}
}

func TestWriteProtection(t *testing.T) {
	d := &disk{data: make([]byte, 1<<20)}
	b := newBench(t, d)
	block := bytes.Repeat([]byte{1}, 512)
	write := func(want Code) {
		t.Helper()
		c, _ := do(b.n, cdb10(0x2a, 0, 1), block, 0)
		b.want(c, want)
	}
	b.u.SetWritable(false)
	write(modeChanged) // the unit attention first
	write(writeProtected)
	_, sense := do(b.n, []byte{0x1a, 0, 0x3f, 0, 255, 0}, nil, 255)
	if sense[2]&0x80 == 0 {
		t.Error("WP bit is clear")
	}
	b.u.SetWritable(true)
	write(modeChanged)
	b.n.SetReadOnly(true) // the mask
	write(modeChanged)
	write(writeProtected)
	if !isZero(d.data) {
		t.Error("a refused write has written")
	}
	for _, cdb := range [][]byte{cdb10(0x41, 0, 1), {0x89, 13: 1}, {0x0a, 4: 1}, {0x8b}} {
		c, _ := do(b.n, cdb, block, 0)
		b.want(c, writeProtected)
	}
}

func TestIdentity(t *testing.T) {
	id := lun.NewIdentity()
	u, err := NewUnit(&disk{data: make([]byte, 4096)}, Options{Identity: id})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(u.vpd(0x80, 1)[4:]); got != id.Serial() {
		t.Errorf("serial %q", got)
	}
	naa := id.NAA()
	if !bytes.Contains(u.vpd(0x83, 1), append([]byte{1, 3, 0, 8}, naa[:]...)) {
		t.Errorf("no NAA designator in %x", u.vpd(0x83, 1))
	}
	for _, p := range u.vpd(0, 1)[4:] {
		page := u.vpd(p, 1)
		if page == nil || int(binary.BigEndian.Uint16(page[2:])) != len(page)-4 || page[1] != p {
			t.Errorf("page %#x: %x", p, page)
		}
	}
}

func TestCompareAndWrite(t *testing.T) {
	d := &disk{data: make([]byte, 1<<20)}
	b := newBench(t, d)
	caw := []byte{0x89, 9: 4, 13: 1, 15: 0}
	a, z := bytes.Repeat([]byte{'a'}, 512), make([]byte, 512)
	c, _ := do(b.n, caw, append(bytes.Clone(z), a...), 0)
	b.want(c, noSense)
	c, _ = do(b.n, caw, append(bytes.Clone(z), a...), 0)
	b.want(c, miscompare)
	if !bytes.Equal(d.data[4*512:5*512], a) {
		t.Error("not written")
	}
	c, _ = do(b.n, caw, z, 0) // half of what it takes
	b.want(c, invalidFieldInCDB)
}

func TestUnmapAndStatus(t *testing.T) {
	d := &thin{disk{data: bytes.Repeat([]byte{1}, 512*1000)}}
	b := newBench(t, d)
	list := make([]byte, 24)
	binary.BigEndian.PutUint16(list, 22)
	binary.BigEndian.PutUint16(list[2:], 16)
	binary.BigEndian.PutUint64(list[8:], 100)
	binary.BigEndian.PutUint32(list[16:], 50)
	c, _ := do(b.n, cdb10(0x42, 0, 24), list, 0)
	b.want(c, noSense)
	if !isZero(d.data[100*512:150*512]) || d.data[100*512-1] == 0 || d.data[150*512] == 0 {
		t.Error("trimmed something else")
	}
	status := make([]byte, 16)
	status[0], status[1] = 0x9e, 0x12
	binary.BigEndian.PutUint32(status[10:], 8+16*10)
	c, got := do(b.n, status, nil, 8+16*10)
	b.want(c, noSense)
	at := uint64(0)
	for i := 8; i < len(got); i += 16 {
		lba, n := binary.BigEndian.Uint64(got[i:]), uint64(binary.BigEndian.Uint32(got[i+8:]))
		if lba != at || n == 0 {
			t.Fatalf("descriptor at %d: LBA %d+%d, want %d", i, lba, n, at)
		}
		for l := lba; l < lba+n; l++ {
			if hole := got[i+12] == 1; hole && !isZero(d.data[l*512:(l+1)*512]) {
				t.Fatalf("LBA %d is called a hole and is none", l)
			}
		}
		at = lba + n
	}
	if at != 1000 {
		t.Errorf("ends at %d", at)
	}
	// A list that is wrong anywhere changes nothing.
	binary.BigEndian.PutUint64(list[8:], 990)
	c, _ = do(b.n, cdb10(0x42, 0, 24), list, 0)
	b.want(c, lbaOutOfRange)
	c, _ = do(b.n, cdb10(0x42, 0, 24), list[:4], 0)
	b.want(c, listLengthError)
}

func TestUnitAttentions(t *testing.T) {
	d := &disk{data: make([]byte, 1<<20)}
	b := newBench(t, d)
	d.data = make([]byte, 2<<20)
	b.u.Resized()
	inquiry := []byte{0x12, 0, 0, 0, 96, 0}
	c, _ := do(b.n, inquiry, nil, 96)
	b.want(c, noSense) // does not report it, and does not lose it
	c, _ = do(b.n, []byte{0, 0, 0, 0, 0, 0}, nil, 0)
	b.want(c, capacityChanged)
	c, got := do(b.n, cdb10(0x25, 0, 0), nil, 8)
	b.want(c, noSense)
	if binary.BigEndian.Uint32(got) != 4095 {
		t.Errorf("capacity %x", got)
	}
	b.n.Attention(LUNsChanged)
	_, got = do(b.n, []byte{0xa0, 9: 64}, nil, 64)
	if want := LUNList([]uint16{0, 300}); !bytes.Equal(got, want) {
		t.Errorf("LUNs %x", got)
	}
	c, _ = do(b.n, []byte{0, 0, 0, 0, 0, 0}, nil, 0)
	b.want(c, noSense) // REPORT LUNS has shown it
	b.u.Reset()
	_, got = do(b.n, []byte{0x03, 0, 0, 0, 18, 0}, nil, 18)
	if got[2] != 6 || got[12] != 0x29 || got[13] != 0x03 {
		t.Errorf("REQUEST SENSE %x", got)
	}
}

func TestLUNNumbers(t *testing.T) {
	for _, n := range []uint16{0, 1, 255, 256, 300, 0x3fff} {
		if got, ok := DecodeLUN(EncodeLUN(n)); !ok || got != n {
			t.Errorf("%d: %d %t", n, got, ok)
		}
	}
	for _, v := range []uint64{1, 0x0100 << 48, 0xc101 << 48, 0x8000 << 48, 1 << 32} {
		if n, ok := DecodeLUN(v); ok {
			t.Errorf("%016x: %d", v, n)
		}
	}
}

func TestReservationsKeepOthersOut(t *testing.T) {
	b := newBench(t, &disk{data: make([]byte, 1<<20)})
	other := b.initiator("b")
	list := func(key, newKey uint64) []byte {
		p := make([]byte, 24)
		binary.BigEndian.PutUint64(p, key)
		binary.BigEndian.PutUint64(p[8:], newKey)
		return p
	}
	pr := func(action, kind byte) []byte { return []byte{0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0} }
	ok := func(n *Nexus, cdb, out []byte) {
		t.Helper()
		c, _ := do(n, cdb, out, 0)
		b.want(c, noSense)
	}
	write := func(n *Nexus) Status {
		c, _ := do(n, cdb10(0x2a, 0, 1), make([]byte, 512), 0)
		return c.Status
	}
	ok(b.n, pr(0, 0), list(0, 1))
	ok(b.n, pr(1, writeExclusive), list(1, 0))
	if write(b.n) != Good || write(other) != ReservationConflict {
		t.Error("write exclusive")
	}
	if c, _ := do(other, cdb10(0x28, 0, 1), nil, 512); c.Status != Good {
		t.Error("write exclusive lets others read")
	}
	ok(other, pr(0, 0), list(0, 2))
	ok(other, pr(4, exclusiveAccess), list(2, 1)) // preempt
	c, _ := do(b.n, cdb10(0x28, 0, 1), nil, 512)
	b.want(c, regsPreempted)
	if c, _ = do(b.n, cdb10(0x28, 0, 1), nil, 512); c.Status != ReservationConflict {
		t.Error("exclusive access keeps readers out")
	}
	if c, _ = do(b.n, pr(2, exclusiveAccess), list(1, 0), 0); c.Status != ReservationConflict {
		t.Error("one that is not registered any more can release")
	}
	ok(other, pr(3, 0), list(2, 0)) // clear
	if write(b.n) != Good {
		t.Error("nothing is reserved")
	}
}

func TestNewUnitRefuses(t *testing.T) {
	for _, d := range []lun.Device{&disk{}, &disk{data: make([]byte, 511)}} {
		if _, err := NewUnit(d, Options{}); err == nil {
			t.Error("accepted")
		}
	}
}

type parameterSeed struct{ cdb, list []byte }

// parameterSeeds are parameter lists that get far.
func parameterSeeds() []parameterSeed {
	sized := func(cdb []byte, at int, list []byte) parameterSeed {
		binary.BigEndian.PutUint16(cdb[at:], uint16(len(list)))
		return parameterSeed{cdb, list}
	}
	copied := copyParams(1, 0, [][]byte{cscdOf(lun.Identity{}, 512)}, [][]byte{blocks(0, 0, 8, 0, 4), blocks(0, 0, 8, 64, 4)})
	register := append(make([]byte, 20), flagSpecify|flagAllPorts|flagAPTPL, 0, 0, 0, 0, 0, 0, 0)
	id := Port{Name: "iqn.2026-01.test:x"}.transportID()
	register[15], register[27] = 1, byte(len(id))
	unmap := make([]byte, 24)
	unmap[1], unmap[3], unmap[15], unmap[19] = 22, 16, 8, 8
	return []parameterSeed{
		sized([]byte{0x83, 15: 0}, 12, copied),
		sized([]byte{0x5f, 9: 0}, 7, append(register, id...)),
		sized([]byte{0x42, 9: 0}, 7, unmap),
		sized([]byte{0xa4, 0x0a, 11: 0}, 8, []byte{0, 0, 0, 0, 1, 0, 0, 1}),
		sized([]byte{0x55, 0x10, 9: 0}, 7, append(make([]byte, 8), 0x0a, 10, 4, 0x10, 8, 0, 0, 0, 0xff, 0xff, 0, 0)),
	}
}

// FuzzCDB performs whatever comes: nothing may panic, write outside the device,
// return more than was asked for, or report success for data it did not get.
func FuzzCDB(f *testing.F) {
	for i := range ops {
		cdb := make([]byte, 16)
		copy(cdb, ops[i].usage)
		f.Add(cdb, []byte("parameters parameters parameters parameters"), uint16(64))
		cdb = make([]byte, 16)
		cdb[0], cdb[1] = ops[i].code, ops[i].service
		f.Add(cdb, make([]byte, 1024), uint16(512))
	}
	for _, seed := range parameterSeeds() {
		f.Add(seed.cdb, seed.list, uint16(512))
	}
	f.Fuzz(func(t *testing.T, cdb, out []byte, limit uint16) {
		d := &thin{disk{data: make([]byte, 64<<10)}}
		b := newBench(t, d)
		b.u.opt.Store = &memoryStore{}
		b.n.path.Borrow = func([8]byte) (*Nexus, func()) { return b.n, func() {} }
		for _, write := range []bool{false, true} {
			data := out
			if !write {
				data = nil
			}
			c, got := do(b.n, cdb, data, int64(limit))
			if int64(len(got)) > c.Limit {
				t.Fatalf("CDB %x returned %d bytes, limit %d", c.CDB, len(got), c.Limit)
			}
			if c.Status == CheckCondition && c.SenseLen == 0 {
				t.Fatalf("CDB %x: CHECK CONDITION without sense", c.CDB)
			}
		}
		NoUnit(&Command{CDB: [16]byte(append(bytes.Clone(cdb), make([]byte, 16)...)), In: &sink{}, Limit: int64(limit)}, nil)
	})
}
