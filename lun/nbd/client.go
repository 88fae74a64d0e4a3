package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// ClientOptions has usable zero values.
type ClientOptions struct {
	// Export is the name of the export; empty is the server's default one.
	Export string
	// Timeout is how long one request may wait for its answer before the
	// client gives the connection up. Default 30 s.
	Timeout time.Duration
	// Depth is how many requests may be under way at once; more wait. Default
	// 128.
	Depth int
}

func (o *ClientOptions) defaults() {
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Depth <= 0 {
		o.Depth = 128
	}
}

// Client is a lun.Device (and lun.Trimmer, Zeroer, Mapper, Blocker) at the other
// end of a connection. After the first failure of the connection, or the first
// request without an answer in time, every request fails with that error,
// which wraps ErrLost; requests under way may or may not have been carried out.
type Client struct {
	conn net.Conn
	o    ClientOptions
	neg  negotiation
	name string // for errors

	slots chan struct{}
	write chan struct{} // holds one token while a request is being sent

	mu      sync.Mutex
	pending map[uint64]*call
	cookie  uint64
	err     error         // why the connection is over
	over    chan struct{} // closed when the reader has ended
}

var (
	_ lun.Device  = (*Client)(nil)
	_ lun.Trimmer = (*Client)(nil)
	_ lun.Zeroer  = (*Client)(nil)
	_ lun.Mapper  = (*Client)(nil)
	_ lun.Blocker = (*Client)(nil)
)

// ErrLost is wrapped by the errors of a client whose connection is over.
var ErrLost = errors.New("NBD connection lost")

// Dial connects to a server ("unix" and a path, or "tcp" and host:port) and
// opens an export. ctx bounds both, and nothing after.
func Dial(ctx context.Context, network, addr string, o ClientOptions) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("NBD server at %s: %w", addr, err)
	}
	return New(ctx, conn, o)
}

// New opens an export over a connection, which it owns from then on, also when
// it fails. ctx and o.Timeout bound the negotiation.
func New(ctx context.Context, conn net.Conn, o ClientOptions) (*Client, error) {
	o.defaults()
	c := &Client{
		conn: conn, o: o, neg: negotiation{conn: conn},
		name:    fmt.Sprintf("NBD export %q", o.Export),
		slots:   make(chan struct{}, o.Depth),
		write:   make(chan struct{}, 1),
		pending: map[uint64]*call{},
		over:    make(chan struct{}),
	}
	// Closing is what ends a negotiation that ctx has overtaken: a deadline
	// alone could be reset behind its back.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err := conn.SetDeadline(time.Now().Add(o.Timeout))
	if err == nil {
		err = c.neg.run(o.Export)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if !stop() && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s at %s: %w", c.name, conn.RemoteAddr(), err)
	}
	go c.read()
	return c, nil
}

// Size is the size of the export in bytes.
func (c *Client) Size() int64 { return c.neg.size }

// ReadOnly says whether the server refuses writes.
func (c *Client) ReadOnly() bool {
	return c.neg.flags&flagHasFlags != 0 && c.neg.flags&flagReadOnly != 0
}

// Blocks are the server's minimum and preferred block sizes, at least 512.
func (c *Client) Blocks() (logical, physical int) {
	logical = max(512, int(c.neg.minimum))
	return logical, max(logical, int(min(c.neg.preferred, 1<<20)))
}

// Err is why the connection is over, nil while it is not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Done is closed once the connection is over and nothing touches the buffers
// of its requests any more.
func (c *Client) Done() <-chan struct{} { return c.over }

// Close tells the server goodbye, ends the connection and waits for the reader.
// Requests under way fail with lun.ErrClosed. A second call does nothing.
func (c *Client) Close() error {
	c.mu.Lock()
	alive := c.err == nil
	if alive {
		c.err = fmt.Errorf("%s: %w", c.name, lun.ErrClosed)
	}
	c.mu.Unlock()
	if alive {
		// A writer that is stuck must not make Close stick. The goodbye is a
		// courtesy: a server takes an end of stream as well.
		_ = c.conn.SetDeadline(time.Now().Add(time.Second))
		select {
		case c.write <- struct{}{}:
			var b [requestSize]byte
			(&request{cmd: cmdDisc}).encode(&b)
			_, _ = c.conn.Write(b[:])
			<-c.write
		default:
		}
		c.conn.Close()
	}
	<-c.over
	return nil
}

// fail ends the connection for a reason; the first reason stays.
func (c *Client) fail(err error) error {
	c.mu.Lock()
	if c.err == nil {
		c.err = fmt.Errorf("%s: %w: %w", c.name, ErrLost, err)
	}
	err = c.err
	c.mu.Unlock()
	c.conn.Close()
	return err
}

// do sends a request and waits for its answer. When it returns, nothing
// touches the call's buffers any more.
func (c *Client) do(k *call, payload []byte) error {
	timer := time.NewTimer(c.o.Timeout)
	defer timer.Stop()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-c.over:
		return c.Err()
	case <-timer.C:
		// Everything ahead has its own limit, which ends the connection first
		// or about now.
		return c.fail(c.late(k))
	}

	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		<-c.over
		return c.Err()
	}
	c.cookie++
	k.cookie = c.cookie
	c.pending[k.cookie] = k
	c.mu.Unlock()

	if err := c.send(k, payload); err != nil {
		err = c.fail(fmt.Errorf("sending a %v: %w", k.cmd, err))
		<-c.over
		return err
	}
	select {
	case <-k.done:
	case <-timer.C:
		_ = c.fail(c.late(k)) // read from c.err below
		<-c.over
	case <-c.over:
	}
	// The reader finishes calls before it ends, so an answer that came in time
	// counts even when the connection broke right after.
	select {
	case <-k.done:
		if k.err != nil {
			return fmt.Errorf("%s: %v of %d bytes at %d: %w", c.name, k.cmd, k.length, k.off, k.err)
		}
		return nil
	default:
		return c.Err()
	}
}

func (c *Client) late(k *call) error {
	return fmt.Errorf("no answer to a %v of %d bytes at %d within %v", k.cmd, k.length, k.off, c.o.Timeout)
}

func (c *Client) send(k *call, payload []byte) error {
	var head [requestSize]byte
	k.encode(&head)
	bufs := net.Buffers{head[:]}
	if len(payload) > 0 {
		bufs = append(bufs, payload)
	}
	select {
	case c.write <- struct{}{}:
		defer func() { <-c.write }()
	case <-c.over:
		return c.Err()
	}
	// A server that does not read is caught here, one that does not answer by
	// do's timer.
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.o.Timeout)); err != nil {
		return err
	}
	_, err := bufs.WriteTo(c.conn)
	return err
}
