package target

import (
	"maps"
	"slices"
	"sync/atomic"

	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/scsi"
)

// session is one I_T nexus in full feature phase. MaxConnections is 1, so it
// has one connection, and ends with it.
type session struct {
	srv    *Server
	conn   *conn
	info   SessionInfo
	target *target // nil: discovery
	alias  string  // of the target

	// view is what the initiator sees, by LUN number. It is replaced, never
	// changed.
	view atomic.Pointer[map[uint16]*nexus]

	// begun says that the initiator knows of the session. Server.mu guards it.
	begun bool
}

// see brings the view up to date with the target's LUNs and the mask. Server.mu
// is held. A nexus that leaves the view finishes the commands it has.
func (ss *session) see(t *target, grants []mask.Grant) {
	var old map[uint16]*nexus
	if p := ss.view.Load(); p != nil {
		old = *p
	}
	view := make(map[uint16]*nexus, len(grants))
	changed := false
	for _, g := range grants {
		e := t.luns[g.LUN]
		if e == nil || !t.numbers.may(g.LUN, e.unit.Identity(), ss.info.Initiator) || e.hidden {
			continue
		}
		n := old[g.LUN]
		if n == nil || n.entry != e {
			n = newNexus(ss, e)
			n.scsi = e.unit.Attach(ss.path(n, g))
			changed = true
		} else {
			n.scsi.SetReadOnly(g.ReadOnly)
		}
		view[g.LUN] = n
	}
	for num, n := range old {
		if view[num] != n {
			n.scsi.Detach()
			n.close()
			changed = true
		}
	}
	ss.view.Store(&view)
	if changed && ss.begun { // not what a session begins with
		for _, n := range view {
			n.scsi.Attention(scsi.LUNsChanged)
		}
	}
}

// port tells the session from others of its initiator.
func (ss *session) port() port { return port{ss.info.ISID, ss.conn.portalGroup} }

// luns lists what the initiator sees, in order, for REPORT LUNS.
func (ss *session) luns() []uint16 {
	return slices.Sorted(maps.Keys(*ss.view.Load()))
}

// lookup finds the nexus of a LUN field, nil if the initiator sees none there.
func (ss *session) lookup(lun uint64) *nexus {
	n, ok := scsi.DecodeLUN(lun)
	if !ok {
		return nil
	}
	return (*ss.view.Load())[n]
}
