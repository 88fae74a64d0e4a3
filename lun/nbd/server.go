package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// Export is a device under a name.
type Export struct {
	Name        string // "" is the default export; at most 4096 bytes
	Description string // shown to people by NBD_OPT_LIST and NBD_OPT_INFO
	Device      lun.Device
	ReadOnly    bool // refuse writes, whatever the device can do
}

// ServerOptions has usable zero values.
type ServerOptions struct {
	// HandshakeTimeout ends a connection that has not begun transmission by
	// then. Default 10 s.
	HandshakeTimeout time.Duration
	// Depth is how many requests of one connection are worked on at once; more
	// wait in the socket. Default 64.
	Depth int
	// Connections is how many clients may be connected at once; more are hung
	// up on. Default 64.
	Connections int
	// TLS is offered to clients (NBD_OPT_STARTTLS); nil: there is none. It has a
	// certificate, and in ClientAuth and ClientCAs says who may come.
	TLS *tls.Config
	// TLSOptional serves clients that don't ask for TLS as well; without it they
	// are told to, and learn nothing about the exports (the specification's
	// SELECTIVETLS and FORCEDTLS).
	TLSOptional bool
	// Log gets one line for each connection that ends by an error. Default:
	// none.
	Log *slog.Logger
}

// Server serves a fixed list of exports. It holds no state between
// connections; its methods may be called at once from several goroutines.
type Server struct {
	exports map[string]*Export
	order   []string
	o       ServerOptions
	buffers bufferPool
}

// NewServer checks the exports. It does not take ownership of their devices.
func NewServer(o ServerOptions, exports ...Export) (*Server, error) {
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.Depth <= 0 {
		o.Depth = 64
	}
	if o.Connections <= 0 {
		o.Connections = 64
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{exports: make(map[string]*Export, len(exports)), o: o}
	for _, e := range exports {
		switch {
		case e.Device == nil:
			return nil, fmt.Errorf("NBD export %q: no device", e.Name)
		case len(e.Name) > maxName || len(e.Description) > maxName:
			return nil, fmt.Errorf("NBD export %.40q…: name or description over %d bytes", e.Name, maxName)
		case s.exports[e.Name] != nil:
			return nil, fmt.Errorf("NBD export %q is there twice", e.Name)
		}
		s.exports[e.Name] = &e
		s.order = append(s.order, e.Name)
	}
	return s, nil
}

// Serve accepts connections until ctx ends or the listener fails. It closes
// the listener, hangs up on all clients and returns when every request under
// way has ended: nil if ctx ended it.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()

	slots := make(chan struct{}, s.o.Connections)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				continue
			}
			return fmt.Errorf("NBD server on %s: %w", l.Addr(), err)
		}
		select {
		case slots <- struct{}{}:
		default:
			s.o.Log.Warn("NBD client refused: too many connections", "limit", s.o.Connections)
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := s.ServeConn(ctx, conn); err != nil {
				s.o.Log.Warn("NBD connection ended", "error", err)
			}
		})
	}
}

// ServeConn serves one client and closes conn. It returns nil when the client
// left in good order or ctx ended, after every request under way has ended.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	if err := conn.SetDeadline(time.Now().Add(s.o.HandshakeTimeout)); err != nil {
		return fmt.Errorf("NBD handshake: %w", err)
	}
	h := &handshake{s: s, conn: conn}
	e, err := h.run()
	if err == nil && e != nil {
		if err = conn.SetDeadline(time.Time{}); err == nil {
			t := &transmission{s: s, conn: h.conn, e: e, structured: h.structured, allocation: h.hasAlloc}
			err = t.run(ctx)
		}
	}
	if h.conn != conn && err == nil {
		h.conn.Close() // says goodbye, as TLS has it
	}
	if ctx.Err() != nil || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// flags are the transmission flags of an export. Several connections are
// always safe: nothing is cached per connection, and a device's Sync covers
// every acknowledged write, whichever connection it came by.
func (e *Export) flags(structured bool) uint16 {
	f := uint16(flagHasFlags | flagFlush | flagFUA | flagCanMultiConn | flagCache)
	if structured {
		f |= flagDF // no read is ever answered in pieces
	}
	if e.ReadOnly {
		return f | flagReadOnly
	}
	f |= flagWriteZeroes
	if _, ok := e.Device.(lun.Trimmer); ok {
		f |= flagTrim
	}
	return f
}

// blocks are minimum, preferred and maximum block size. A device that is a file
// takes any byte; others get whole logical blocks, which is all that
// lun.Device promises.
func (e *Export) blocks() (minimum, preferred, maximum uint32) {
	logical, physical := 512, 4096
	if b, ok := e.Device.(lun.Blocker); ok {
		logical, physical = b.Blocks()
	} else if _, ok := e.Device.(lun.Filer); ok {
		logical = 1
	}
	if logical < 1 || logical > 64<<10 || logical&(logical-1) != 0 {
		logical = 512
	}
	if e.Device.Size()%int64(logical) != 0 {
		logical = 1 // else nobody could ask for the end of it
	}
	if physical < logical || physical > 1<<20 || physical&(physical-1) != 0 {
		physical = max(logical, 4096)
	}
	return uint32(logical), uint32(max(physical, 512)), MaxPayload
}
