package target

import (
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
	joining   []*conn // of conns: those that log in, the oldest first
	sessions  map[*session]struct{}
	lastTSIH  uint16

	workers atomic.Int64 // goroutines that may be inside a device
	idle    chan struct{}

	looking atomic.Bool // a reader does, see iscsi/patient

	readShare, writeShare atomic.Int64 // bytes that one connection may hold, now
	big                   budget       // commands beyond their share
	refusals              limiter
	relief                relief
	wg                    sync.WaitGroup // listeners and connections
}

// New makes a server that listens nowhere and shows nothing. Close ends it.
func New(o Options) *Server {
	o = o.withDefaults()
	s := &Server{
		opt: o, log: o.Logger,
		targets:   map[iscsi.Name]*target{},
		listeners: map[net.Listener]portal{},
		conns:     map[*conn]struct{}{},
		sessions:  map[*session]struct{}{},
		idle:      make(chan struct{}, 1),
		relief:    relief{kick: make(chan struct{}, 1), quit: make(chan struct{})},
	}
	s.big.left = o.Memory
	s.divide()
	return s
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
	s.relief.end()

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
