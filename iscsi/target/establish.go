package target

import (
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/lun"
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
		if old == nil {
			return err
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
			return nil, errAuth("target is unknown or not visible to this initiator: " + string(l.target))
		}
		for ss := range t.sessions {
			if ss.info.Initiator == l.initiator && ss.info.ISID == l.first.ISID() {
				return ss.conn, nil
			}
		}
	}
	if s.closed {
		return nil, refuse(statusTargetError, "server is closing")
	}
	tsih, ok := s.newTSIH()
	if !ok {
		return nil, refuse(statusOutOfResources, "no session identifier is free")
	}
	ss := &session{srv: s, conn: c, target: t, seen: map[uint16]lun.Identity{},
		info: SessionInfo{Initiator: l.initiator, Target: l.name(), ISID: l.first.ISID(), TSIH: tsih,
			Remote: c.remote, Since: time.Now()}}
	c.ss = ss
	s.sessions[ss] = struct{}{}
	if t != nil {
		t.sessions[ss] = struct{}{}
		ss.see(t, s.masks.View(t.name, l.initiator))
	}
	return nil, nil
}

func (l *login) name() iscsi.Name {
	if l.discovery {
		return ""
	}
	return l.target
}

// newTSIH finds a session identifier that no session has. s.mu is held.
func (s *Server) newTSIH() (uint16, bool) {
	for range 1 << 16 {
		if s.lastTSIH++; s.lastTSIH == 0 {
			continue
		}
		used := false
		for ss := range s.sessions {
			used = used || ss.info.TSIH == s.lastTSIH
		}
		if !used {
			return s.lastTSIH, true
		}
	}
	return 0, false
}
