// Package agent speaks with a QEMU guest agent (docs/interop/qemu-ga-ref in
// QEMU's documentation) over the unix socket that QEMU gives its virtio-serial
// channel.
//
// The other end is inside a guest: it may be absent, hang, restart in the
// middle, or answer anything. Every exchange begins with guest-sync-delimited,
// so that no answer is taken for that of another question; every answer is
// bounded; every wait ends with its context.
package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
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
	// MaxMessage bounds one answer of the agent, in bytes.
	MaxMessage = 4 << 20
	// AnswerLimit is how long the agent may take for one answer. No command
	// that is used here waits for anything in the guest.
	AnswerLimit = 10 * time.Second
)

var (
	// ErrAbsent: QEMU does not listen on the socket.
	ErrAbsent = errors.New("no QEMU listens on the agent's socket")
	// ErrSilent: nobody in the guest answers on the channel, or another client
	// of the socket gets the answers.
	ErrSilent = errors.New("the guest agent does not answer (not running, hung, or its socket is in use by another program)")
)

// Error is the agent's refusal of a command.
type Error struct {
	Command string
	Class   string
	Desc    string // the guest's words, cleaned and cut
}

func (e *Error) Error() string { return fmt.Sprintf("guest agent refused %s: %s", e.Command, e.Desc) }

// Client talks to one VM's agent. It holds the socket only while something is
// under way, since the socket serves one program at a time. All methods may be
// called at once; exchanges take turns.
type Client struct {
	path string
	turn chan struct{} // holds a token while an exchange is under way

	mu    sync.Mutex
	users int   // how many operations are under way
	conn  *conn // kept between exchanges while there are users; guarded by turn
}

// New returns a client for the socket at path. It connects when it is used.
func New(path string) *Client {
	return &Client{path: path, turn: make(chan struct{}, 1)}
}

// use keeps the connection open until the returned function is called: opening
// the channel costs the agent up to 100 ms each time.
func (c *Client) use() func() {
	c.mu.Lock()
	c.users++
	c.mu.Unlock()
	return func() {
		c.mu.Lock()
		c.users--
		last := c.users == 0
		c.mu.Unlock()
		if !last {
			return
		}
		select {
		case c.turn <- struct{}{}:
			c.mu.Lock()
			if c.users == 0 {
				c.hangUp()
			}
			c.mu.Unlock()
			<-c.turn
		default: // somebody came meanwhile, and leaves later
		}
	}
}

// hangUp closes the connection; the caller has the turn.
func (c *Client) hangUp() {
	if c.conn != nil {
		c.conn.nc.Close()
		c.conn = nil
	}
}

// Do runs one command and stores its return value in result unless that is nil.
// After an error that is no *Error the command may or may not have been done.
func (c *Client) Do(ctx context.Context, command string, args, result any) error {
	defer c.use()()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, context.Cause(ctx))
	}
	limited, cancel := context.WithTimeoutCause(ctx, AnswerLimit, ErrSilent)
	defer cancel()
	err := c.exchange(limited, command, args, result)
	var refused *Error
	if err != nil && !errors.As(err, &refused) {
		c.hangUp() // what comes on it later belongs to nobody
		if limited.Err() != nil {
			err = context.Cause(limited)
		}
		return fmt.Errorf("%s: %w", command, err)
	}
	return err
}

func (c *Client) exchange(ctx context.Context, command string, args, result any) error {
	if c.conn == nil {
		k, err := dial(ctx, c.path)
		if err != nil {
			return err
		}
		c.conn = k
	}
	stop := c.conn.bind(ctx)
	defer stop()
	if !c.conn.synced {
		if err := c.conn.sync(); err != nil {
			return err
		}
	}
	if err := c.conn.send(command, args, ""); err != nil {
		return err
	}
	m, err := c.conn.receive()
	if err != nil {
		return err
	}
	if m.Error != nil {
		return &Error{Command: command, Class: clean(m.Error.Class), Desc: clean(m.Error.Desc)}
	}
	if result != nil {
		if err := json.Unmarshal(m.Return, result); err != nil {
			return fmt.Errorf("the agent's answer: %w", err)
		}
	}
	return nil
}

// conn is a connection to the channel. It is used by one exchange at a time.
type conn struct {
	nc     net.Conn
	r      *bufio.Reader
	synced bool
}

type message struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

func dial(ctx context.Context, path string) (*conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	case errors.Is(err, syscall.EAGAIN):
		return nil, ErrSilent
	case err != nil:
		return nil, err
	}
	return &conn{nc: nc, r: bufio.NewReaderSize(nc, 64<<10)}, nil
}

// bind makes the context's end that of every read and write, until stop.
func (k *conn) bind(ctx context.Context) (stop func()) {
	s := context.AfterFunc(ctx, func() { k.nc.SetDeadline(time.Unix(1, 0)) })
	return func() { s() }
}

// sync empties the channel of answers to what others asked before: the agent
// sends a byte that no JSON has (0xFF) before the answer that is ours. Ours
// begins with it too, which flushes half a command that may lie before the
// agent's parser.
func (k *conn) sync() error {
	var b [4]byte
	rand.Read(b[:])
	id := int64(binary.BigEndian.Uint32(b[:]) &^ (1 << 31))
	if err := k.send("guest-sync-delimited", map[string]int64{"id": id}, "\xff"); err != nil {
		return err
	}
	for skipped := 0; ; {
		b, err := k.r.ReadByte()
		if err != nil {
			return err
		}
		if b != 0xff {
			if skipped++; skipped > MaxMessage {
				return fmt.Errorf("%d bytes and no answer among them", skipped)
			}
			continue
		}
		m, err := k.receive()
		if err != nil {
			return err
		}
		if string(m.Return) == fmt.Sprint(id) {
			k.synced = true
			return nil
		}
		skipped += 64 // a sync of somebody else's; they do not come for ever
	}
}

func (k *conn) send(command string, args any, before string) error {
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return err
	}
	_, err = k.nc.Write(append([]byte(before), append(b, '\n')...))
	return err
}

func (k *conn) receive() (message, error) {
	var line []byte
	for {
		part, err := k.r.ReadSlice('\n')
		if len(line)+len(part) > MaxMessage {
			return message{}, fmt.Errorf("an answer of more than %d bytes", MaxMessage)
		}
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				err = errors.New("QEMU closed the channel")
			}
			return message{}, err
		}
	}
	var m message
	if err := json.Unmarshal(bytes.TrimLeft(line, "\xff"), &m); err != nil {
		return message{}, fmt.Errorf("no answer of an agent: %.80q: %w", line, err)
	}
	if m.Return == nil && m.Error == nil {
		return message{}, fmt.Errorf("neither return nor error: %.80q", line)
	}
	return m, nil
}

// clean makes a guest's words fit for one line of a terminal.
func clean(s string) string {
	if len(s) > 300 {
		s = s[:300]
	}
	return string(bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, bytes.ToValidUTF8([]byte(s), []byte("?"))))
}
