package scsi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/cleave-san/cleave/lun"
)

// holey is a thin disk that tells its trims and writes.
type holey struct {
	thin
	trimmed, written atomic.Int64
}

func (d *holey) Trim(off, n int64) error {
	d.trimmed.Add(n)
	return d.thin.Trim(off, n)
}

func (d *holey) WriteAt(p []byte, off int64) (int, error) {
	d.written.Add(int64(len(p)))
	return d.thin.WriteAt(p, off)
}

// copyBench is two units that one initiator sees.
type copyBench struct {
	*bench
	from, to   *Nexus
	src, dst   *holey
	borrowed   int
	unreleased int
}

func newCopyBench(t testing.TB) *copyBench {
	t.Helper()
	size := 64 << 10 * 16
	b := &copyBench{src: &holey{thin: thin{disk{data: make([]byte, size)}}}, dst: &holey{thin: thin{disk{data: make([]byte, size)}}}}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b.dst.data {
		b.dst.data[i] = byte(r.Uint32())
	}
	for at := 0; at < size; at += 20000 { // data with holes between
		for i := at; i < min(at+9000, size); i++ {
			b.src.data[i] = byte(r.Uint32())
		}
	}
	borrow := func(naa [8]byte) (*Nexus, func()) {
		for _, n := range []*Nexus{b.from, b.to} {
			if n.unit.Identity().NAA() == naa {
				b.borrowed++
				b.unreleased++
				return n, func() { b.unreleased-- }
			}
		}
		return nil, nil
	}
	attach := func(d lun.Device) *Nexus {
		u, err := NewUnit(d, Options{Writable: true})
		if err != nil {
			t.Fatal(err)
		}
		n := u.Attach(Path{Port: Port{Name: "iqn.2026-01.test:a"}, Borrow: borrow})
		n.takeAttention()
		return n
	}
	b.from, b.to = attach(b.src), attach(b.dst)
	b.bench = &bench{t, b.from.unit, b.from}
	t.Cleanup(func() {
		if b.unreleased != 0 {
			t.Errorf("%d units are still held", b.unreleased)
		}
	})
	return b
}

func cscdOf(id lun.Identity, block int) []byte {
	d := make([]byte, cscdLen)
	naa := id.NAA()
	d[0], d[4], d[5], d[7] = identificationCSCD, binaryCode, typeNAA, 8
	copy(d[8:], naa[:])
	d[29], d[30], d[31] = byte(block>>16), byte(block>>8), byte(block)
	return d
}

func blocks(from, to, n uint16, fromLBA, toLBA uint64) []byte {
	d := make([]byte, blockSegmentLen)
	d[0], d[3] = blockToBlock, blockSegmentLen-4
	binary.BigEndian.PutUint16(d[4:], from)
	binary.BigEndian.PutUint16(d[6:], to)
	binary.BigEndian.PutUint16(d[10:], n)
	binary.BigEndian.PutUint64(d[12:], fromLBA)
	binary.BigEndian.PutUint64(d[20:], toLBA)
	return d
}

func copyParams(id, usage byte, cscds, segments [][]byte) []byte {
	c, s := bytes.Join(cscds, nil), bytes.Join(segments, nil)
	p := make([]byte, copyHead)
	p[0], p[1] = id, usage<<3
	binary.BigEndian.PutUint16(p[2:], uint16(len(c)))
	binary.BigEndian.PutUint32(p[8:], uint32(len(s)))
	return append(append(p, c...), s...)
}

func xcopy(n *Nexus, p []byte) *Command {
	cdb := make([]byte, 16)
	cdb[0] = 0x83
	binary.BigEndian.PutUint32(cdb[10:], uint32(len(p)))
	c, _ := do(n, cdb, p, 0)
	return c
}

func (b *copyBench) both() [][]byte {
	return [][]byte{cscdOf(b.from.unit.Identity(), 512), cscdOf(b.to.unit.Identity(), 512)}
}

// copyStatus is RECEIVE COPY STATUS: status, segments and bytes.
func copyStatus(n *Nexus, id byte) (c *Command, status byte, segments uint16, count uint32) {
	cdb := make([]byte, 16)
	cdb[0], cdb[2], cdb[13] = 0x84, id, 255
	c, got := do(n, cdb, nil, 255)
	if len(got) != 12 {
		return c, 0, 0, 0
	}
	return c, got[4], binary.BigEndian.Uint16(got[5:]), binary.BigEndian.Uint32(got[8:])
}

func TestCopy(t *testing.T) {
	b := newCopyBench(t)
	before := bytes.Clone(b.dst.data)
	b.good(xcopy(b.from, copyParams(7, 0, b.both(), [][]byte{blocks(0, 1, 1000, 3, 100), blocks(0, 1, 0, 0, 0), blocks(0, 1, 1, 2047, 2047)})))
	if !bytes.Equal(b.dst.data[100*512:1100*512], b.src.data[3*512:1003*512]) || !bytes.Equal(b.dst.data[2047*512:], b.src.data[2047*512:]) {
		t.Error("copied something else")
	}
	if !bytes.Equal(b.dst.data[:100*512], before[:100*512]) || !bytes.Equal(b.dst.data[1100*512:2047*512], before[1100*512:2047*512]) {
		t.Error("wrote beside the range")
	}
	if b.dst.trimmed.Load() < 200<<10 || b.dst.written.Load() > 320<<10 {
		t.Errorf("%d bytes trimmed, %d written: holes are to stay holes", b.dst.trimmed.Load(), b.dst.written.Load())
	}
	c, status, segments, n := copyStatus(b.from, 7)
	b.good(c)
	if status != copyDone || segments != 3 || n != 1001*512 {
		t.Errorf("status %d, %d segments, %d bytes", status, segments, n)
	}
	// Another initiator has its own list identifiers.
	c, _, _, _ = copyStatus(b.initiator("other"), 7)
	b.want(c, invalidFieldInCDB)
	b.u.Reset()
	told(b.from)
	c, _, _, _ = copyStatus(b.from, 7)
	b.want(c, invalidFieldInCDB)
}

// A copy within one unit that overlaps is as if all was read first.
func TestCopyOverlaps(t *testing.T) {
	for _, to := range []uint64{9, 700, 1500} {
		b := newCopyBench(t)
		want := bytes.Clone(b.dst.data)
		copy(want[to*512:], b.dst.data[10*512 : 1100*512][:min(1090*512, len(want)-int(to)*512)])
		n := uint16(min(1090, 2048-to))
		b.good(xcopy(b.to, copyParams(0, usageNone, b.both(), [][]byte{blocks(1, 1, n, 10, to)})))
		if !bytes.Equal(b.dst.data, want) {
			t.Errorf("to block %d: wrong", to)
		}
	}
}

func TestCopyRefuses(t *testing.T) {
	b := newCopyBench(t)
	before := bytes.Clone(b.dst.data)
	one := blocks(0, 1, 8, 0, 0)
	list := func(damage func(p []byte)) []byte {
		p := copyParams(1, 0, b.both(), [][]byte{one})
		damage(p)
		return p
	}
	many := func(cscds, segments int) []byte {
		var c, s [][]byte
		for range cscds {
			c = append(c, b.both()[0])
		}
		for range segments {
			s = append(s, blocks(0, 0, 1, 0, 0))
		}
		return copyParams(1, 0, c, s)
	}
	stranger := cscdOf(lun.NewIdentity(), 512)
	for name, c := range map[string]struct {
		list []byte
		want Code
	}{
		"nothing":                {nil, noSense},
		"a short header":         {make([]byte, 15), listLengthError},
		"list usage":             {list(func(p []byte) { p[1] = 1 << 3 }), invalidFieldInList},
		"identifier without use": {list(func(p []byte) { p[1] = 3 << 3 }), invalidFieldInList},
		"inline data":            {list(func(p []byte) { p[15] = 1 }), inlineTooLong},
		"lists longer than sent": {list(func(p []byte) { p[11] += 28 }), listLengthError},
		"lists of 4 GiB":         {list(func(p []byte) { p[8], p[9] = 0xff, 0xff }), listLengthError},
		"another descriptor":     {list(func(p []byte) { p[16] = 0xe0 }), unsupportedTarget},
		"a tape":                 {list(func(p []byte) { p[17] = 0x01 }), invalidFieldInList},
		"another block length":   {list(func(p []byte) { p[16+30] = 0x10 }), invalidFieldInList},
		"another segment":        {list(func(p []byte) { p[16+64] = 0x03 }), unsupportedSegment},
		"a segment's length":     {list(func(p []byte) { p[16+64+3] = 0x17 }), invalidFieldInList},
		"index past the list":    {list(func(p []byte) { p[16+64+7] = 2 }), unreachableTarget},
		"a name for a number":    {list(func(p []byte) { p[16+5] = typeT10 }), unreachableTarget},
		"the target's NAA":       {list(func(p []byte) { p[16+5] |= ofTarget }), unreachableTarget},
		"past the source":        {list(func(p []byte) { p[16+64+18] = 0xff }), copyAborted},
		"past the destination":   {list(func(p []byte) { p[16+64+20] = 0xff }), copyAborted},
		"too many descriptors":   {many(maxCSCDs+1, 1), tooManyTargets},
		"too many segments":      {many(1, maxSegments+1), tooManySegments},
		"too many of both":       {many(maxCSCDs+1, maxSegments+1), listLengthError},
		"a unit not seen":        {copyParams(1, 0, [][]byte{b.both()[0], stranger}, [][]byte{one}), targetNotReachable},
	} {
		got := xcopy(b.from, c.list)
		if code := Code(got.Sense[2])<<16 | Code(got.Sense[12])<<8 | Code(got.Sense[13]); c.want != code || (code == noSense) != (got.Status == Good) {
			t.Errorf("%s: status %#x, %06x, want %06x", name, got.Status, code, c.want)
		}
	}
	// A list whose second segment is wrong copies nothing of the first.
	b.want(xcopy(b.from, copyParams(1, 0, b.both(), [][]byte{one, blocks(0, 1, 8, 1<<40, 0)})), copyAborted)
	if !bytes.Equal(before, b.dst.data) {
		t.Error("a copy that was refused has written")
	}
	_, status, _, _ := copyStatus(b.from, 1)
	if status != copyFailed {
		t.Errorf("status %d", status)
	}
}

// A copy may do on either end what the initiator itself may do there.
func TestCopyIsNoWayAround(t *testing.T) {
	b := newCopyBench(t)
	before := bytes.Clone(b.dst.data)
	params := copyParams(1, 0, b.both(), [][]byte{blocks(0, 1, 8, 0, 0)})
	back := copyParams(1, 0, b.both(), [][]byte{blocks(1, 0, 8, 0, 0)})
	refused := func(why string, p []byte) {
		t.Helper()
		if c := xcopy(b.from, p); c.Status != CheckCondition || c.Sense[2] != keyCopyAborted {
			t.Errorf("%s: status %#x sense %x", why, c.Status, c.Sense[:c.SenseLen])
		}
		told(b.from)
	}
	b.to.readOnly.Store(true)
	refused("mask", params)
	b.to.readOnly.Store(false)
	b.to.unit.SetWritable(false)
	refused("write protection", params)
	b.to.unit.SetWritable(true)
	b.to.unit.swp.Store(true)
	refused("software write protection", params)
	b.to.unit.swp.Store(false)
	if err := b.to.unit.SetPortGroups([]PortGroup{{ID: 1, Ports: []uint16{1}, State: Standby}}); err != nil {
		t.Fatal(err)
	}
	refused("standby", params)
	if err := b.to.unit.SetPortGroups(defaultGroups()); err != nil {
		t.Fatal(err)
	}
	other := b.to.unit.Attach(Path{Port: Port{Name: "iqn.2026-01.test:b"}})
	told(other)
	b.good(prOut(other, prRegister, 0, 0, 1, 0), prOut(other, prReserve, writeExclusive, 1, 0, 0))
	refused("a reservation of the destination", params)
	b.good(xcopy(b.from, back)) // reading is allowed
	b.good(prOut(other, prRelease, writeExclusive, 1, 0, 0), prOut(other, prReserve, exclusiveAccess, 1, 0, 0))
	refused("a reservation of the source", back)
	if !bytes.Equal(before, b.dst.data) {
		t.Error("written in spite of it")
	}
}

func TestCopyOfAFailingDevice(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Code
	}{{errors.New("cable pulled"), thirdPartyFailure}, {lun.ErrNoSpace, spaceFailed}} {
		b := newCopyBench(t)
		b.dst.fail = c.err
		b.want(xcopy(b.from, copyParams(1, 0, b.both(), [][]byte{blocks(0, 1, 8, 0, 0)})), c.want)
	}
}

// PREEMPT AND ABORT does not return while a copy of the victim's is inside the
// device, though it came by another unit.
func TestPreemptWaitsForCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, hangs := range []bool{false, true} {
			b := newCopyBench(t)
			d := &heldDevice{Device: b.dst, hold: make(chan struct{})}
			b.to.unit.dev, b.to.unit.trim = d, nil
			fence := b.to.unit.Attach(Path{Port: Port{Name: "iqn.2026-01.test:fence"}})
			told(fence)
			b.good(prOut(fence, prRegister, 0, 0, 1, 0), prOut(b.to, prRegister, 0, 0, 2, 0))
			copied, fenced := make(chan *Command, 1), make(chan *Command, 1)
			go func() { copied <- xcopy(b.from, copyParams(1, 0, b.both(), [][]byte{blocks(0, 1, 8, 0, 0)})) }()
			synctest.Wait()
			go func() { fenced <- prOut(fence, prPreemptAbort, writeExclusive, 1, 2, 0) }()
			synctest.Wait()
			if len(fenced) > 0 {
				t.Error("fenced while the copy still writes")
			}
			if hangs {
				b.want(<-fenced, internalFailure) // after its patience
			}
			close(d.hold)
			<-copied
			if !hangs {
				b.good(<-fenced)
			}
		}
	})
}

// heldDevice lets writes wait.
type heldDevice struct {
	lun.Device
	hold chan struct{}
}

func (d *heldDevice) WriteAt(p []byte, off int64) (int, error) {
	<-d.hold
	return d.Device.WriteAt(p, off)
}

// TestPagesAreReadByOthers has sg3-utils read our VPD pages.
func TestPagesAreReadByOthers(t *testing.T) {
	if _, err := exec.LookPath("sg_vpd"); err != nil {
		t.Skip("sg_vpd is not installed (Debian package sg3-utils)")
	}
	u, err := NewUnit(&thin{disk{data: make([]byte, 1<<20)}}, Options{Target: "iqn.2026-01.test:t", Groups: twoGroups})
	if err != nil {
		t.Fatal(err)
	}
	for code, want := range map[byte][]string{
		0x00: {"Third party copy"},
		0x80: {u.Identity().Serial()},
		0x83: {u.Identity().NAAString()[4:], "Relative target port: 0x2", "Target port group: 0x2", "iqn.2026-01.test:t,t,0x0002"},
		0x86: {"SIMPSUP=1", "V_SUP=1"},
		0x8f: {"Extended copy(LID1)", "Copy status", "Operating parameters", "Maximum CSCD descriptor count: 32", "Maximum segment descriptor count: 32",
			"Maximum segment length: 67108864"},
		0xb0: {"Maximum compare and write length: 255", "Unmap granularity alignment valid: true"},
		0xb1: {"Non-rotating"},
		0xb2: {"Unmap command supported (LBPU): 1", "thin provisioned"},
	} {
		hex := t.TempDir() + "/page"
		var text strings.Builder
		for _, b := range u.vpd(code, 2) {
			text.WriteString(" " + string("0123456789abcdef"[b>>4]) + string("0123456789abcdef"[b&15]))
		}
		if err := os.WriteFile(hex, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("sg_vpd", "--inhex="+hex).CombinedOutput()
		if err != nil {
			t.Errorf("page %#x: %v: %s", code, err, out)
		}
		for _, w := range want {
			if !strings.Contains(strings.ToLower(string(out)), strings.ToLower(w)) {
				t.Errorf("page %#x: %q is not in\n%s", code, w, out)
			}
		}
	}
}
