package scsi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cleave-san/cleave/lun"
)

// memoryStore is a Store that fails on demand.
type memoryStore struct {
	kept map[lun.Identity][]byte
	fail error
}

func (s *memoryStore) Load(id lun.Identity) ([]byte, error) { return s.kept[id], s.fail }

func (s *memoryStore) Save(id lun.Identity, b []byte) error {
	if s.fail != nil {
		return s.fail
	}
	if s.kept == nil {
		s.kept = map[lun.Identity][]byte{}
	}
	if s.kept[id] = bytes.Clone(b); len(b) == 0 {
		delete(s.kept, id)
	}
	return nil
}

// prBench has initiators that are used to unit attentions.
type prBench struct {
	*bench
	store *memoryStore
}

var twoGroups = []PortGroup{{ID: 1, Ports: []uint16{1}}, {ID: 2, Ports: []uint16{2}}}

func newPRBench(t testing.TB) *prBench {
	t.Helper()
	st := &memoryStore{}
	return &prBench{restart(t, &disk{data: make([]byte, 1<<20)}, lun.NewIdentity(), st), st}
}

// restart is a unit as it is after a restart of the process.
func restart(t testing.TB, d lun.Device, id lun.Identity, st Store) *bench {
	t.Helper()
	u, err := NewUnit(d, Options{Writable: true, Identity: id, Store: st, Groups: twoGroups})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t, u, nil}
	b.n = b.initiator("a")
	return b
}

// by attaches an initiator by a target port.
func (b *bench) by(name string, port uint16) *Nexus {
	n := b.u.Attach(Path{Port: Port{Name: "iqn.2026-01.test:" + name}, TargetPort: port})
	n.takeAttention()
	return n
}

const (
	flagAPTPL    = 0x01
	flagAllPorts = 0x04
	flagSpecify  = 0x08
)

// prOut performs PERSISTENT RESERVE OUT; ids are the TransportIDs of SPEC_I_PT.
func prOut(n *Nexus, action, kind byte, key, newKey uint64, flags byte, ids ...[]byte) *Command {
	p := make([]byte, 24)
	binary.BigEndian.PutUint64(p, key)
	binary.BigEndian.PutUint64(p[8:], newKey)
	p[20] = flags
	if flags&flagSpecify != 0 {
		all := slices.Concat(ids...)
		p = append(binary.BigEndian.AppendUint32(p, uint32(len(all))), all...)
	}
	return prOutRaw(n, action, kind, p)
}

func prOutRaw(n *Nexus, action, kind byte, p []byte) *Command {
	cdb := []byte{0x5f, action, kind, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(cdb[5:], uint32(len(p)))
	c, _ := do(n, cdb, p, 0)
	return c
}

func (b *bench) good(cs ...*Command) {
	b.t.Helper()
	for _, c := range cs {
		b.want(c, noSense)
	}
}

func (b *bench) conflicts(cs ...*Command) {
	b.t.Helper()
	for _, c := range cs {
		if c.Status != ReservationConflict {
			b.t.Errorf("CDB %x: status %#x sense %x, want RESERVATION CONFLICT", c.CDB, c.Status, c.Sense[:c.SenseLen])
		}
	}
}

func prIn(n *Nexus, action byte) []byte {
	_, got := do(n, []byte{0x5e, action, 0, 0, 0, 0, 0, 0x10, 0, 0}, nil, 4096)
	return got
}

// keys is READ KEYS.
func keys(n *Nexus) (out []uint64) {
	got := prIn(n, prReadKeys)
	for at := 8; at < len(got); at += 8 {
		out = append(out, binary.BigEndian.Uint64(got[at:]))
	}
	return out
}

// heldBy is READ RESERVATION: type and key.
func heldBy(n *Nexus) (kind byte, key uint64) {
	got := prIn(n, prReadReservation)
	if len(got) < 24 {
		return 0, 0
	}
	return got[21], binary.BigEndian.Uint64(got[8:])
}

// told is the unit attention that a nexus has, if any.
func told(n *Nexus) Code {
	c, _ := n.takeAttention()
	return c
}

func read1(n *Nexus) Status {
	c, _ := do(n, cdb10(0x28, 0, 1), nil, 512)
	return c.Status
}

func write1(n *Nexus) Status {
	c, _ := do(n, cdb10(0x2a, 0, 1), make([]byte, 512), 0)
	return c.Status
}

// TestReservationTypes is SPC-4's table of who may do what, for all types.
func TestReservationTypes(t *testing.T) {
	const yes, no = Good, ReservationConflict
	for _, row := range []struct {
		kind                               byte
		regRead, regWrite, others, othersW Status
	}{
		{writeExclusive, yes, no, yes, no},
		{exclusiveAccess, no, no, no, no},
		{writeExclusiveRO, yes, yes, yes, no},
		{exclusiveAccessRO, yes, yes, no, no},
		{writeExclusiveAllReg, yes, yes, yes, no},
		{exclusiveAccessAll, yes, yes, no, no},
	} {
		t.Run(fmt.Sprint(row.kind), func(t *testing.T) {
			b := newPRBench(t)
			reg, other := b.initiator("reg"), b.initiator("other")
			b.good(prOut(b.n, prRegister, 0, 0, 1, 0), prOut(reg, prRegister, 0, 0, 2, 0),
				prOut(b.n, prReserve, row.kind, 1, 0, 0), prOut(b.n, prReserve, row.kind, 1, 0, 0))
			for _, c := range []struct {
				who       string
				n         *Nexus
				get, want Status
			}{
				{"holder reads", b.n, read1(b.n), yes}, {"holder writes", b.n, write1(b.n), yes},
				{"registrant reads", reg, read1(reg), row.regRead}, {"registrant writes", reg, write1(reg), row.regWrite},
				{"other reads", other, read1(other), row.others}, {"other writes", other, write1(other), row.othersW},
			} {
				if c.get != c.want {
					t.Errorf("%s: status %#x, want %#x", c.who, c.get, c.want)
				}
			}
			// What everybody may do.
			for _, cdb := range [][]byte{{0}, {0x12, 4: 36}, {0xa0, 9: 64}, {0x25, 9: 0}, {0x1b, 4: 1}, {0x1e}, {0xa3, 0x0a, 9: 64}} {
				if c, _ := do(other, cdb, nil, 64); c.Status != Good {
					t.Errorf("CDB %x of another: status %#x", cdb, c.Status)
				}
			}
			// What nobody else may: stop, prevent, sync, unmap, compare and write.
			for _, cdb := range [][]byte{{0x1b, 4: 0}, {0x1e, 4: 1}, cdb10(0x35, 0, 0), {0x89, 13: 1}, {0x83}, {0xa4, 0x0a}} {
				c, _ := do(other, cdb, nil, 0)
				b.conflicts(c)
			}
			kind, key := heldBy(other)
			if want := uint64(1); kind != row.kind || !allRegistrants(row.kind) && key != want || allRegistrants(row.kind) && key != 0 {
				t.Errorf("READ RESERVATION: type %d key %d", kind, key)
			}
		})
	}
}

func TestRelease(t *testing.T) {
	b := newPRBench(t)
	reg := b.initiator("reg")
	b.good(prOut(b.n, prRegister, 0, 0, 1, 0), prOut(reg, prRegister, 0, 0, 2, 0), prOut(b.n, prReserve, writeExclusive, 1, 0, 0))
	b.want(prOut(b.n, prRelease, exclusiveAccess, 1, 0, 0), invalidRelease)
	b.good(prOut(reg, prRelease, writeExclusive, 2, 0, 0))
	if k, _ := heldBy(reg); k != writeExclusive {
		t.Error("released by one who does not hold it")
	}
	b.good(prOut(b.n, prRelease, writeExclusive, 1, 0, 0))
	if c := told(reg); c != noSense {
		t.Errorf("a write exclusive reservation's end is not told; %06x", c)
	}
	b.good(prOut(b.n, prReserve, writeExclusiveRO, 1, 0, 0), prOut(b.n, prRelease, writeExclusiveRO, 1, 0, 0))
	if c := told(reg); c != reservationsReleased {
		t.Errorf("told %06x", c)
	}
}

func TestRegister(t *testing.T) {
	b := newPRBench(t)
	b.conflicts(prOut(b.n, prRegister, 0, 7, 1, 0))    // not registered, so the key has to be 0
	b.good(prOut(b.n, prRegister, 0, 0, 0, 0))         // nothing to do
	b.conflicts(prOut(b.n, prReserve, 1, 0, 0, 0))     // not registered
	b.good(prOut(b.n, prRegister, 0, 0, 1, 0))         //
	b.conflicts(prOut(b.n, prRegister, 0, 0, 1, 0))    // registered, so its key is needed
	b.good(prOut(b.n, prRegister, 0, 1, 2, 0))         // another key
	b.good(prOut(b.n, prRegisterIgnore, 0, 99, 3, 0))  //
	b.conflicts(prOut(b.n, prReserve, 1, 2, 0, 0))     // an old key
	b.want(prOut(b.n, prReserve, 2, 3, 0, 0), badCDBs) // no such type
	b.want(prOut(b.n, prReserve, 0x11, 3, 0, 0), badCDBs)
	if k := keys(b.n); !slices.Equal(k, []uint64{3}) {
		t.Errorf("keys %d", k)
	}
	if g := binary.BigEndian.Uint32(prIn(b.n, prReadKeys)); g != 3 {
		t.Errorf("PRGENERATION %d", g)
	}
	// A holder that goes takes the reservation with it, and those are told who
	// had access by it.
	reg := b.initiator("reg")
	b.good(prOut(reg, prRegister, 0, 0, 9, 0), prOut(b.n, prReserve, exclusiveAccessRO, 3, 0, 0), prOut(b.n, prRegister, 0, 3, 0, 0))
	if c := told(reg); c != reservationsReleased {
		t.Errorf("told %06x", c)
	}
	if kind, _ := heldBy(b.n); kind != 0 {
		t.Errorf("still reserved, type %d", kind)
	}
	// With all registrants only the last one does.
	b.good(prOut(b.n, prRegister, 0, 0, 1, 0), prOut(b.n, prReserve, exclusiveAccessAll, 1, 0, 0), prOut(b.n, prRegister, 0, 1, 0, 0))
	if kind, _ := heldBy(b.n); kind != exclusiveAccessAll {
		t.Errorf("type %d", kind)
	}
	b.good(prOut(reg, prRegister, 0, 9, 0, 0))
	if kind, _ := heldBy(b.n); kind != 0 {
		t.Errorf("type %d of nobody", kind)
	}
}

const badCDBs = invalidFieldInCDB

func TestRegistrationsAreBounded(t *testing.T) {
	b := newPRBench(t)
	for i := range maxRegistrations {
		b.good(prOut(b.initiator(fmt.Sprint(i)), prRegister, 0, 0, 1, 0))
	}
	b.want(prOut(b.n, prRegister, 0, 0, 1, 0), insufficientRegs)
	if n := len(keys(b.n)); n != maxRegistrations {
		t.Errorf("%d registrations", n)
	}
}

func TestSpecifiedPorts(t *testing.T) {
	b := newPRBench(t)
	port := func(name string) []byte { return Port{Name: "iqn.2026-01.test:" + name}.transportID() }
	device := func(name string) []byte {
		p := port(name)
		p[0] = formatDevice
		copy(p[4:], append([]byte("iqn.2026-01.test:"+name), make([]byte, 40)...))
		return p
	}
	b.want(prOut(b.n, prRegisterIgnore, 0, 0, 1, flagSpecify, port("x")), invalidFieldInList)
	b.want(prOut(b.n, prRegister, 0, 0, 0, flagSpecify, port("x")), badCDBs)
	b.want(prOut(b.n, prRegister, 0, 0, 1, flagSpecify, device("nobody")), invalidFieldInList)
	for _, damage := range []func([]byte) []byte{
		func(p []byte) []byte { return p[:len(p)-4] },
		func(p []byte) []byte { p[0] = 0x46; return p },
		func(p []byte) []byte { p[3]++; return p },
		func(p []byte) []byte { p[len(p)-1] = 'x'; return p },
		func(p []byte) []byte { p[2], p[3] = 0xff, 0xfc; return p },
	} {
		b.want(prOut(b.n, prRegister, 0, 0, 1, flagSpecify, port("x"), damage(port("y"))), invalidFieldInList)
	}
	if k := keys(b.n); len(k) != 0 {
		t.Fatalf("a list that is wrong has registered %d", k)
	}
	there := b.initiator("there")
	b.good(prOut(b.n, prRegister, 0, 0, 5, flagSpecify|flagAllPorts, port("x"), device("there")))
	if k := keys(b.n); len(k) != 6 { // three initiators by two ports
		t.Errorf("%d", k)
	}
	b.good(prOut(there, prReserve, writeExclusive, 5, 0, 0))
	b.want(prOut(b.n, prRegister, 0, 5, 6, flagSpecify, port("y")), badCDBs) // registered already
	status := prIn(b.n, prReadFullStatus)
	for _, s := range []string{"test:x,i,0x000000000000", "test:there", "test:a"} {
		if !bytes.Contains(status, []byte(s)) {
			t.Errorf("READ FULL STATUS lacks %s", s)
		}
	}
}

// A registration is of one target port, unless ALL_TG_PT.
func TestTargetPorts(t *testing.T) {
	b := newPRBench(t)
	first, second := b.n, b.by("a", 2)
	b.good(prOut(first, prRegister, 0, 0, 1, 0), prOut(first, prReserve, exclusiveAccess, 1, 0, 0))
	if read1(second) != ReservationConflict {
		t.Error("the other path is let in")
	}
	b.good(prOut(first, prRegisterIgnore, 0, 0, 1, flagAllPorts))
	b.good(prOut(second, prRegister, 0, 1, 1, 0))
	if k := keys(first); len(k) != 2 {
		t.Errorf("keys %d", k)
	}
	b.good(prOut(first, prRegisterIgnore, 0, 0, 0, flagAllPorts))
	if k := keys(first); len(k) != 0 {
		t.Errorf("keys %d", k)
	}
}

func TestPreempt(t *testing.T) {
	b := newPRBench(t)
	aborted := 0
	victim := b.u.Attach(Path{Port: Port{Name: "iqn.2026-01.test:v"}, Abort: func() bool { aborted++; return true }})
	victim.takeAttention()
	reg := b.initiator("reg")
	setup := func(kind byte) {
		b.t.Helper()
		for _, n := range []*Nexus{b.n, victim, reg} {
			b.good(prOut(n, prRegisterIgnore, 0, 0, map[*Nexus]uint64{b.n: 1, victim: 2, reg: 3}[n], 0))
		}
		b.good(prOut(victim, prReserve, kind, 2, 0, 0))
	}
	setup(exclusiveAccessRO)
	b.want(prOut(b.n, prPreempt, writeExclusive, 1, 0, 0), invalidFieldInList)
	b.conflicts(prOut(b.n, prPreempt, writeExclusive, 1, 77, 0))
	// The reservation changes hands and type.
	b.good(prOut(b.n, prPreempt, writeExclusive, 1, 2, 0))
	if kind, key := heldBy(b.n); kind != writeExclusive || key != 1 {
		t.Errorf("type %d key %d", kind, key)
	}
	if c := told(victim); c != regsPreempted {
		t.Errorf("victim is told %06x", c)
	}
	if c := told(reg); c != reservationsReleased {
		t.Errorf("registrant is told %06x", c)
	}
	if aborted != 0 {
		t.Error("PREEMPT aborts nothing")
	}
	// Only a registration goes; the reservation stays.
	b.good(prOut(victim, prRegister, 0, 0, 2, 0), prOut(b.n, prPreemptAbort, exclusiveAccess, 1, 2, 0))
	if kind, _ := heldBy(b.n); kind != writeExclusive || aborted != 1 {
		t.Errorf("type %d, aborted %d times", kind, aborted)
	}
	if c := told(victim); c != regsPreempted {
		t.Errorf("victim is told %06x", c)
	}
	b.conflicts(prOut(victim, prReserve, writeExclusive, 2, 0, 0))
	// All registrants: key 0 means all others.
	b.good(prOut(b.n, prClear, 0, 1, 0, 0))
	if c := told(reg); c != reservationsPreempted {
		t.Errorf("CLEAR tells %06x", c)
	}
	told(victim)
	setup(writeExclusiveAllReg)
	b.good(prOut(b.n, prPreempt, exclusiveAccess, 1, 0, 0))
	if k := keys(b.n); !slices.Equal(k, []uint64{1}) {
		t.Errorf("keys %d", k)
	}
	if kind, key := heldBy(b.n); kind != exclusiveAccess || key != 1 {
		t.Errorf("type %d key %d", kind, key)
	}
}

// A fence that does not stand must not look so.
func TestPreemptAbortTellsOfCommandsThatDoNotEnd(t *testing.T) {
	b := newPRBench(t)
	victim := b.u.Attach(Path{Port: Port{Name: "iqn.2026-01.test:v"}, Abort: func() bool { return false }})
	victim.takeAttention()
	b.good(prOut(b.n, prRegister, 0, 0, 1, 0), prOut(victim, prRegister, 0, 0, 2, 0))
	b.want(prOut(b.n, prPreemptAbort, writeExclusive, 1, 2, 0), internalFailure)
}

func TestRegisterAndMove(t *testing.T) {
	b := newPRBench(t)
	to := b.by("to", 2)
	list := func(key, newKey uint64, flags byte, port uint16, id []byte) []byte {
		p := make([]byte, 24)
		binary.BigEndian.PutUint64(p, key)
		binary.BigEndian.PutUint64(p[8:], newKey)
		p[17] = flags
		binary.BigEndian.PutUint16(p[18:], port)
		binary.BigEndian.PutUint32(p[20:], uint32(len(id)))
		return append(p, id...)
	}
	id := to.path.Port.transportID()
	b.good(prOut(b.n, prRegister, 0, 0, 1, 0))
	b.conflicts(prOutRaw(b.n, prRegisterMove, 0, list(1, 8, 0, 2, id))) // holds nothing
	b.good(prOut(b.n, prReserve, exclusiveAccess, 1, 0, 0))
	b.conflicts(prOutRaw(b.n, prRegisterMove, 0, list(2, 8, 0, 2, id)))
	b.want(prOutRaw(b.n, prRegisterMove, 0, list(1, 0, 0, 2, id)), invalidFieldInList)
	b.want(prOutRaw(b.n, prRegisterMove, 0, list(1, 8, 0, 9, id)), invalidFieldInList)
	b.want(prOutRaw(b.n, prRegisterMove, 0, list(1, 8, 0, 1, b.n.path.Port.transportID())), invalidFieldInList)
	b.want(prOutRaw(b.n, prRegisterMove, 0, list(1, 8, 0, 2, id)[:40]), listLengthError)
	b.good(prOutRaw(b.n, prRegisterMove, 0, list(1, 8, 0x02, 2, id)))
	if kind, key := heldBy(to); kind != exclusiveAccess || key != 8 || !slices.Equal(keys(to), []uint64{8}) {
		t.Errorf("type %d key %d, keys %d", kind, key, keys(to))
	}
	if write1(to) != Good || write1(b.n) != ReservationConflict {
		t.Error("moved in words only")
	}
}

// APTPL: what was answered GOOD is there after a restart.
func TestReservationsSurviveRestart(t *testing.T) {
	for _, kind := range []byte{writeExclusive, exclusiveAccessRO, writeExclusiveAllReg} {
		st, id, d := &memoryStore{}, lun.NewIdentity(), &disk{data: make([]byte, 1<<20)}
		b := restart(t, d, id, st)
		reg := b.by("reg", 2)
		b.good(prOut(b.n, prRegister, 0, 0, 1, flagAPTPL), prOut(reg, prRegister, 0, 0, 2, flagAPTPL), prOut(b.n, prReserve, kind, 1, 0, 0))

		b = restart(t, d, id, st)
		if got, _ := heldBy(b.n); got != kind || !slices.Equal(keys(b.n), []uint64{1, 2}) {
			t.Errorf("type %d: after a restart type %d, keys %d", kind, got, keys(b.n))
		}
		if write1(b.n) != Good || write1(b.initiator("other")) != ReservationConflict {
			t.Error("holder and others are not told apart")
		}
		if c := prIn(b.n, prReportCapability); c[2]&0x01 == 0 || c[3]&0x01 == 0 {
			t.Errorf("capabilities %x", c)
		}
		// The last APTPL counts: a registration without it is forgotten with all.
		b.good(prOut(b.n, prRegister, 0, 1, 1, 0))
		if b = restart(t, d, id, st); len(keys(b.n)) != 0 || len(st.kept) != 0 {
			t.Errorf("keys %d after APTPL=0", keys(b.n))
		}
	}
}

func TestStoreThatFails(t *testing.T) {
	st, id, d := &memoryStore{}, lun.NewIdentity(), &disk{data: make([]byte, 1<<20)}
	b := restart(t, d, id, st)
	b.good(prOut(b.n, prRegister, 0, 0, 1, flagAPTPL))
	st.fail = errors.New("state disk is full")
	b.want(prOut(b.n, prReserve, writeExclusive, 1, 0, 0), internalFailure)
	if kind, _ := heldBy(b.n); kind != 0 {
		t.Error("reserved, though not durably")
	}
	if _, err := NewUnit(d, Options{Identity: id, Store: st}); !errors.Is(err, ErrReservations) {
		t.Errorf("served without its reservations: %v", err)
	}
	u, err := NewUnit(d, Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	b = &bench{t, u, nil}
	b.n = b.initiator("a")
	b.want(prOut(b.n, prRegister, 0, 0, 1, flagAPTPL), invalidFieldInList) // no store
}

// TestReserve6 is RESERVE(6) beside persistent reservations.
func TestReserve6(t *testing.T) {
	b := newPRBench(t)
	other := b.initiator("b")
	six := func(n *Nexus, op byte) *Command { c, _ := do(n, []byte{op, 0, 0, 0, 0, 0}, nil, 0); return c }
	b.good(six(b.n, 0x16), six(b.n, 0x16))
	b.conflicts(six(other, 0x16), prOut(other, prRegister, 0, 0, 1, 0), prOut(b.n, prRegister, 0, 0, 1, 0))
	b.good(six(other, 0x17)) // changes nothing
	if read1(other) != ReservationConflict || read1(b.n) != Good {
		t.Error("not reserved")
	}
	b.u.Reset()
	told(b.n)
	told(other)
	if read1(other) != Good {
		t.Error("a reset ends RESERVE(6)")
	}
	// CRH: with persistent reservations it is a no-op for whom they let in.
	b.good(prOut(b.n, prRegister, 0, 0, 1, 0))
	b.conflicts(six(b.n, 0x16), six(other, 0x16))
	b.good(prOut(b.n, prReserve, exclusiveAccess, 1, 0, 0), six(b.n, 0x16), six(b.n, 0x17))
	b.conflicts(six(other, 0x16), six(other, 0x17))
	if read1(other) != ReservationConflict {
		t.Error("RELEASE(6) has released a persistent reservation")
	}
	b.good(prOut(b.n, prClear, 0, 1, 0, 0))
	b.good(six(b.n, 0x16))
	b.n.Detach()
	if read1(other) != Good {
		t.Error("RESERVE(6) ends with its nexus")
	}
}

// FuzzReservationState feeds a Store's bytes: nothing panics, and what is accepted
// encodes to the same.
func FuzzReservationState(f *testing.F) {
	p := &reservations{kind: exclusiveAccess, aptpl: true, regs: []registration{
		{nexusID{Port{Name: "iqn.x:a", ISID: [6]byte{1}}, 1}, 7}, {nexusID{Port{Name: "iqn.x:b"}, 2}, 8}}}
	p.holder = p.regs[1].nexusID
	f.Add(p.encode())
	p.kind = writeExclusiveAllReg
	f.Add(p.encode())
	p.kind, p.holder = 0, nexusID{}
	f.Add(p.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodeReservations(b)
		if err != nil {
			if !errors.Is(err, ErrReservations) {
				t.Fatal(err)
			}
			return
		}
		if again := p.encode(); !bytes.Equal(again, b) {
			t.Fatalf("%x\n%x", b, again)
		}
	})
}

// Every single damaged byte is found.
func TestDamagedState(t *testing.T) {
	p := &reservations{kind: exclusiveAccess, aptpl: true, regs: []registration{{nexusID{Port{Name: "iqn.x:a"}, 1}, 7}}}
	p.holder = p.regs[0].nexusID
	good := p.encode()
	if _, err := decodeReservations(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if _, err := decodeReservations(bad); err == nil {
			t.Errorf("damage of byte %d is not noticed", i)
		}
		if _, err := decodeReservations(good[:i]); err == nil {
			t.Errorf("a state cut to %d bytes is accepted", i)
		}
	}
}

func FuzzTransportID(f *testing.F) {
	f.Add(Port{Name: "iqn.2026-01.test:a", ISID: [6]byte{1, 2, 3, 4, 5, 6}}.transportID())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, one, size, err := parseTransportID(b)
		if err != nil || !one {
			return
		}
		if size > len(b) {
			t.Fatalf("%d of %d bytes", size, len(b))
		}
		q, _, _, err := parseTransportID(p.transportID())
		if err != nil || q != p {
			t.Fatalf("%+v: %+v, %v", p, q, err)
		}
	})
}
