package target

import (
	"time"

	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/scsi"
)

// path is what a unit is told of a session's way to it.
func (ss *session) path(n *nexus, g mask.Grant) scsi.Path {
	return scsi.Path{
		Port:       scsi.Port{Name: string(ss.info.Initiator), ISID: ss.info.ISID},
		TargetPort: ss.conn.portalGroup,
		ReadOnly:   g.ReadOnly,
		LUNs:       ss.luns,
		Borrow:     ss.borrow,
		Abort:      n.abortAll,
	}
}

// borrow finds a LUN that the initiator sees by its NAA designator, for a copy that
// another LUN performs. Until release RemoveLUN waits for it as for a command.
func (ss *session) borrow(naa [8]byte) (*scsi.Nexus, func()) {
	view := ss.view.Load()
	if view == nil {
		return nil, nil
	}
	for _, n := range *view {
		if n.entry.unit.Identity().NAA() == naa && n.entry.enter() {
			return n.scsi, n.entry.leave
		}
	}
	return nil, nil
}

// abortAll ends this nexus' commands without an answer (PREEMPT AND ABORT) and
// waits, no longer than a task management function does, until the device has
// let go of them. PERSISTENT RESERVE OUT goes on: two may preempt each other.
func (n *nexus) abortAll() bool {
	c := n.ss.conn
	w := newWaiter()
	if c.abort(func(t *task) bool { return t.nx == n && !reservesOut(t) }, w) > 0 {
		n.scsi.CommandsCleared()
	}
	w.done()
	patience := time.NewTimer(n.ss.srv.opt.AbortTimeout)
	defer patience.Stop()
	select {
	case <-w.ch:
		return true
	case <-patience.C:
		return false
	}
}

// Gone reports whether nobody waits for a command any more, to those that take
// long (EXTENDED COPY).
func (t *task) Gone() bool { return t.gone.Load() }
