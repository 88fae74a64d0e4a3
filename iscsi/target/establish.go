package target

import (
	"time"

	"github.com/cleave-san/cleave/iscsi"
)

// establish makes the session, after the initiator has proved who it is. A session
// that the same initiator port has with the same target ends first (RFC 7143
// section 6.3.5, session reinstatement).
func (l *login) establish() error {
	c, s := l.c, l.c.srv
	deadline := time.NewTimer(s.opt.LoginTimeout)
	defer deadline.Stop()
	for {
		old, err := l.register()
		if err != nil {
			return err
		}
		if old == nil {
			return l.begin()
		}
		old.drop("reinstated by its initiator")
		select {
		case <-old.ended:
		case <-deadline.C:
			return refuse(statusTargetError, "the session before this one does not end")
		case <-c.dropped:
			return refuse(statusTargetError, "%s", c.why)
		}
	}
}

// begin shows the new session its LUNs.
func (l *login) begin() error {
	ss, s := l.c.ss, l.c.srv
	if ss.target == nil {
		return nil
	}
	if err := s.settle(ss.target); err != nil {
		s.log.Error("iSCSI login refused", "initiator", l.initiator, "target", l.target, "err", err)
		return refuse(statusTargetError, "%v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ss.begun = true
	return nil
}

// register puts the session into the server's books, or returns the connection
// of the session that has its place.
func (l *login) register() (*conn, error) {
	c, s := l.c, l.c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	var t *target
	if !l.discovery {
		t = s.targets[l.target]
		if t == nil || !s.masks.Sees(l.target, l.initiator) {
			return nil, errUnknownTarget(l.target)
		}
	}
	old, err := l.former(t)
	switch {
	case old != nil || err != nil:
		return old, err
	case s.closed:
		return nil, refuse(statusTargetError, "server is closing")
	}
	tsih, ok := s.newTSIH(l.reinstate)
	if !ok {
		return nil, refuse(statusOutOfResources, "no session identifier is free")
	}
	s.leaveJoining(c)
	ss := &session{srv: s, conn: c, target: t, alias: t.aliasOf(),
		info: SessionInfo{Initiator: l.initiator, Target: l.name(), ISID: l.first.ISID(), TSIH: tsih,
			Remote: c.remote, Since: time.Now()}}
	c.ss = ss
	s.sessions[ss] = struct{}{}
	s.divide()
	if t != nil {
		t.sessions[ss] = struct{}{}
		t.numbers.begin(l.initiator, ss.port())
		ss.see(t, s.masks.View(t.name, l.initiator))
	}
	return nil, nil
}

// former is the connection that the new one takes the place of (RFC 7143 section
// 6.3.1): with TSIH 0 that of the session with the same initiator port and
// target; with another TSIH that of the session it names, if CID says that it is
// the same connection. A session has one connection, so there is no adding to it.
// Server.mu is held.
func (l *login) former(t *target) (*conn, error) {
	tsih := l.first.TSIH()
	for ss := range l.c.srv.sessions {
		switch {
		case ss.info.Initiator != l.initiator || ss.info.ISID != l.first.ISID() || ss.target != t,
			ss.conn.portalGroup != l.c.portalGroup: // another nexus
		case tsih == 0 && t == nil: // discovery sessions stand beside each other
		case tsih == 0:
			return ss.conn, nil
		case ss.info.TSIH != tsih:
		case ss.conn.par.cid != l.c.par.cid:
			return nil, refuse(statusTooMany, "connection %d to session %d: it has one", l.c.par.cid, tsih)
		default:
			l.reinstate = tsih
			return ss.conn, nil
		}
	}
	if tsih != l.reinstate {
		return nil, refuse(statusNoSession, "TSIH %d: no such session of this initiator", tsih)
	}
	return nil, nil
}

func (l *login) name() iscsi.Name {
	if l.discovery {
		return ""
	}
	return l.target
}

// newTSIH finds a session identifier that no session has: want, where that is not
// zero and free. s.mu is held.
func (s *Server) newTSIH(want uint16) (uint16, bool) {
	used := func(id uint16) bool {
		for ss := range s.sessions {
			if ss.info.TSIH == id {
				return true
			}
		}
		return false
	}
	if want != 0 && !used(want) {
		return want, true
	}
	for range 1 << 16 {
		if s.lastTSIH++; s.lastTSIH != 0 && !used(s.lastTSIH) {
			return s.lastTSIH, true
		}
	}
	return 0, false
}
