package scsi

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// AccessState is the asymmetric access state of a target port group (SPC-4
// section 5.15.2).
type AccessState uint8

// The states that a Unit knows; the values are those of REPORT TARGET PORT GROUPS.
const (
	ActiveOptimized    AccessState = 0x0
	ActiveNonOptimized AccessState = 0x1 // works, but another path is better
	Standby            AccessState = 0x2 // no medium access; reservations and mode pages work
	Unavailable        AccessState = 0x3 // nothing but what reports on the unit
)

func (s AccessState) String() string {
	switch s {
	case ActiveOptimized:
		return "active/optimized"
	case ActiveNonOptimized:
		return "active/non-optimized"
	case Standby:
		return "standby"
	case Unavailable:
		return "unavailable"
	}
	return fmt.Sprintf("AccessState(%#x)", uint8(s))
}

// PortGroup is a target port group: ports by which a Unit is reached, all in one
// access state.
type PortGroup struct {
	ID        uint16
	Ports     []uint16 // relative target port identifiers, none in two groups
	State     AccessState
	Preferred bool

	changed byte // STATUS CODE: what changed the state last
}

// STATUS CODE of REPORT TARGET PORT GROUPS (SPC-4, target port group descriptor).
const (
	changedByInitiator = 1
	changedByTarget    = 2
)

// maxGroups and maxPorts bound a Unit's port groups.
const maxGroups, maxPorts = 256, 255

// defaultGroups is what a Unit has that was told nothing.
func defaultGroups() []PortGroup {
	return []PortGroup{{ID: 1, Ports: []uint16{1}}}
}

func checkGroups(groups []PortGroup) error {
	if len(groups) == 0 || len(groups) > maxGroups {
		return fmt.Errorf("%d target port groups: want 1 to %d", len(groups), maxGroups)
	}
	ids, ports := map[uint16]bool{}, map[uint16]bool{}
	for _, g := range groups {
		switch {
		case ids[g.ID]:
			return fmt.Errorf("target port group %d is named twice", g.ID)
		case g.State > Unavailable:
			return fmt.Errorf("target port group %d: %v: no such state", g.ID, g.State)
		case len(g.Ports) == 0 || len(g.Ports) > maxPorts:
			return fmt.Errorf("target port group %d has %d ports: want 1 to %d", g.ID, len(g.Ports), maxPorts)
		}
		ids[g.ID] = true
		for _, p := range g.Ports {
			if p == 0 || ports[p] {
				return fmt.Errorf("target port %d: want a number from 1 on, in one group", p)
			}
			ports[p] = true
		}
	}
	return nil
}

// SetPortGroups replaces the target port groups, and with them the access states,
// from the next command on. Initiators are told by the unit attention ASYMMETRIC
// ACCESS STATE CHANGED if anything is different (an implicit change, in SPC-4's
// words). States that an initiator has set are overruled.
func (u *Unit) SetPortGroups(groups []PortGroup) error {
	if err := checkGroups(groups); err != nil {
		return err
	}
	next := clonedGroups(groups)
	u.mu.Lock()
	defer u.mu.Unlock()
	same := len(next) == len(u.groups)
	for i := range next {
		g := &next[i]
		old := slices.IndexFunc(u.groups, func(o PortGroup) bool { return o.ID == g.ID })
		if old < 0 || u.groups[old].State != g.State {
			g.changed, same = changedByTarget, false
			continue
		}
		g.changed = u.groups[old].changed
		same = same && slices.Equal(u.groups[old].Ports, g.Ports) && u.groups[old].Preferred == g.Preferred
	}
	u.setGroupsLocked(next)
	if !same {
		u.attentionAllLocked(accessChanged, nil)
	}
	return nil
}

// PortGroups returns the target port groups as they are now.
func (u *Unit) PortGroups() []PortGroup {
	u.mu.Lock()
	defer u.mu.Unlock()
	return clonedGroups(u.groups)
}

func clonedGroups(groups []PortGroup) []PortGroup {
	out := slices.Clone(groups)
	for i := range out {
		out[i].Ports = slices.Clone(out[i].Ports)
	}
	return out
}

func (u *Unit) setGroupsLocked(groups []PortGroup) {
	u.groups = groups
	for n := range u.nexuses {
		n.access.Store(uint32(u.stateOf(n.path.TargetPort)))
	}
}

// groupOf finds the group of a port, nil if it is in none. mu is held.
func (u *Unit) groupOf(port uint16) *PortGroup {
	for i := range u.groups {
		if slices.Contains(u.groups[i].Ports, port) {
			return &u.groups[i]
		}
	}
	return nil
}

// stateOf is the access state by a port: a port in no group is no way to the
// medium. mu is held.
func (u *Unit) stateOf(port uint16) AccessState {
	if g := u.groupOf(port); g != nil {
		return g.State
	}
	return Unavailable
}

// What a command needs of the access state: the zero value is the medium.
const (
	anyState byte = iota + 1 // performed in every state
	standby                  // not where the unit is unavailable
)

// reachable reports whether the state of the path lets a command through (SPC-4
// section 5.15.2, standby and unavailable state).
func (n *Nexus) reachable(o *op) result {
	switch s := AccessState(n.access.Load()); {
	case s <= ActiveNonOptimized, o.state == anyState:
		return result{}
	case s == Unavailable:
		return check(portUnavailable)
	case o.state == standby:
		return result{}
	}
	return check(portInStandby)
}

// runPortGroups is REPORT TARGET PORT GROUPS (SPC-4 section 6.37).
func runPortGroups(n *Nexus, c *Command) result {
	b := make([]byte, 4)
	switch c.CDB[1] >> 5 {
	case 0:
	case 1: // extended header; no transition takes time
		b = append(b, 0x10, 0, 0, 0)
	default:
		return badCDB(1)
	}
	for _, g := range n.unit.PortGroups() {
		d := [8]byte{0: byte(g.State), 1: 0x0f, 5: g.changed, 7: byte(len(g.Ports))} // U_SUP, S_SUP, AN_SUP, AO_SUP
		if g.Preferred {
			d[0] |= 0x80
		}
		binary.BigEndian.PutUint16(d[2:], g.ID)
		b = append(b, d[:]...)
		for _, p := range g.Ports {
			b = append(b, 0, 0, byte(p>>8), byte(p))
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return c.reply(b, c.u32(6))
}

func parseSetGroups(_ *Nexus, c *Command) result {
	c.Want = int64(c.u32(6))
	if c.Want > 4+4*maxGroups {
		return check(listLengthError)
	}
	return result{}
}

// runSetGroups is SET TARGET PORT GROUPS (SPC-4): an explicit
// change. A list that is wrong anywhere changes nothing.
func runSetGroups(n *Nexus, c *Command) result {
	u, list := n.unit, c.Out
	if c.Want == 0 {
		return result{}
	}
	if int64(len(list)) < c.Want || len(list) < 4 || len(list)%4 != 0 {
		return check(listLengthError)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	next := clonedGroups(u.groups)
	changed := false
	for at := 4; at < len(list); at += 4 {
		state, id := AccessState(list[at]&0x0f), binary.BigEndian.Uint16(list[at+2:])
		i := slices.IndexFunc(next, func(g PortGroup) bool { return g.ID == id })
		switch {
		case i < 0:
			return badList(uint16(at + 2))
		case state > Unavailable:
			return badList(uint16(at))
		}
		changed = changed || next[i].State != state
		next[i].State, next[i].changed = state, changedByInitiator
	}
	u.setGroupsLocked(next)
	if changed {
		u.attentionAllLocked(accessChanged, n)
	}
	return result{}
}
