package target

import (
	"maps"
	"slices"
	"sync/atomic"

	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/scsi"
	"github.com/cleave-san/cleave/lun"
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

	// seen is every number that the initiator has been shown, and what was
	// there. Server.mu guards it.
	seen map[uint16]lun.Identity
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
		if e == nil {
			continue
		}
		n := old[g.LUN]
		if n == nil || n.entry != e {
			n = newNexus(ss, e)
			n.scsi = e.unit.Attach(ss.path(n, g))
			ss.seen[g.LUN] = e.unit.Identity()
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
	if changed && old != nil { // not what a session begins with
		for _, n := range view {
			n.scsi.Attention(scsi.LUNsChanged)
		}
	}
}

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
