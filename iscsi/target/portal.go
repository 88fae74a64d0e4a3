package target

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/scsi"
)

// portal is an address and the portal group that it belongs to. A portal group is
// what SCSI calls a target port (RFC 7143 section 4.4.2): its tag is the
// relative target port identifier, and the number of its target port group.
type portal struct {
	addr  netip.AddrPort
	group uint16
}

// DefaultPortalGroup is the tag of portals that were given none.
const DefaultPortalGroup = 1

// Listen is ListenGroup in DefaultPortalGroup.
func (s *Server) Listen(ctx context.Context, addr netip.AddrPort) (netip.AddrPort, error) {
	return s.ListenGroup(ctx, addr, DefaultPortalGroup)
}

// ListenGroup binds one portal of a portal group and serves it until Close. It
// returns the address bound, which differs from addr where that has port 0.
// ctx bounds the binding only. The LUNs' access by the group is SetAccess's.
func (s *Server) ListenGroup(ctx context.Context, addr netip.AddrPort, group uint16) (netip.AddrPort, error) {
	if group == 0 {
		return netip.AddrPort{}, fmt.Errorf("iSCSI portal %s: portal group 0: want 1 to 65535", addr)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err // the address is said once
		}
		return netip.AddrPort{}, fmt.Errorf("iSCSI portal %s: %w", addr, err)
	}
	bound := l.Addr().(*net.TCPAddr).AddrPort()
	bound = netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port())
	if err := s.track(l, portal{bound, group}); err != nil {
		l.Close()
		return netip.AddrPort{}, err
	}
	go func() {
		if err := s.accept(l, group); err != nil {
			s.log.Error("iSCSI portal stopped", "portal", bound, "err", err)
		}
	}()
	return bound, nil
}

// Serve accepts connections from l until l or the server is closed, in
// DefaultPortalGroup. It owns l. It returns nil after Close, else the error of
// Accept.
func (s *Server) Serve(l net.Listener) error {
	p := portal{group: DefaultPortalGroup}
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		p.addr = netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	}
	if err := s.track(l, p); err != nil {
		l.Close()
		return err
	}
	return s.accept(l, p.group)
}

// track takes a listener into the books, and its group into every LUN.
func (s *Server) track(l net.Listener, p portal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.listeners[l] = p
	s.wg.Add(1)
	for _, t := range s.targets {
		for _, e := range t.luns {
			now := e.unit.PortGroups()
			next := s.portGroups(t)
			for i := range next {
				// What an initiator has set stays.
				if k := slices.IndexFunc(now, func(g scsi.PortGroup) bool { return g.ID == next[i].ID }); k >= 0 {
					next[i].State = now[k].State
				}
			}
			if err := e.unit.SetPortGroups(next); err != nil {
				delete(s.listeners, l)
				s.wg.Done()
				return fmt.Errorf("iSCSI portal %s: LUN %d: %w", p.addr, e.number, err)
			}
		}
	}
	return nil
}

// portGroups are the target port groups of a target: one for each portal group
// that is listened on. s.mu is held.
func (s *Server) portGroups(t *target) []scsi.PortGroup {
	tags := []uint16{}
	for _, p := range s.listeners {
		if !slices.Contains(tags, p.group) {
			tags = append(tags, p.group)
		}
	}
	if len(tags) == 0 {
		tags = append(tags, DefaultPortalGroup)
	}
	slices.Sort(tags)
	groups := make([]scsi.PortGroup, 0, len(tags))
	for _, tag := range tags {
		groups = append(groups, scsi.PortGroup{ID: tag, Ports: []uint16{tag}, State: t.access[tag]})
	}
	return groups
}

// SetAccess sets the asymmetric access state (ALUA) of all of a target's LUNs,
// those to come too, by one portal group. Sessions are told by a unit attention;
// commands that have begun are not waited for.
func (s *Server) SetAccess(name iscsi.Name, group uint16, state scsi.AccessState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.targets[name]
	switch {
	case t == nil:
		return fmt.Errorf("target %s: %w", name, ErrNoTarget)
	case group == 0 || state > scsi.Unavailable:
		return fmt.Errorf("target %s: portal group %d, %v: no such group or state", name, group, state)
	}
	t.access[group] = state
	for _, e := range t.luns {
		next := e.unit.PortGroups()
		for i := range next {
			if next[i].ID == group {
				next[i].State = state
			}
		}
		if err := e.unit.SetPortGroups(next); err != nil {
			return fmt.Errorf("target %s: LUN %d: %w", name, e.number, err)
		}
	}
	return nil
}

// portals are the addresses that an initiator is told, with the one first that
// it came to. s.mu is held.
func (s *Server) portals(first portal) []portal {
	out := []portal{first}
	add := func(p portal) {
		if p.addr.IsValid() && !p.addr.Addr().IsUnspecified() &&
			!slices.ContainsFunc(out, func(o portal) bool { return o.addr == p.addr }) {
			out = append(out, p)
		}
	}
	for _, p := range s.listeners {
		add(p)
	}
	for _, a := range s.opt.Advertise {
		add(portal{a, DefaultPortalGroup})
	}
	slices.SortFunc(out[1:], func(a, b portal) int {
		return cmp.Or(cmp.Compare(a.group, b.group), a.addr.Compare(b.addr))
	})
	return out
}
