package target

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/mask"
)

// Server is one iSCSI target node: its portals, its targets and their LUNs. All
// methods may be called at once from several goroutines.
type Server struct {
	opt   Options
	log   *slog.Logger
	masks mask.Table

	mu        sync.Mutex
	closed    bool
	targets   map[iscsi.Name]*target
	listeners map[net.Listener]portal
	conns     map[*conn]struct{}
	sessions  map[*session]struct{}
	lastTSIH  uint16

	logins   atomic.Int64 // connections not yet in full feature phase
	workers  atomic.Int64 // goroutines that may be inside a device
	idle     chan struct{}
	refusals limiter
	wg       sync.WaitGroup // listeners and connections
}

// New makes a server that listens nowhere and shows nothing. Close ends it.
func New(o Options) *Server {
	o = o.withDefaults()
	return &Server{
		opt: o, log: o.Logger,
		targets:   map[iscsi.Name]*target{},
		listeners: map[net.Listener]portal{},
		conns:     map[*conn]struct{}{},
		sessions:  map[*session]struct{}{},
		idle:      make(chan struct{}, 1),
	}
}

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

// admit starts a connection, unless there are too many.
func (s *Server) admit(nc net.Conn, group uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		nc.Close()
	case len(s.conns) >= s.opt.MaxConnections || s.logins.Load() >= int64(s.opt.MaxLogins):
		nc.Close()
		if ok, missed := s.refusals.allow("", time.Now()); ok {
			s.log.Warn("iSCSI connection refused: limit reached", "remote", nc.RemoteAddr(),
				"connections", len(s.conns), "logging in", s.logins.Load(), "refused before", missed)
		}
	default:
		c := newConn(s, nc)
		c.portalGroup = group
		s.conns[c] = struct{}{}
		s.logins.Add(1)
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			c.run()
		}()
	}
}

// Close stops listening, drops all connections and waits for their goroutines;
// for those inside a device it waits no longer than AbortTimeout, and returns
// ErrBusy if one has not come back. Devices are not closed. Closing twice is
// harmless.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.drop("server is closing")
	}
	s.mu.Unlock()
	s.wg.Wait()

	patience := time.NewTimer(s.opt.AbortTimeout)
	defer patience.Stop()
	for s.workers.Load() > 0 {
		select {
		case <-s.idle:
		case <-patience.C:
			return fmt.Errorf("closing the iSCSI server: %w", ErrBusy)
		}
	}
	return nil
}

// workerDone is called by each worker as it ends.
func (s *Server) workerDone() {
	if s.workers.Add(-1) == 0 {
		select {
		case s.idle <- struct{}{}:
		default:
		}
	}
}

// SessionInfo describes one full-feature session.
type SessionInfo struct {
	Initiator iscsi.Name
	Target    iscsi.Name // empty: discovery
	ISID      [6]byte
	TSIH      uint16
	Remote    netip.AddrPort
	Since     time.Time
}

// Sessions lists the sessions there are, in no order.
func (s *Server) Sessions() []SessionInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]SessionInfo, 0, len(s.sessions))
	for ss := range s.sessions {
		out = append(out, ss.info)
	}
	return out
}
