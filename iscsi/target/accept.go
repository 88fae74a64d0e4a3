package target

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

func (s *Server) accept(l net.Listener, group uint16) error {
	defer s.wg.Done()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
		l.Close()
	}()
	for {
		nc, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			closed := s.closed
			s.mu.Unlock()
			if closed || errors.Is(err, net.ErrClosed) {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || isResource(err) {
				// Out of descriptors: those in use come back; a portal
				// that ends would not.
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return err
		}
		s.admit(nc, group)
	}
}

// admit starts a connection. Where there are too many logins the newcomer displaces
// one that has been at it for longer: a flood of connections that never log in
// then ends its own, and an initiator that needs a few milliseconds gets through.
func (s *Server) admit(nc net.Conn, group uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		nc.Close()
		return
	}
	c := newConn(s, nc)
	c.portalGroup = group
	old, ok := s.makeRoom(network(c.remote))
	if !ok {
		nc.Close()
	}
	if !ok || old != nil {
		if say, missed := s.refusals.allow(network(c.remote), time.Now()); say {
			s.log.Warn("iSCSI connections at their limit: refusing new ones, or logins that don't end", "remote", nc.RemoteAddr(),
				"sessions", len(s.sessions), "logging in", len(s.joining), "not said before", missed)
		}
	}
	if !ok {
		return
	}
	if old != nil {
		s.leaveJoining(old)
		old.drop("login displaced by newer ones")
	}
	s.conns[c] = struct{}{}
	s.relief.begin.Do(func() { s.relief.wg.Go(s.relieve) })
	s.joining = append(s.joining, c)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		c.run()
	}()
}

// makeRoom finds the login that a newcomer from an address displaces, nil where
// there is room; or refuses the newcomer. s.mu is held.
func (s *Server) makeRoom(from netip.Addr) (old *conn, ok bool) {
	if len(s.conns) >= s.opt.MaxConnections+2*s.opt.MaxLogins {
		return nil, false // those displaced are not even gone
	}
	count := map[netip.Addr]int{}
	busiest := from
	for _, c := range s.joining {
		a := network(c.remote)
		if count[a]++; count[a] > count[busiest] {
			busiest = a
		}
	}
	full := len(s.joining) >= s.opt.MaxLogins || len(s.sessions)+len(s.joining) >= s.opt.MaxConnections
	switch {
	case count[from] >= s.opt.MaxLoginsPerAddress:
		busiest = from
	case !full:
		return nil, true
	case len(s.joining) == 0:
		return nil, false // sessions are not displaced
	}
	i := slices.IndexFunc(s.joining, func(c *conn) bool { return network(c.remote) == busiest })
	return s.joining[i], true
}

// leaveJoining takes a connection out of those that log in. s.mu is held.
func (s *Server) leaveJoining(c *conn) {
	if i := slices.Index(s.joining, c); i >= 0 {
		s.joining = slices.Delete(s.joining, i, i+1)
	}
}

// network is who counts as one: an address, or what a host with IPv6 is usually
// given, 64 bits of it.
func network(remote netip.AddrPort) netip.Addr {
	a := remote.Addr().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64) // never fails: the length is right
		return p.Addr()
	}
	return a
}

// isResource reports whether Accept failed for want of something that comes back.
func isResource(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
