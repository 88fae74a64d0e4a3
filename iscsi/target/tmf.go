package target

import (
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// Task management functions and responses (RFC 7143 sections 11.5.1 and 11.6.1).
const (
	tmfAbortTask    = 1
	tmfAbortTaskSet = 2
	tmfClearACA     = 3
	tmfClearTaskSet = 4
	tmfLUNReset     = 5
	tmfWarmReset    = 6
	tmfColdReset    = 7
	tmfReassign     = 8

	tmfComplete     = 0
	tmfNoTask       = 1
	tmfNoLUN        = 2
	tmfNoReassign   = 4
	tmfNotSupported = 5
	tmfRejected     = 255
)

// maxManaging bounds the task management functions of one connection that wait.
const maxManaging = 32

// taskMgmt takes a Task Management Function Request. What has to stop is marked
// before it returns, so that later commands are not concerned; the answer
// comes when the devices have let go.
func (c *conn) taskMgmt(h *pdu.Header) {
	fn := h.Flags() & 0x7f
	var n *nexus
	switch fn {
	case tmfAbortTask, tmfAbortTaskSet, tmfClearTaskSet, tmfLUNReset:
		if n = c.ss.lookup(h.LUN()); n == nil {
			c.tmfRespond(h.ITT(), tmfNoLUN)
			return
		}
	case tmfWarmReset, tmfColdReset:
	case tmfReassign:
		c.tmfRespond(h.ITT(), tmfNoReassign)
		return
	default:
		c.tmfRespond(h.ITT(), tmfNotSupported)
		return
	}

	if c.managing.Add(1) > maxManaging {
		// Each waits for a device; their number is the initiator's choice.
		c.managing.Add(-1)
		c.tmfRespond(h.ITT(), tmfRejected)
		return
	}
	w := newWaiter()
	switch fn {
	case tmfAbortTask:
		ref := h.RefTag()
		if c.abort(func(t *task) bool { return t.itt == ref && t.nx == n }, w) == 0 {
			c.managing.Add(-1)
			c.tmfRespond(h.ITT(), tmfNoTask)
			return
		}
	case tmfAbortTaskSet:
		c.abort(n.mine, w)
	case tmfClearTaskSet:
		c.abort(n.mine, w)
		c.srv.abortOthers(c.ss, n.entry, w, true)
		n.entry.exorcise(w)
	case tmfLUNReset:
		c.resetLUN(n, w)
	case tmfWarmReset, tmfColdReset:
		// Only the LUNs that this initiator sees: a reset must not reach what
		// the mask hides.
		for _, n := range *c.ss.view.Load() {
			c.resetLUN(n, w)
		}
	}
	w.done()

	itt := h.ITT()
	finish := func(response byte) {
		c.managing.Add(-1)
		c.tmfRespond(itt, response)
		if fn == tmfColdReset {
			// RFC 7143 section 11.5.1: the connections end. Those of other
			// initiators don't, for the same reason.
			c.tx.close(true)
		}
	}
	select {
	case <-w.ch:
		finish(tmfComplete)
		return
	default:
	}
	c.srv.wg.Go(func() {
		patience := time.NewTimer(c.srv.opt.AbortTimeout)
		defer patience.Stop()
		select {
		case <-w.ch:
			finish(tmfComplete)
		case <-patience.C:
			finish(tmfRejected)
		case <-c.dropped:
		}
	})
}

func (c *conn) resetLUN(n *nexus, w *waiter) {
	c.abort(n.mine, w)
	c.srv.abortOthers(c.ss, n.entry, w, false)
	n.entry.exorcise(w)
	n.entry.unit.Reset()
}

// abortOthers aborts the commands of all other sessions to a LUN.
func (s *Server) abortOthers(but *session, e *entry, w *waiter, tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ss := range but.target.sessions {
		if ss == but {
			continue
		}
		for _, n := range *ss.view.Load() {
			if n.entry == e && ss.conn.abort(n.mine, w) > 0 && tell {
				n.scsi.CommandsCleared()
			}
		}
	}
}

func (c *conn) tmfRespond(itt uint32, response byte) {
	var o outgoing
	o.h.Set(pdu.OpTaskMgmtResp, pdu.FlagFinal)
	o.h[2] = response
	o.h.SetITT(itt)
	o.stat = hasStatSN
	c.tx.send(o)
}
