package nbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// RedialOptions say where a Redialer's server is and what it must be.
type RedialOptions struct {
	Network, Addr string // as in Dial
	Client        ClientOptions
	// Size is what the export must have, in bytes. One of another size is
	// another device, and is refused.
	Size int64
	// Logical and Physical are the block sizes in bytes to report while there
	// is no connection. Default 512 and 4096.
	Logical, Physical int
	ReadOnly          bool // refuse writes on this side
	// Cooldown is for how long after a failed attempt requests fail with its
	// error, without another attempt. Default 1 s.
	Cooldown time.Duration
}

// Redialer is a Device whose server may come and go. It connects when the first
// request needs it, and again when one comes after the connection was lost; a
// request that was under way at that moment fails, and is not repeated, since
// only its sender knows whether that is right.
//
// The first Sync after a connection was lost with unsynced writes fails: they
// may be gone with the server.
type Redialer struct {
	o RedialOptions

	mu       sync.Mutex
	client   *Client
	dialing  *attempt // under way, nil if none
	failed   time.Time
	err      error
	closed   bool
	gen      uint64 // of client
	acked    uint64 // writes acknowledged, a count
	synced   uint64 // how many of them are stable, or reported as lost
	unsynced uint64 // generation of the oldest that is neither
}

var (
	_ lun.Device  = (*Redialer)(nil)
	_ lun.Trimmer = (*Redialer)(nil)
	_ lun.Zeroer  = (*Redialer)(nil)
	_ lun.Mapper  = (*Redialer)(nil)
	_ lun.Blocker = (*Redialer)(nil)
)

// NewRedialer connects to nothing yet.
func NewRedialer(o RedialOptions) *Redialer {
	o.Client.defaults()
	if o.Logical <= 0 {
		o.Logical = 512
	}
	if o.Physical < o.Logical {
		o.Physical = max(o.Logical, 4096)
	}
	if o.Cooldown <= 0 {
		o.Cooldown = time.Second
	}
	return &Redialer{o: o}
}

// attempt is one try to connect. err is set before done is closed.
type attempt struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// get returns a live client and its generation, connecting if need be. Callers
// that come during an attempt share its outcome.
func (r *Redialer) get() (*Client, uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		switch {
		case r.closed:
			return nil, 0, fmt.Errorf("NBD server at %s: %w", r.o.Addr, lun.ErrClosed)
		case r.client != nil && r.client.Err() == nil:
			return r.client, r.gen, nil
		case r.dialing != nil:
			a := r.dialing
			r.mu.Unlock()
			<-a.done
			r.mu.Lock()
			if a.err != nil {
				return nil, 0, a.err
			}
		case r.err != nil && time.Since(r.failed) < r.o.Cooldown:
			return nil, 0, r.err
		default:
			if err := r.connect(); err != nil {
				return nil, 0, err
			}
		}
	}
}

// connect makes one attempt. It is called with r.mu held, and lets it go
// meanwhile.
func (r *Redialer) connect() error {
	ctx, cancel := context.WithTimeout(context.Background(), r.o.Client.Timeout)
	defer cancel()
	a := &attempt{cancel: cancel, done: make(chan struct{})}
	r.dialing = a
	old := r.client
	r.client = nil
	r.mu.Unlock()

	if old != nil {
		old.Close()
	}
	c, err := Dial(ctx, r.o.Network, r.o.Addr, r.o.Client)
	if err == nil && c.Size() != r.o.Size {
		err = fmt.Errorf("NBD export %q at %s has %d bytes, want %d: another device",
			r.o.Client.Export, r.o.Addr, c.Size(), r.o.Size)
	}
	r.mu.Lock()
	if err == nil && r.closed {
		err = lun.ErrClosed
	}
	if err != nil && c != nil {
		c.Close() // new, nothing under way: does not wait on the server
	}
	if r.err = err; err != nil {
		r.failed = time.Now()
	} else {
		r.client = c
		r.gen++
	}
	a.err, r.dialing = err, nil
	close(a.done)
	return err
}

// Close ends the connection; later requests fail with lun.ErrClosed.
func (r *Redialer) Close() error {
	r.mu.Lock()
	r.closed = true
	if r.dialing != nil {
		r.dialing.cancel()
	}
	c := r.client
	r.mu.Unlock()
	if c != nil {
		return c.Close()
	}
	return nil
}

// Err is why there is no connection, nil if there is one or none was tried.
func (r *Redialer) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client != nil {
		return r.client.Err()
	}
	return r.err
}

func (r *Redialer) Size() int64                     { return r.o.Size }
func (r *Redialer) Blocks() (logical, physical int) { return r.o.Logical, r.o.Physical }

func (r *Redialer) ReadAt(p []byte, off int64) (int, error) {
	c, _, err := r.get()
	if err != nil {
		return 0, err
	}
	return c.ReadAt(p, off)
}

func (r *Redialer) Extents(off, n int64, fn func(lun.Extent) error) error {
	c, _, err := r.get()
	if err != nil {
		return err
	}
	return c.Extents(off, n, fn)
}

// change runs a write on a live client and remembers that it wants a Sync.
func (r *Redialer) change(f func(*Client) error) error {
	if r.o.ReadOnly {
		return fmt.Errorf("NBD server at %s: %w", r.o.Addr, lun.ErrReadOnly)
	}
	c, gen, err := r.get()
	if err != nil {
		return err
	}
	if err := f(c); err != nil {
		return err
	}
	r.mu.Lock()
	if r.acked == r.synced {
		r.unsynced = gen
	}
	r.acked++
	r.mu.Unlock()
	return nil
}

func (r *Redialer) WriteAt(p []byte, off int64) (n int, err error) {
	err = r.change(func(c *Client) error { n, err = c.WriteAt(p, off); return err })
	return n, err
}

func (r *Redialer) Trim(off, n int64) error {
	return r.change(func(c *Client) error { return c.Trim(off, n) })
}

func (r *Redialer) WriteZeroes(off, n int64) error {
	return r.change(func(c *Client) error { return c.WriteZeroes(off, n) })
}

var errUnsynced = errors.New("writes acknowledged before the connection was lost may be gone")

// Sync flushes the server. With nothing written since the last one it bothers
// nobody, and succeeds without a server.
func (r *Redialer) Sync() error {
	r.mu.Lock()
	upTo := r.acked
	clean := r.synced >= upTo
	r.mu.Unlock()
	if clean {
		return nil
	}
	c, gen, err := r.get()
	if err != nil {
		return err
	}
	r.mu.Lock()
	lost := r.unsynced != gen && r.synced < upTo
	if lost {
		r.settle(upTo, gen)
	}
	r.mu.Unlock()
	if lost {
		return fmt.Errorf("NBD server at %s: %w", r.o.Addr, errUnsynced)
	}
	if err := c.Sync(); err != nil {
		return err
	}
	r.mu.Lock()
	r.settle(upTo, gen)
	r.mu.Unlock()
	return nil
}

// settle takes the first upTo writes off the unsynced ones. Those that came
// later went to gen or a younger connection.
func (r *Redialer) settle(upTo, gen uint64) {
	if upTo > r.synced {
		r.synced, r.unsynced = upTo, gen
	}
}
