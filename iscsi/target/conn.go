package target

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/iscsi/patient"
	"github.com/cleave-san/cleave/iscsi/pdu"
)

// readBuffer is the size of a session's read buffer, in bytes: a command with 4 KiB
// of immediate data sixteen times. A stranger's is smaller.
const (
	readBuffer  = 64 << 10
	loginBuffer = 4 << 10
)

// conn is one TCP connection. Its run goroutine logs it in and is then its
// reader; a second goroutine is its writer, where sendNow doesn't do without.
type conn struct {
	srv    *Server
	nc     net.Conn
	remote netip.AddrPort
	local  netip.AddrPort
	src    source
	rd     *pdu.Reader

	portalGroup uint16 // tag of the portal it came to

	dropOnce sync.Once
	dropped  chan struct{} // closed by drop
	why      string        // valid after dropped
	ended    chan struct{} // closed when the session is out of the server's books

	// Set by login, constant after.
	par    params
	ss     *session
	window uint32

	tx        sender
	direct    direct
	vec       net.Buffers // the writer's
	statSN    uint32      // login's, then whose turn it is to send
	expCmdSN  atomic.Uint32
	credits   atomic.Uint32 // CmdSNs whose commands have not ended
	sendMax   atomic.Uint32 // the initiator's MaxRecvDataSegmentLength, now
	loggedOut bool          // the reader's

	heard    atomic.Uint64 // PDUs
	managing atomic.Int64  // task management functions that wait
	leaving  atomic.Bool   // the reader has ended

	// mu guards the commands: the table, the queues of the nexuses, and the
	// states of tasks.
	mu      sync.Mutex
	tasks   map[uint32]*task
	over    bool // no new tasks
	nextTTT uint32
	writes  int64 // bytes that the data of writes holds

	text  textExchange // the reader's
	asked bool         // the reader's: R2Ts wait to be sent

	kept      []*nexus      // of tasks that the reader will perform; the reader's, and changed with mu
	turn      atomic.Uint64 // see serve
	readEnded chan error    // from the last reader
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, nc: nc, dropped: make(chan struct{}), ended: make(chan struct{}), readEnded: make(chan error, 1), tasks: map[uint32]*task{}}
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		c.remote = netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	}
	if a, ok := nc.LocalAddr().(*net.TCPAddr); ok {
		c.local = netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	}
	c.src.Conn = patient.New(nc, &s.looking)
	c.rd = pdu.NewReader(&c.src, loginBuffer, loginDataMax)
	c.window = uint32(2 * s.opt.QueueDepth)
	c.tx.init(&s.readShare)
	return c
}

// drop ends the connection. Only the first reason counts. It may be called by
// anybody, with any lock held.
func (c *conn) drop(why string) {
	c.dropOnce.Do(func() {
		c.why = why
		close(c.dropped)
		c.nc.Close()
		c.tx.close(false)
	})
}

// run is the life of a connection.
func (c *conn) run() {
	defer c.leaveServer()
	// The deadline is of the whole login, so that a byte now and then does
	// not keep it half open.
	_ = c.nc.SetDeadline(time.Now().Add(c.srv.opt.LoginTimeout))
	err := c.login()
	if err != nil {
		c.drop("login: " + err.Error())
		if !errors.Is(err, io.EOF) {
			c.refused(err)
		}
		return
	}
	c.rd.Grow(readBuffer)
	c.direct.init(c.nc)
	_ = c.nc.SetDeadline(time.Time{})
	c.srv.log.Info("iSCSI login", "initiator", c.ss.info.Initiator, "target", c.ss.info.Target,
		"remote", c.remote, "tsih", c.ss.info.TSIH)

	var wg sync.WaitGroup
	written := make(chan struct{})
	wg.Go(func() {
		defer close(written)
		c.write()
		if c.leaving.Load() {
			return // the reader says why
		}
		c.drop("closed after the last response")
	})
	wg.Go(c.watch)
	go c.reads()
	err = <-c.readEnded
	c.abandon()
	// After a logout the writer sends what is queued, the response last; after
	// a protocol error, the Reject, if the initiator takes it soon.
	told := errors.Is(err, errProtocol) || errors.Is(err, pdu.ErrDataDigest)
	patience := c.srv.opt.LoginTimeout
	if told {
		patience = min(patience, time.Second)
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(patience))
	c.leaving.Store(true)
	c.tx.close(c.loggedOut || told)
	if c.loggedOut || told {
		<-written
	}
	switch {
	case c.loggedOut:
		c.drop("logout")
	case err != nil && !errors.Is(err, io.EOF):
		c.drop(err.Error())
	default:
		c.drop("closed by the initiator")
	}
	wg.Wait()
	c.srv.log.Info("iSCSI session ended", "initiator", c.ss.info.Initiator, "target", c.ss.info.Target,
		"remote", c.remote, "tsih", c.ss.info.TSIH, "why", c.why)
}

// leaveServer takes the connection and its session out of the books.
func (c *conn) leaveServer() {
	c.drop("closed by the initiator")
	s := c.srv
	s.mu.Lock()
	delete(s.conns, c)
	s.leaveJoining(c)
	if ss := c.ss; ss != nil {
		delete(s.sessions, ss)
		s.divide()
		if ss.target != nil {
			delete(ss.target.sessions, ss)
			ss.target.numbers.end(ss.info.Initiator, ss.port(), c.loggedOut)
		}
		if v := ss.view.Load(); v != nil {
			for _, n := range *v {
				n.scsi.Detach()
				n.close()
			}
		}
	}
	s.mu.Unlock()
	close(c.ended)
}

// refused logs a login that failed, at most so often for one address.
func (c *conn) refused(err error) {
	if ok, missed := c.srv.refusals.allow(network(c.remote), time.Now()); ok {
		c.srv.log.Warn("iSCSI login refused", "remote", c.remote, "err", err, "refused before", missed)
	}
}

// newTTT makes a target transfer tag, never the reserved one.
func (c *conn) newTTT() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newTTTLocked()
}

func (c *conn) newTTTLocked() uint32 {
	if c.nextTTT++; c.nextTTT == pdu.NoTag {
		c.nextTTT = 1
	}
	return c.nextTTT
}
