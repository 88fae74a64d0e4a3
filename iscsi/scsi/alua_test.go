package scsi

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// portGroups is REPORT TARGET PORT GROUPS, as state and reason by group.
func portGroups(n *Nexus) (states, reasons map[uint16]byte) {
	_, got := do(n, []byte{0xa3, 0x0a, 9: 255}, nil, 255)
	states, reasons = map[uint16]byte{}, map[uint16]byte{}
	for at := 4; at < len(got); at += 8 + 4*int(got[at+7]) {
		id := binary.BigEndian.Uint16(got[at+2:])
		states[id], reasons[id] = got[at]&0x0f, got[at+5]
	}
	return states, reasons
}

func setGroups(n *Nexus, descs ...byte) *Command {
	p := append(make([]byte, 4), descs...)
	c, _ := do(n, []byte{0xa4, 0x0a, 9: byte(len(p))}, p, 0)
	return c
}

func TestAccessStates(t *testing.T) {
	b := newPRBench(t)
	first, second := b.n, b.by("a", 2)
	for _, row := range []struct {
		state                 AccessState
		media, mode, inquiry_ Code
	}{
		{ActiveOptimized, noSense, noSense, noSense},
		{ActiveNonOptimized, noSense, noSense, noSense},
		{Standby, portInStandby, noSense, noSense},
		{Unavailable, portUnavailable, portUnavailable, noSense},
	} {
		groups := b.u.PortGroups()
		changes := groups[1].State != row.state
		groups[1].State = row.state
		if err := b.u.SetPortGroups(groups); err != nil {
			t.Fatal(err)
		}
		for _, n := range []*Nexus{first, second} {
			if c := told(n); (c == accessChanged) != changes {
				t.Errorf("%v: told %06x", row.state, c)
			}
		}
		for _, c := range []struct {
			cdb  []byte
			want Code
		}{
			{[]byte{0}, row.media}, {cdb10(0x28, 0, 1), row.media}, {[]byte{0x83}, row.media}, {cdb10(0x25, 0, 0), row.media},
			{[]byte{0x1a, 2: 0x3f, 4: 255}, row.mode}, {[]byte{0x5e, 8: 255}, row.mode},
			{[]byte{0x12, 4: 36}, row.inquiry_}, {[]byte{0xa0, 9: 64}, row.inquiry_}, {[]byte{0x03, 4: 18}, row.inquiry_},
			{[]byte{0xa3, 0x0a, 9: 64}, row.inquiry_},
		} {
			got, _ := do(second, c.cdb, nil, 512)
			b.want(got, c.want)
			if got, _ = do(first, c.cdb, nil, 512); got.Status != Good {
				t.Errorf("%v: the other path: CDB %x: status %#x", row.state, c.cdb, got.Status)
			}
		}
		if states, reasons := portGroups(first); states[1] != 0 || AccessState(states[2]) != row.state || changes && reasons[2] != changedByTarget {
			t.Errorf("%v: reported %v, because of %v", row.state, states, reasons)
		}
	}
	got, _ := do(second, []byte{0x16}, nil, 0)
	b.want(got, portUnavailable)
}

func TestSetTargetPortGroups(t *testing.T) {
	b := newPRBench(t)
	other := b.by("b", 2)
	b.want(setGroups(b.n, 1, 0, 0, 1, 2, 0, 0, 9), invalidFieldInList)    // no such group
	b.want(setGroups(b.n, 1, 0, 0, 1, 0x0e, 0, 0, 2), invalidFieldInList) // offline is not to be set
	b.want(setGroups(b.n, 1, 0), listLengthError)
	if states, _ := portGroups(b.n); states[1] != 0 {
		t.Error("a list that is wrong has changed something")
	}
	b.good(setGroups(b.n, 1, 0, 0, 1, 3, 0, 0, 2))
	if states, reasons := portGroups(b.n); states[1] != 1 || states[2] != 3 || reasons[1] != changedByInitiator {
		t.Errorf("%v %v", states, reasons)
	}
	if c := told(b.n); c != noSense {
		t.Errorf("who has changed it is told %06x", c)
	}
	if c := told(other); c != accessChanged {
		t.Errorf("another is told %06x", c)
	}
	if read1(other) == Good {
		t.Error("an unavailable path reads")
	}
	b.good(setGroups(other, 0, 0, 0, 2)) // its own way back
	if read1(other) != Good {
		t.Error("it is back")
	}
	told(b.n)
	b.good(setGroups(b.n))
	b.good(prOut(b.n, prRegister, 0, 0, 1, 0))
}

// Each port sees its own number in VPD page 0x83.
func TestDesignatorsByPort(t *testing.T) {
	b := newPRBench(t)
	for port := byte(1); port <= 2; port++ {
		n := b.by("x", uint16(port))
		_, got := do(n, []byte{0x12, 1, 0x83, 1, 0, 0}, nil, 256)
		for _, want := range [][]byte{
			{0x51, 0x94, 0, 4, 0, 0, 0, port},
			{0x51, 0x95, 0, 4, 0, 0, 0, port},
			[]byte("iqn.2026-01.test"),
		} {
			if want[0] != 'i' && !bytes.Contains(got, want) {
				t.Errorf("port %d: %x lacks %x", port, got, want)
			}
		}
	}
}

func TestPortGroupsAreChecked(t *testing.T) {
	u, err := NewUnit(&disk{data: make([]byte, 1<<20)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, g := range map[string][]PortGroup{
		"none":            nil,
		"one name twice":  {{ID: 1, Ports: []uint16{1}}, {ID: 1, Ports: []uint16{2}}},
		"one port twice":  {{ID: 1, Ports: []uint16{1}}, {ID: 2, Ports: []uint16{1}}},
		"no port":         {{ID: 1}},
		"port 0":          {{ID: 1, Ports: []uint16{0}}},
		"no such state":   {{ID: 1, Ports: []uint16{1}, State: 4}},
		"too many groups": make([]PortGroup, maxGroups+1),
	} {
		if err := u.SetPortGroups(g); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
