// Package qmp speaks the QEMU Machine Protocol (docs/interop/qmp-spec.rst in
// QEMU's source): greeting, capabilities, commands, replies and events, over a
// unix socket.
//
// It knows the protocol and no command. What QEMU answers is treated as hostile:
// a message is at most MaxMessage bytes, and anything that is no message ends
// the connection.
//
// A QMP socket serves one client at a time; a second one is connected by the
// kernel and then hears nothing. Dial reports that as ErrBusy.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

const (
	// MaxMessage bounds one message from QEMU, in bytes. query-named-block-nodes
	// of a VM with hundreds of disks takes some hundred kilobytes.
	MaxMessage = 8 << 20
	// GreetingLimit is how long Dial waits for QEMU to greet. QEMU answers from
	// its main loop, which a slow disk can keep busy for a while.
	GreetingLimit = 5 * time.Second
)

var (
	// ErrAbsent: nobody listens on the socket, or it is not there. The QEMU
	// that made it has ended, or was not started.
	ErrAbsent = errors.New("no QEMU listens there")
	// ErrBusy: somebody listens and does not greet: another client is served.
	ErrBusy = errors.New("another client holds the QMP socket (it serves one at a time)")
	// ErrClosed: the connection ended, by Close, by QEMU, or after a message
	// that was none.
	ErrClosed = errors.New("QMP connection is closed")
)

// Error is QEMU's refusal of a command.
type Error struct {
	Command string
	Class   string // "GenericError", "CommandNotFound", …
	Desc    string // QEMU's words
}

func (e *Error) Error() string { return fmt.Sprintf("QEMU refused %s: %s", e.Command, e.Desc) }

// Event is something that QEMU tells by itself: STOP, RESUME, SHUTDOWN, …
type Event struct {
	Name string
	Data json.RawMessage
}

// Conn is a connection that is ready for commands. Its methods may be called at
// once; commands are sent one after the other.
type Conn struct {
	nc      net.Conn
	onEvent func(Event)
	turn    chan struct{} // holds a token while a command is under way
	done    chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	nextID  uint64
	waiting uint64 // the id whose reply is awaited, 0: none
	reply   chan message
	err     error // why the reader ended
}

type message struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
	ID    json.RawMessage `json:"id"`
}

// Dial connects to the socket at path and negotiates capabilities. onEvent, if
// not nil, is called for each event, in order, by the goroutine that reads: it
// must not block and must not call Do.
//
// Its errors are ErrAbsent, ErrBusy, the context's cause, or what the peer did
// wrong.
func Dial(ctx context.Context, path string, onEvent func(Event)) (*Conn, error) {
	c, err := dial(ctx, path, onEvent)
	if err != nil {
		return nil, fmt.Errorf("QMP socket %s: %w", path, err)
	}
	return c, nil
}

func dial(ctx context.Context, path string, onEvent func(Event)) (*Conn, error) {
	limited, cancel := context.WithTimeoutCause(ctx, GreetingLimit, ErrBusy)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(limited, "unix", path)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w (%w)", ErrAbsent, err)
	case errors.Is(err, syscall.EAGAIN): // the listener's backlog is full
		return nil, ErrBusy
	case err != nil && limited.Err() != nil:
		return nil, context.Cause(limited)
	case err != nil:
		return nil, err
	}
	stop := context.AfterFunc(limited, func() { nc.SetDeadline(time.Unix(1, 0)) })
	r := bufio.NewReaderSize(nc, 64<<10)
	var hello message
	if err = read(r, &hello); err == nil && hello.QMP == nil {
		err = errors.New("the first message is no QMP greeting")
	}
	if !stop() && err == nil {
		err = context.Cause(limited)
	}
	if err != nil {
		nc.Close()
		if limited.Err() != nil {
			return nil, context.Cause(limited)
		}
		return nil, err
	}
	c := &Conn{nc: nc, onEvent: onEvent, turn: make(chan struct{}, 1), done: make(chan struct{})}
	go c.readAll(r)
	if err := c.Do(limited, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Do runs one command and stores its return value in result, unless that is
// nil. args is what encoding/json makes an object of, or nil.
//
// After an error that is not an *Error it is unknown whether QEMU did it. A
// command whose context ended before the reply does not disturb later ones.
func (c *Conn) Do(ctx context.Context, command string, args, result any) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, context.Cause(ctx))
	case <-c.done:
		return fmt.Errorf("%s: %w", command, c.Err())
	}
	c.mu.Lock()
	c.nextID++
	id := c.nextID
	reply := make(chan message, 1)
	c.waiting, c.reply = id, reply
	c.mu.Unlock()

	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	stop := context.AfterFunc(ctx, func() { c.nc.SetWriteDeadline(time.Unix(1, 0)) })
	_, err = c.nc.Write(append(b, '\n'))
	if !stop() {
		err = context.Cause(ctx)
		c.nc.Close() // half a command may be out: nothing can follow it
	}
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	select {
	case m := <-reply:
		if m.Error != nil {
			return &Error{Command: command, Class: clip(m.Error.Class), Desc: clip(m.Error.Desc)}
		}
		if result != nil {
			if err := json.Unmarshal(m.Return, result); err != nil {
				return fmt.Errorf("%s: QEMU's answer: %w", command, err)
			}
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: no answer: %w", command, context.Cause(ctx))
	case <-c.done:
		return fmt.Errorf("%s: no answer: %w", command, c.Err())
	}
}

// Done is closed when the connection has ended; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err is nil while the connection lives, and wraps ErrClosed afterwards.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and returns when its goroutine has ended. QEMU then
// serves the next client.
func (c *Conn) Close() error {
	err := c.nc.Close()
	<-c.done
	return err
}

func (c *Conn) readAll(r *bufio.Reader) {
	defer close(c.done)
	for {
		var m message
		if err := read(r, &m); err != nil {
			c.nc.Close()
			c.mu.Lock()
			c.err = fmt.Errorf("%w: %w", ErrClosed, err)
			c.mu.Unlock()
			return
		}
		if m.Event != "" {
			if c.onEvent != nil {
				c.onEvent(Event{Name: clip(m.Event), Data: m.Data})
			}
			continue
		}
		c.mu.Lock()
		if c.waiting != 0 && string(m.ID) == fmt.Sprint(c.waiting) {
			c.reply <- m // has room for the one reply that is taken
			c.waiting = 0
		}
		c.mu.Unlock()
	}
}

// read takes one message, which ends with a newline.
func read(r *bufio.Reader, m *message) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > MaxMessage {
			return fmt.Errorf("a message of more than %d bytes", MaxMessage)
		}
		if err == nil && line == nil {
			line = part
			break
		}
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	if err := json.Unmarshal(line, m); err != nil {
		return fmt.Errorf("no QMP message: %.80q: %w", line, err)
	}
	return nil
}

func clip(s string) string {
	if len(s) > 500 {
		return s[:500]
	}
	return s
}
