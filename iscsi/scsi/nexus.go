package scsi

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Port names an initiator port: iSCSI name and ISID (RFC 7143 section 4.4.2).
type Port struct {
	Name string
	ISID [6]byte
}

// Path is an initiator's way to a Unit, as the transport knows it. The
// functions may be called at once from several goroutines, and until Detach.
type Path struct {
	Port Port

	// TargetPort is the relative target port identifier of the port that the
	// initiator came by; 0 means 1. With Port it is the I_T nexus that
	// persistent reservations know.
	TargetPort uint16

	// ReadOnly is what the initiator's mask says.
	ReadOnly bool

	// LUNs lists, for REPORT LUNS, what the initiator sees of the target. Nil:
	// nothing.
	LUNs func() []uint16

	// Borrow finds, for EXTENDED COPY, the unit with an NAA designator among
	// those that the initiator sees on this target, and keeps it from
	// being taken away until release is called; nil if there is none. A nil
	// Borrow finds nothing.
	Borrow func(naa [8]byte) (n *Nexus, release func())

	// Abort ends the commands of this nexus without an answer (PREEMPT AND
	// ABORT by another), and waits until the device has let go of them; false
	// if it did not in time. A nil Abort has nothing to end.
	Abort func() bool
}

// Nexus is one initiator port's way to one Unit. Its methods may be called at
// once from several goroutines.
type Nexus struct {
	unit     *Unit
	path     Path
	readOnly atomic.Bool
	access   atomic.Uint32 // AccessState of the target port group it came by

	pending atomic.Bool // there are unit attentions
	mu      sync.Mutex
	queue   []Code
	copies  copyTable
}

// maxAttentions bounds the unit attentions kept for one nexus; there are not
// that many kinds.
const maxAttentions = 16

// Attach makes a nexus. Detach ends it.
func (u *Unit) Attach(p Path) *Nexus {
	if p.TargetPort == 0 {
		p.TargetPort = 1
	}
	n := &Nexus{unit: u, path: p}
	n.readOnly.Store(p.ReadOnly)
	n.Attention(poweredOn)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.nexuses[n] = struct{}{}
	n.access.Store(uint32(u.stateOf(p.TargetPort)))
	return n
}

// Detach ends a nexus: its RESERVE(6) with it, its persistent registration not.
func (n *Nexus) Detach() {
	u := n.unit
	u.mu.Lock()
	delete(u.nexuses, n)
	u.mu.Unlock()
	u.reserved.CompareAndSwap(n, nil)
}

// Unit is where the nexus leads.
func (n *Nexus) Unit() *Unit { return n.unit }

// id is the I_T nexus, as persistent reservations know it.
func (n *Nexus) id() nexusID { return nexusID{n.path.Port, n.path.TargetPort} }

// SetReadOnly changes what the mask says.
func (n *Nexus) SetReadOnly(ro bool) {
	if n.readOnly.Swap(ro) != ro {
		n.Attention(modeChanged)
	}
}

// protected says why this nexus can't write, if it can't.
func (n *Nexus) protected() (Code, bool) {
	switch u := n.unit; {
	case u.swp.Load():
		return softwareProtected, true
	case !u.writable.Load() || n.readOnly.Load():
		return writeProtected, true
	}
	return noSense, false
}

// Attention raises a unit attention condition, which the next command other
// than INQUIRY, REPORT LUNS and REQUEST SENSE reports.
func (n *Nexus) Attention(c Code) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.queue) >= maxAttentions || slices.Contains(n.queue, c) {
		return
	}
	if c == resetOccurred {
		// A reset says more than the conditions before it (SAM-5 section 5.14).
		n.queue = n.queue[:0]
	}
	n.queue = append(n.queue, c)
	n.pending.Store(true)
}

// CommandsCleared raises the unit attention for commands that another initiator
// has cleared (CLEAR TASK SET).
func (n *Nexus) CommandsCleared() { n.Attention(commandsCleared) }

// takeAttention returns the oldest unit attention and forgets it.
func (n *Nexus) takeAttention() (Code, bool) {
	if !n.pending.Load() {
		return 0, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.queue) == 0 {
		return 0, false
	}
	c := n.queue[0]
	n.queue = slices.Delete(n.queue, 0, 1)
	n.pending.Store(len(n.queue) > 0)
	return c, true
}

// dropAttention forgets one condition: REPORT LUNS has shown what it was about.
func (n *Nexus) dropAttention(c Code) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.queue, c); i >= 0 {
		n.queue = slices.Delete(n.queue, i, i+1)
		n.pending.Store(len(n.queue) > 0)
	}
}
