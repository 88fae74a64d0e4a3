package scsi

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Port names an initiator port: iSCSI name and ISID (RFC 7143 section 4.4.2).
// Persistent reservations know initiators by it.
type Port struct {
	Name string
	ISID [6]byte
}

// Nexus is one initiator port's way to one Unit. Its methods may be called at
// once from several goroutines.
type Nexus struct {
	unit      *Unit
	port      Port
	readOnly  atomic.Bool
	luns      func() []uint16
	preempted func()

	pending atomic.Bool // there are unit attentions
	mu      sync.Mutex
	queue   []Code
}

// maxAttentions bounds the unit attentions kept for one nexus; there are not
// that many kinds.
const maxAttentions = 16

// Attach makes a nexus. luns lists, for REPORT LUNS, what this initiator sees of
// the target; readOnly is what its mask says; preempted aborts the commands of
// this nexus (PREEMPT AND ABORT of another initiator). Detach ends it.
func (u *Unit) Attach(p Port, readOnly bool, luns func() []uint16, preempted func()) *Nexus {
	n := &Nexus{unit: u, port: p, luns: luns, preempted: preempted}
	n.readOnly.Store(readOnly)
	n.Attention(poweredOn)
	u.mu.Lock()
	u.nexuses[n] = struct{}{}
	u.mu.Unlock()
	return n
}

// Detach ends a nexus: its RESERVE(6) with it, its persistent registration not.
func (n *Nexus) Detach() {
	u := n.unit
	u.mu.Lock()
	delete(u.nexuses, n)
	if u.reserved == n {
		u.reserved = nil
	}
	u.updateHeld()
	u.mu.Unlock()
}

// Unit is where the nexus leads.
func (n *Nexus) Unit() *Unit { return n.unit }

// SetReadOnly changes what the mask says.
func (n *Nexus) SetReadOnly(ro bool) {
	if n.readOnly.Swap(ro) != ro {
		n.Attention(modeChanged)
	}
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
