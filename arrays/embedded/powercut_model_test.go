package embedded

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// The model knows of every sector of every device what it may hold after a cut:
// every write has a number, and every sector that it wrote says which one it was
// (see stamp). A sector holds the last write that was acknowledged before a Sync
// that has returned, or any later one.
type pcModel struct {
	mu     sync.RWMutex
	ops    []pcOp // by number; 0 is the zeroes that a device is made of
	vols   []*pcDevice
	splits []*pcSplit
	swap   *pcSwap // under way
	nextID uint32
}

// pcSwap is a revert, reversal or break: it happens wholly or not at all.
type pcSwap struct {
	// Exactly one of gone and come is there, where they are not nil.
	gone, come *pcDevice
	// turned hold their other content, all of them or none; with come, if and
	// only if that is there.
	turned []*pcDevice
}

type pcOp struct {
	zero, acked bool
}

// pcDevice is a volume, or the content of a split.
type pcDevice struct {
	id   uint32 // in its sectors
	name string
	// hist is the numbers of the writes to each sector, in order. No two writes
	// to one sector are under way at once.
	hist [][]uint32
	// floor is for each sector the last of them that is stable. It is replaced,
	// never changed.
	floor []uint32
	other *pcContent // what it may hold as well, while a swap is under way
	want  []string   // pools of the mirrors that a volume is to have
	// Lifecycle: it has to be there once it is there and until it is going, and
	// must not before begun and after gone.
	begun, there, going, gone bool
}

// pcContent is what a device has been written.
type pcContent struct {
	hist  [][]uint32
	floor []uint32
}

func (d *pcDevice) content() pcContent { return pcContent{d.hist, d.floor} }

// pcSplit is a group split.
type pcSplit struct {
	tag     driver.Tag
	members []*pcMember
	last    uint32 // number of the last write issued before the split returned; 0 while it has not
}

type pcMember struct {
	pcDevice
	of    *pcDevice
	snap  driver.SnapshotID
	acked []uint32 // for each sector what was acknowledged before the split began
}

func newPCModel() *pcModel { return &pcModel{ops: make([]pcOp, 1)} }

func (m *pcModel) newDevice(name string, sectors int) *pcDevice {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nextID++
	d := &pcDevice{id: m.nextID, name: name, floor: make([]uint32, sectors), begun: true}
	for range sectors {
		d.hist = append(d.hist, []uint32{0})
	}
	m.vols = append(m.vols, d)
	return d
}

// set changes the model's lifecycle flags.
func (m *pcModel) set(fn func()) {
	m.mu.Lock()
	fn()
	m.mu.Unlock()
}

// issue numbers a write to n sectors from first on.
func (m *pcModel) issue(d *pcDevice, first, n int, zero bool) uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := uint32(len(m.ops))
	m.ops = append(m.ops, pcOp{zero: zero})
	for i := first; i < first+n; i++ {
		d.hist[i] = append(d.hist[i], k)
	}
	return k
}

func (m *pcModel) ack(k uint32) { m.set(func() { m.ops[k].acked = true }) }

// acked is for each sector the last write that was acknowledged.
func (m *pcModel) acked(d *pcDevice) []uint32 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]uint32, len(d.hist))
	for i, h := range d.hist {
		j := len(h) - 1
		for j > 0 && !m.ops[h[j]].acked {
			j--
		}
		out[i] = h[j]
	}
	return out
}

// synced says that a Sync has returned that began when acked was asked for.
func (m *pcModel) synced(d *pcDevice, acked []uint32) {
	m.set(func() {
		floor := slices.Clone(d.floor)
		for i, k := range acked {
			floor[i] = max(floor[i], k)
		}
		d.floor = floor
	})
}

func (m *pcModel) grow(d *pcDevice, sectors int) {
	m.set(func() {
		for len(d.hist) < sectors {
			d.hist = append(d.hist, []uint32{0})
		}
		floor := make([]uint32, sectors)
		copy(floor, d.floor)
		d.floor = floor
	})
}

// stamp makes what write k leaves in a sector of a device.
func stamp(b []byte, device uint32, index int, k uint32) {
	x := uint64(device)<<40 ^ uint64(index)<<8
	for w := range sector / 8 {
		v := uint64(k)
		if w > 0 {
			v = bits.RotateLeft64((x+uint64(w))*0x9e3779b97f4a7c15, w) ^ uint64(k)*0xd6e8feb86659fd93
		}
		binary.LittleEndian.PutUint64(b[8*w:], v)
	}
}

// pcExpect is what a cut may leave: what the model said before it and after it.
type pcExpect struct {
	m       *pcModel
	swap    *pcSwap // under way before and after
	ceiling uint32
	vols    []pcExpectDevice
	splits  []pcExpectSplit
	damaged bool // more than a loss of power: all may have to be compared
}

type pcExpectDevice struct {
	d             *pcDevice
	contents      []pcContent // any of these
	must, may     bool
	there0, gone0 bool
	// found is set by the check: which of the contents it may be, and whether
	// it is there.
	found [2]bool
	there bool
}

type pcExpectSplit struct {
	s       *pcSplit
	last    uint32
	whole   bool // no member of it was being given back
	members []pcExpectDevice
	// sources is what was written to the members' volumes. They may have got
	// another content by the time that the cut is looked at.
	sources [][][]uint32
}

// sources is what was written to the volumes of a split.
func (s *pcSplit) sources() (hists [][][]uint32) {
	for _, k := range s.members {
		hists = append(hists, k.of.hist)
	}
	return hists
}

// before begins an expectation, and after ends it: the cut comes between.
func (m *pcModel) before() *pcExpect {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e := &pcExpect{m: m, swap: m.swap}
	for _, d := range m.vols {
		e.vols = append(e.vols, d.before())
	}
	for _, s := range m.splits {
		x := pcExpectSplit{s: s, sources: s.sources()}
		for _, k := range s.members {
			x.members = append(x.members, k.before())
		}
		e.splits = append(e.splits, x)
	}
	return e
}

func (d *pcDevice) before() pcExpectDevice {
	x := pcExpectDevice{d: d, there0: d.there, gone0: d.gone}
	x.add()
	return x
}

// add adds what the device may hold now.
func (x *pcExpectDevice) add() {
	x.contents = append(x.contents, x.d.content())
	if x.d.other != nil {
		x.contents = append(x.contents, *x.d.other)
	}
}

// known: what is in it was found out already.
func (x *pcExpectDevice) known() bool { return x.contents[len(x.contents)-1].floor != nil }

// same reports whether nothing was put in the place of what there was.
func (x *pcExpectDevice) same() bool {
	c, d := x.contents[0], x.d.content()
	return len(c.hist) == len(d.hist) && (len(c.hist) == 0 || &c.hist[0] == &d.hist[0])
}

func (x *pcExpectDevice) after() {
	x.must, x.may = x.there0 && !x.d.going, x.d.begun && !x.gone0
	if !x.same() {
		x.add()
	}
}

func (e *pcExpect) after() {
	m := e.m
	m.mu.RLock()
	defer m.mu.RUnlock()
	e.ceiling = uint32(len(m.ops) - 1)
	if m.swap != e.swap {
		e.swap = nil
	}
	for i := range e.vols {
		e.vols[i].after()
	}
	for _, d := range m.vols[len(e.vols):] {
		x := pcExpectDevice{d: d}
		x.add()
		x.after()
		e.vols = append(e.vols, x)
	}
	for _, s := range m.splits[len(e.splits):] {
		x := pcExpectSplit{s: s, sources: s.sources()}
		for _, k := range s.members {
			y := pcExpectDevice{d: &k.pcDevice}
			y.add()
			x.members = append(x.members, y)
		}
		e.splits = append(e.splits, x)
	}
	for i := range e.splits {
		x := &e.splits[i]
		x.last, x.whole = x.s.last, true
		for j := range x.members {
			x.members[j].after()
			x.whole = x.whole && !x.members[j].d.going
		}
	}
}

// observe finds out which write each sector of a device's content holds. id is
// the device that the sectors were stamped for, before it was split.
func (m *pcModel) observe(content []byte, ids ...uint32) ([]uint32, error) {
	out := make([]uint32, len(content)/sector)
	want := make([]byte, sector)
	for i := range out {
		b := content[i*sector : (i+1)*sector]
		k := uint32(binary.LittleEndian.Uint64(b))
		if k == 0 && string(b) == string(emptySector[:]) {
			continue
		}
		match := false
		for _, id := range ids {
			stamp(want, id, i, k)
			match = match || string(b) == string(want)
		}
		if !match {
			return nil, fmt.Errorf("sector %d holds no whole write (it begins with %x)", i, b[:16])
		}
		out[i] = k
	}
	return out, nil
}

// resolve returns which of a sector's writes from low to high is seen. Of
// several that left zeroes it is the last.
func (m *pcModel) resolve(hist []uint32, seen, low, high uint32) (uint32, bool) {
	for i := len(hist) - 1; i >= 0 && hist[i] >= low; i-- {
		if k := hist[i]; k <= high && (k == seen || seen == 0 && m.zeroes(k)) {
			return k, true
		}
	}
	return 0, false
}

func (m *pcModel) zeroes(k uint32) bool { return k == 0 || m.ops[k].zero }

// checkContent compares a device with what it may hold.
func (e *pcExpect) checkContent(x *pcExpectDevice, content []byte) (err error) {
	seen, err := e.m.observe(content, x.d.id)
	if err != nil {
		return fmt.Errorf("%s: %w", x.d.name, err)
	}
	for i, c := range x.contents {
		cerr := e.holds(c, seen)
		if i < len(x.found) {
			x.found[i] = cerr == nil
		}
		if cerr == nil {
			err = nil
			if e.swap == nil {
				return nil
			}
		} else if i == 0 {
			err = fmt.Errorf("%s: %w", x.d.name, cerr)
		}
	}
	return err
}

func (e *pcExpect) holds(c pcContent, seen []uint32) error {
	if n := len(seen); n < len(c.floor) || n > len(c.hist) {
		return fmt.Errorf("it has %d sectors, and should have %d to %d", n, len(c.floor), len(c.hist))
	}
	m := e.m
	m.mu.RLock()
	defer m.mu.RUnlock()
	for i, k := range seen {
		low := uint32(0)
		if i < len(c.floor) {
			low = c.floor[i]
		}
		if _, ok := m.resolve(c.hist[i], k, low, e.ceiling); !ok {
			return fmt.Errorf("sector %d holds write %d; stable is %d, and up to %d there are %v", i, k, low, e.ceiling, c.hist[i])
		}
	}
	return nil
}

// checkSwap wants a swap whole or absent.
func (e *pcExpect) checkSwap() error {
	if e.swap == nil {
		return nil
	}
	find := func(d *pcDevice) *pcExpectDevice {
		for i := range e.vols {
			if e.vols[i].d == d {
				return &e.vols[i]
			}
		}
		for i := range e.splits {
			for j := range e.splits[i].members {
				if x := &e.splits[i].members[j]; x.d == d {
					return x
				}
			}
		}
		return nil
	}
	may := [2]bool{true, true} // before it, after it
	if e.swap.gone != nil {
		gone, come := find(e.swap.gone).there, find(e.swap.come).there
		if gone == come {
			return fmt.Errorf("%s and %s: there: %v and %v, and should be one of them", e.swap.gone.name, e.swap.come.name, gone, come)
		}
		may = [2]bool{gone, come}
	}
	for _, d := range e.swap.turned {
		x := find(d)
		may[0], may[1] = may[0] && x.found[0], may[1] && x.found[1]
	}
	if !may[0] && !may[1] {
		return fmt.Errorf("half of an exchange of %s", e.swap.turned[0].name)
	}
	return nil
}

// pcZones is how many writers there are during a split: all but the last write
// all the time.
const pcZones = 3

// zone is which of the concurrent writers may write to a sector.
func zone(i int) int { return i / 64 % pcZones }

// checkSplit compares a group that was split with what was written before and
// during the split: what was acknowledged before it began is in it, nothing that
// was issued after it returned is, and of each writer a prefix. sources is what
// was written to its volumes.
func (m *pcModel) checkSplit(s *pcSplit, sources [][][]uint32, ceiling uint32, contents [][]byte) (exact [][]uint32, err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var newest [pcZones]uint32 // of each writer
	var seen [][]uint32
	for j, k := range s.members {
		// Sectors keep the stamp of the volume that was split.
		got, err := m.observe(contents[j], k.of.id)
		if err != nil {
			return nil, fmt.Errorf("split %s of %s: %w", s.tag, k.of.name, err)
		}
		if len(got) != len(k.acked) {
			return nil, fmt.Errorf("split %s of %s has %d sectors, and should have %d", s.tag, k.of.name, len(got), len(k.acked))
		}
		seen, exact = append(seen, got), append(exact, make([]uint32, len(got)))
		for i, v := range got {
			w, ok := m.resolve(sources[j][i], v, k.acked[i], ceiling)
			if !ok {
				return nil, fmt.Errorf("split %s of %s: sector %d holds write %d; %d was acknowledged before, %d was the last issued, of %v", s.tag, k.of.name, i, v, k.acked[i], ceiling, sources[j][i])
			}
			exact[j][i] = w
			newest[zone(i)] = max(newest[zone(i)], v) // zeroes don't say
		}
	}
	for j, k := range s.members {
		for i, v := range seen[j] {
			if c := newest[zone(i)]; !m.inPrefix(sources[j][i], v, exact[j][i], c) {
				return nil, fmt.Errorf("split %s of %s: no prefix: it has write %d of a writer, and sector %d holds %d of %v", s.tag, k.of.name, c, i, v, sources[j][i])
			}
		}
	}
	return exact, nil
}

// inPrefix reports whether a sector may hold v where c is the newest write known
// to be in the split: it is the sector's last up to c, or the one before if that
// is c itself, which the array may have done in several steps. Zeroes may be
// newer than c; last is the last write that v may be.
func (m *pcModel) inPrefix(hist []uint32, v, last, c uint32) bool {
	i := len(hist) - 1
	for i > 0 && hist[i] > c { // the first was there before any writer
		i--
	}
	same := func(k uint32) bool { return k == v || v == 0 && m.zeroes(k) }
	return same(hist[i]) || hist[i] == c && i > 0 && same(hist[i-1]) || v == 0 && last > c
}

// done gives the members of a split that has returned their content.
func (m *pcModel) done(s *pcSplit, exact [][]uint32, snaps []driver.Snapshot) {
	m.set(func() {
		for j, k := range s.members {
			k.id, k.floor, k.there = k.of.id, exact[j], true
			k.hist = make([][]uint32, len(exact[j]))
			for i, v := range exact[j] {
				k.hist[i] = []uint32{v}
			}
			k.snap = snaps[j].ID
		}
	})
}

func readAll(d lun.Device) ([]byte, error) {
	b := make([]byte, d.Size())
	_, err := d.ReadAt(b, 0)
	return b, err
}
