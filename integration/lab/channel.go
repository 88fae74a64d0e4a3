package lab

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
)

// Output is what a script in the guest left.
type Output struct {
	Stdout, Stderr string
	Status         int
}

// ExitError says that a script in the guest ended with a status other than 0.
type ExitError struct {
	VM     string
	Output Output
}

func (e *ExitError) Error() string {
	msg := strings.TrimSpace(e.Output.Stderr)
	if i := strings.LastIndexByte(msg, '\n'); i >= 0 {
		msg = msg[i+1:]
	}
	return fmt.Sprintf("VM %s: script ended with status %d: %s", e.VM, e.Output.Status, msg)
}

// maxAnswer bounds one answer line of a guest, in bytes: 4 MiB of output and
// of errors, in base64.
const maxAnswer = 12 << 20

// errChannel means that the guest's command channel is gone.
var errChannel = errors.New("command channel closed")

// channel runs scripts in the guest, several at once; guest/control is its
// other end.
type channel struct {
	conn net.Conn
	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	next    int
	waiting map[int]chan Output
	closed  bool
}

func newChannel(conn net.Conn) (c *channel, hello <-chan Output) {
	c = &channel{conn: conn, done: make(chan struct{}), waiting: map[int]chan Output{}, next: 1}
	first := make(chan Output, 1)
	c.waiting[0] = first // the guest speaks first, as number 0
	go c.read()
	return c, first
}

func (c *channel) read() {
	defer close(c.done)
	s := bufio.NewScanner(c.conn)
	s.Buffer(make([]byte, 64<<10), maxAnswer)
	for s.Scan() {
		id, out, err := parseAnswer(s.Text())
		if err != nil {
			continue // what is not an answer is noise on the line
		}
		c.mu.Lock()
		w := c.waiting[id]
		delete(c.waiting, id)
		c.mu.Unlock()
		if w != nil {
			w <- out
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for id, w := range c.waiting {
		delete(c.waiting, id)
		close(w)
	}
}

func parseAnswer(line string) (id int, out Output, err error) {
	f := strings.Fields(line)
	if len(f) != 4 {
		return 0, out, fmt.Errorf("%d fields", len(f))
	}
	if id, err = strconv.Atoi(f[0]); err != nil {
		return 0, out, err
	}
	if out.Status, err = strconv.Atoi(f[1]); err != nil {
		return 0, out, err
	}
	for i, to := range []*string{&out.Stdout, &out.Stderr} {
		if f[i+2] == "-" {
			continue
		}
		b, err := base64.StdEncoding.DecodeString(f[i+2])
		if err != nil {
			return 0, out, err
		}
		*to = string(b)
	}
	return id, out, nil
}

// run hands a script to /bin/sh in the guest and waits for its end. If ctx ends
// first, the script goes on in the guest.
func (c *channel) run(ctx context.Context, script string) (Output, error) {
	w := make(chan Output, 1)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return Output{}, errChannel
	}
	id := c.next
	c.next++
	c.waiting[id] = w
	// Written under the lock: two scripts must not mix on the line.
	_, err := fmt.Fprintf(c.conn, "%d %s\n", id, base64.StdEncoding.EncodeToString([]byte(script)))
	c.mu.Unlock()
	if err != nil {
		return Output{}, fmt.Errorf("%w: %w", errChannel, err)
	}
	select {
	case out, ok := <-w:
		if !ok {
			return Output{}, errChannel
		}
		return out, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
		return Output{}, ctx.Err()
	}
}

func (c *channel) close() {
	c.conn.Close()
	<-c.done
}
