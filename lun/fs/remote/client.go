package remote

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
)

// maxIdle is how many connections are kept for later calls.
const maxIdle = 8

// patience is how long one answer may take. A worker that hangs is an error then.
const patience = 2 * time.Minute

// Client is an fs.FS that another process serves. All methods may be called at
// once.
type Client struct {
	dial func() (net.Conn, error)
	info fs.Info
	root fs.Ref

	mu     sync.Mutex
	idle   []*wire
	closed bool
}

var (
	_ fs.FS         = (*Client)(nil)
	_ fs.StatLister = (*Client)(nil)
)

// wire is one connection with its buffers.
type wire struct {
	net.Conn
	in, out []byte
}

// New asks what is served where dial connects to.
func New(dial func() (net.Conn, error)) (*Client, error) {
	c := &Client{dial: dial}
	err := c.call(opInfo, fs.Ref{}, nil, func(f *fields) error {
		c.root = f.ref()
		var w wireInfo
		if err := json.Unmarshal(f.b, &w); err != nil {
			return fmt.Errorf("%w: %w", errFrame, err)
		}
		f.b = nil
		c.info = w.Info
		for _, text := range w.Warnings {
			c.info.Warnings = append(c.info.Warnings, errors.New(clean(text)))
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close closes the connections. Calls that are under way come to their end.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var errs []error
	for _, w := range c.idle {
		errs = append(errs, w.Close())
	}
	c.idle = nil
	return errors.Join(errs...)
}

func (c *Client) take() (*wire, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, lun.ErrClosed
	}
	if n := len(c.idle) - 1; n >= 0 {
		w := c.idle[n]
		c.idle = c.idle[:n]
		return w, nil
	}
	conn, err := c.dial()
	if err != nil {
		return nil, err
	}
	return &wire{Conn: conn}, nil
}

func (c *Client) give(w *wire) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) >= maxIdle {
		w.Close()
		return
	}
	c.idle = append(c.idle, w)
}

// call sends a request: a Ref, and what arg appends. answer takes the answer
// apart, all of it; the bytes are the connection's and valid until it returns.
func (c *Client) call(o op, r fs.Ref, arg func([]byte) []byte, answer func(*fields) error) error {
	w, err := c.take()
	if err != nil {
		return err
	}
	w.out = putRef(frame(w.out, byte(o)), r)
	if arg != nil {
		w.out = arg(w.out)
	}
	if err := errors.Join(w.SetDeadline(time.Now().Add(patience)), send(w, w.out)); err != nil {
		w.Close()
		return fmt.Errorf("the file system's worker: %w", err)
	}
	status, body, buf, err := receive(w, w.in, maxAnswer+maxText*4)
	if err != nil {
		w.Close()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("the file system's worker: %w", err)
	}
	w.in = buf
	defer c.give(w)
	if status != statusOK {
		return parseError(body)
	}
	f := &fields{b: body}
	if err := answer(f); err != nil {
		return err
	}
	if f.bad || len(f.b) > 0 {
		return errFrame
	}
	return nil
}

func parseError(b []byte) error {
	var e failure
	if err := json.Unmarshal(b, &e); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	return &e
}

// Info implements fs.FS.
func (c *Client) Info() fs.Info { return c.info }

// Root implements fs.FS.
func (c *Client) Root() fs.Ref { return c.root }

// Stat implements fs.FS.
func (c *Client) Stat(r fs.Ref) (st fs.Stat, err error) {
	err = c.call(opStat, r, nil, func(f *fields) error { st = f.stat(); return nil })
	return st, err
}

// Lookup implements fs.FS.
func (c *Client) Lookup(dir fs.Ref, name string) (r fs.Ref, err error) {
	if !fs.GoodName(name) {
		return r, fs.ErrNotExist
	}
	err = c.call(opLookup, dir, func(b []byte) []byte { return putText(b, name) }, func(f *fields) error { r = f.ref(); return nil })
	return r, err
}

// listed is an entry that arrived.
type listed struct {
	fs.Entry
	stat fs.Stat
	err  error
}

// List implements fs.FS.
func (c *Client) List(dir fs.Ref, after uint64, fn func(fs.Entry) error) error {
	return c.list(dir, after, false, func(l listed) error { return fn(l.Entry) })
}

// ListStat implements fs.StatLister.
func (c *Client) ListStat(dir fs.Ref, after uint64, fn func(fs.Entry, fs.Stat, error) error) error {
	return c.list(dir, after, true, func(l listed) error { return fn(l.Entry, l.stat, l.err) })
}

func (c *Client) list(dir fs.Ref, after uint64, stats bool, fn func(listed) error) error {
	for more := true; more; {
		var entries []listed
		ask := func(b []byte) []byte {
			b = binary.AppendUvarint(b, after)
			if stats {
				return append(b, 1)
			}
			return append(b, 0)
		}
		err := c.call(opList, dir, ask, func(f *fields) error {
			more = f.number() != 0
			for len(f.b) > 0 && !f.bad {
				entries = append(entries, f.entry(stats))
			}
			return nil
		})
		if err != nil {
			return err
		}
		if more && len(entries) == 0 {
			return errFrame
		}
		for _, e := range entries {
			if !fs.GoodName(e.Name) || e.Next == 0 || e.Next == after {
				return errFrame
			}
			after = e.Next
			if err := fn(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *fields) entry(stat bool) listed {
	l := listed{Entry: fs.Entry{Name: f.text(), Ref: f.ref(), Type: fs.Type(f.number()), Next: f.number()}}
	switch {
	case !stat:
	case f.number() == statusOK:
		l.stat = f.stat()
	default:
		l.err = parseError(f.bytes())
	}
	return l
}

// Readlink implements fs.FS.
func (c *Client) Readlink(r fs.Ref) (target string, err error) {
	err = c.call(opReadlink, r, nil, func(f *fields) error { target = f.text(); return nil })
	if err == nil && len(target) > fs.MaxTarget {
		err = errFrame
	}
	return target, err
}

// Xattrs implements fs.FS.
func (c *Client) Xattrs(r fs.Ref, fn func(string, []byte) error) error {
	return c.call(opXattrs, r, nil, func(f *fields) error {
		for len(f.b) > 0 && !f.bad {
			name, value := f.text(), f.bytes()
			if f.bad {
				break
			}
			if err := fn(name, value); err != nil {
				return err
			}
		}
		return nil
	})
}

// Open implements fs.FS.
func (c *Client) Open(r fs.Ref) (fs.File, error) {
	o := &file{c: c, r: r}
	if err := c.call(opSize, r, nil, func(f *fields) error { o.size = f.size(); return nil }); err != nil {
		return nil, err
	}
	return o, nil
}

type file struct {
	c    *Client
	r    fs.Ref
	size int64
}

func (o *file) Size() int64 { return o.size }

func (o *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, lun.ErrOutOfRange
	}
	done, want := 0, int(min(int64(len(p)), max(0, o.size-off)))
	for done < want {
		n := min(want-done, maxRead)
		err := o.c.call(opRead, o.r, func(b []byte) []byte {
			return binary.AppendUvarint(binary.AppendUvarint(b, uint64(off)+uint64(done)), uint64(n))
		}, func(f *fields) error {
			if len(f.b) != n {
				return errFrame
			}
			copy(p[done:], f.b)
			f.b = nil
			return nil
		})
		if err != nil {
			return done, err
		}
		done += n
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

func (o *file) Extents(off, n int64, fn func(fs.Extent) error) error {
	if off < 0 || n < 0 {
		return lun.ErrOutOfRange
	}
	for n = min(n, max(0, o.size-off)); n > 0; {
		var runs []fs.Extent
		err := o.c.call(opExtents, o.r, func(b []byte) []byte {
			return binary.AppendUvarint(binary.AppendUvarint(b, uint64(off)), uint64(n))
		}, func(f *fields) error {
			for len(f.b) > 0 && !f.bad {
				n, kind, at := f.size(), f.number(), f.size()
				runs = append(runs, fs.Extent{Len: n, Kind: fs.Kind(kind &^ sharedBit), Device: at, Shared: kind&sharedBit != 0})
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(runs) == 0 {
			return errFrame
		}
		for _, e := range runs {
			if e.Len <= 0 || e.Len > n {
				return errFrame
			}
			e.Off = off
			off, n = off+e.Len, n-e.Len
			if err := fn(e); err != nil {
				return err
			}
		}
	}
	return nil
}
