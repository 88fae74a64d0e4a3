package embedded

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"testing"

	"pgregory.net/rapid"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// The model: what volumes and snapshots hold, as plain bytes, and for each
// snapshot the regions that were written on either side since its split.
type model struct {
	t     *rapid.T
	tb    testing.TB
	o     Options
	a     *Array
	vols  []*modelVolume
	snaps []*modelSnapshot
	names int
}

type modelVolume struct {
	id   driver.VolumeID
	data []byte
	h    *Volume
}

type modelSnapshot struct {
	id    driver.SnapshotID
	v     *modelVolume
	data  []byte
	dirty map[int]bool
}

const modelSize = 16 * regionSize

func (m *model) check(err error) {
	m.tb.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) n(most int) int { return rapid.IntRange(0, most-1).Draw(m.t, "n") }

func (m *model) volume() *modelVolume { return m.vols[m.n(len(m.vols))] }

func (m *model) snapshot() *modelSnapshot {
	if len(m.snaps) == 0 {
		return nil
	}
	return m.snaps[m.n(len(m.snaps))]
}

func (m *model) name(what string) string {
	m.names++
	return fmt.Sprintf("%s-%d", what, m.names)
}

func (m *model) open(v *modelVolume) {
	var err error
	v.h, err = m.a.OpenVolume(v.id, "model")
	m.check(err)
}

func (m *model) drop(s *modelSnapshot) {
	for i := range m.snaps {
		if m.snaps[i] == s {
			m.snaps = append(m.snaps[:i], m.snaps[i+1:]...)
			return
		}
	}
}

// change writes to a device, or trims it, and to the model of it.
func (m *model) change(d lun.Device, data []byte, dirty ...map[int]bool) {
	off := m.n(len(data)/sector) * sector
	n := min((1+m.n(300))*sector, len(data)-off)
	p := bytes.Repeat([]byte{byte(1 + m.n(250))}, n)
	if m.n(4) == 0 {
		clear(p)
		m.check(d.(lun.Trimmer).Trim(int64(off), int64(n)))
	} else {
		_, err := d.WriteAt(p, int64(off))
		m.check(err)
	}
	copy(data[off:], p)
	for i := off / regionSize; i <= (off+n-1)/regionSize; i++ {
		for _, set := range dirty {
			set[i] = true
		}
	}
}

func (m *model) write() {
	v := m.volume()
	var sets []map[int]bool
	for _, s := range m.snaps {
		if s.v == v {
			sets = append(sets, s.dirty)
		}
	}
	m.change(v.h, v.data, sets...)
}

func (m *model) writeSnapshot() {
	s := m.snapshot()
	if s == nil {
		return
	}
	w, err := m.a.OpenWritable(s.id, "model")
	m.check(err)
	defer w.Close()
	m.change(w, s.data, s.dirty)
}

func (m *model) split() {
	v, tag := m.volume(), driver.Tag(m.name("t"))
	err := m.a.Prepare(m.tb.Context(), []driver.VolumeID{v.id}, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true})
	if k := kindOf(err); err != nil && (k == driver.Busy || k == driver.NotSynchronized) {
		return // all mirrors but one are off
	}
	m.check(err)
	s, err := m.a.Split(m.tb.Context(), tag, v.id)
	m.check(err)
	m.snaps = append(m.snaps, &modelSnapshot{id: s.ID, v: v, data: bytes.Clone(v.data), dirty: map[int]bool{}})
}

func (m *model) resync() {
	s := m.snapshot()
	if s == nil {
		return
	}
	before := m.settled()
	m.check(m.a.Resync(m.tb.Context(), s.id))
	if copied, most := m.settled()-before, int64(len(s.dirty)*regionSize); float64(copied) > 1.05*float64(most) {
		m.t.Fatalf("the resync copied %d bytes of %d changed", copied, most)
	}
	m.drop(s)
}

// settled waits until nothing is copied and says how much was.
func (m *model) settled() int64 {
	for _, v := range m.vols {
		m.check(m.a.WaitInSync(m.tb.Context(), v.id))
	}
	return m.a.copied.Load()
}

func (m *model) turn(fn func(*Array) func(driver.SnapshotID) (driver.Snapshot, error)) {
	s := m.snapshot()
	if s == nil {
		return
	}
	s.v.h.Close()
	old, err := fn(m.a)(s.id)
	m.check(err)
	m.open(s.v)
	was := s.v.data
	s.v.data = make([]byte, len(was)) // it may have grown
	copy(s.v.data, s.data)
	m.drop(s)
	for _, other := range m.snaps {
		if other.v == s.v {
			for i := range s.dirty {
				other.dirty[i] = true
			}
		}
	}
	m.snaps = append(m.snaps, &modelSnapshot{id: old.ID, v: s.v, data: was, dirty: s.dirty})
}

func (m *model) revert() {
	m.turn(func(a *Array) func(driver.SnapshotID) (driver.Snapshot, error) {
		return func(id driver.SnapshotID) (driver.Snapshot, error) { return a.Revert(m.tb.Context(), id) }
	})
}

func (m *model) reverse() {
	m.turn(func(a *Array) func(driver.SnapshotID) (driver.Snapshot, error) {
		return func(id driver.SnapshotID) (driver.Snapshot, error) { return a.Reverse(m.tb.Context(), id) }
	})
}

func (m *model) breakOff() {
	s := m.snapshot()
	if s == nil || len(m.vols) > 3 {
		return
	}
	v, err := m.a.Break(m.tb.Context(), s.id, m.name("v"))
	m.check(err)
	n := &modelVolume{id: v.ID, data: s.data}
	m.open(n)
	m.vols = append(m.vols, n)
	m.drop(s)
}

func (m *model) delete() {
	if s := m.snapshot(); s != nil {
		m.check(m.a.Delete(m.tb.Context(), s.id))
		m.drop(s)
	}
}

func (m *model) grow() {
	v := m.volume()
	if len(v.data) > 2*modelSize {
		return
	}
	v.data = append(v.data, make([]byte, (1+m.n(200))*sector)...)
	_, err := m.a.GrowVolume(m.tb.Context(), v.id, int64(len(v.data)))
	m.check(err)
}

func (m *model) restart() {
	for _, v := range m.vols {
		v.h.Close()
	}
	m.check(m.a.Close())
	var err error
	m.a, err = Open(m.tb.Context(), m.o)
	m.check(err)
	for _, v := range m.vols {
		m.open(v)
	}
}

// changes covers every byte that differs.
func (m *model) changes() {
	s := m.snapshot()
	if s == nil {
		return
	}
	from, to, a, b := s.id, driver.SnapshotID(""), s.data, s.v.data
	if other := m.snapshot(); other.v == s.v && m.n(2) == 0 {
		to, b = other.id, other.data
	}
	c, err := m.a.Changes(m.tb.Context(), s.v.id, from, to)
	m.check(err)
	covered := make([]bool, max(len(a), len(b)))
	for _, x := range c.Regions {
		for i := x.Off; i < x.Off+x.Len; i++ {
			covered[i] = true
		}
	}
	for i := range covered {
		if !covered[i] && (i >= len(a) || i >= len(b) || a[i] != b[i]) {
			m.t.Fatalf("byte %d differs between %q and %q and is not in %+v", i, from, to, c.Regions)
		}
	}
}

func (m *model) verify() {
	for _, v := range m.vols {
		if !bytes.Equal(content(m.tb, v.h), v.data) {
			m.t.Fatalf("volume %s holds something else", v.id)
		}
	}
	for _, s := range m.snaps {
		if !bytes.Equal(snapContent(m.tb, m.a, s.id), s.data) {
			m.t.Fatalf("snapshot %s holds something else", s.id)
		}
	}
}

// Random sequences of all that can be done to volumes and snapshots, against
// the model. The flags of package rapid say how many, and repeat one.
func TestModel(t *testing.T) {
	if checks := flag.Lookup("rapid.checks"); raceEnabled && checks.Value.String() == checks.DefValue {
		flag.Set("rapid.checks", "20") // make test has all of them without the detector
		defer flag.Set("rapid.checks", checks.DefValue)
	}
	rapid.Check(t, func(rt *rapid.T) {
		dir := testDir(t)
		defer os.RemoveAll(dir)
		m := &model{t: rt, tb: t, o: options(dir)}
		var err error
		m.a, err = Open(t.Context(), m.o)
		m.check(err)
		defer func() { m.a.Close() }()
		for _, pools := range [][]string{{"a", "b"}, {"a", "b", "c"}} {
			info, err := m.a.CreateVolume(t.Context(), CreateVolume{Name: m.name("v"), Size: modelSize, Pools: pools})
			m.check(err)
			v := &modelVolume{id: info.ID, data: make([]byte, modelSize)}
			m.open(v)
			m.vols = append(m.vols, v)
		}
		ops := []func(){
			m.write, m.write, m.write, m.split, m.split, m.writeSnapshot, m.resync, m.revert,
			m.reverse, m.breakOff, m.delete, m.grow, m.restart, m.changes, m.changes,
		}
		for range 5 + m.n(25) {
			ops[m.n(len(ops))]()
			m.verify()
		}
		m.settled()
		for _, v := range m.vols {
			if !bytes.HasPrefix(mirrored(t, m.a, v.id), v.data) {
				rt.Fatalf("mirrors of %s hold something else", v.id)
			}
		}
	})
}
