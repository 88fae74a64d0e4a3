package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/cleave-san/cleave/arrays/driver"
)

// maxReply is the most bytes of one answer.
const maxReply = 64 << 20

// Client talks to a data plane. Its methods may be called at once; every call
// has a connection of its own, so that one that waits holds up no other.
type Client struct {
	socket string
	http   *http.Client
}

var (
	_ driver.Driver        = (*Client)(nil)
	_ driver.GroupSplitter = (*Client)(nil)
	_ driver.Armer         = (*Client)(nil)
	_ driver.Exposer       = (*Client)(nil)
	_ driver.Opener        = (*Client)(nil)
	_ driver.Rewriter      = (*Client)(nil)
	_ driver.Resyncer      = (*Client)(nil)
	_ driver.Reverter      = (*Client)(nil)
	_ driver.Breaker       = (*Client)(nil)
	_ driver.ChangeTracker = (*Client)(nil)
	_ driver.Describer     = (*Client)(nil)
)

// New makes a client of the control socket at a path. It connects when asked
// something.
func New(socket string) *Client {
	c := &Client{socket: socket}
	c.http = &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// Close has nothing to close: connections end with their calls.
func (c *Client) Close() error { return nil }

// notReached marks the errors before which nothing was sent.
type notReached struct{ err error }

func (e *notReached) Error() string { return e.err.Error() }
func (e *notReached) Unwrap() error { return e.err }

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, &notReached{err}
	}
	return conn.(*net.UnixConn), nil
}

// lost is the error of a call that got no answer. changes says whether the
// data plane might have done something.
func (c *Client) lost(what string, changes bool, err error) error {
	var nr *notReached
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the made-up address
	}
	switch {
	case errors.As(err, &nr):
		return driver.Errorf(driver.Unreachable, "%s: data plane is not there (is `cleave array` running?): %w", what, nr.err)
	case changes:
		return driver.Errorf(driver.OutcomeUnknown, "%s: data plane at %s gave no answer: %w", what, c.socket, err)
	}
	return driver.Errorf(driver.Unreachable, "%s: data plane at %s gave no answer: %w", what, c.socket, err)
}

// call asks the data plane. in is the body, nil for none; out takes the answer,
// nil if there is none to take.
func (c *Client) call(ctx context.Context, what, method, path string, in, out any) error {
	changes := method != http.MethodGet
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return driver.Errorf(driver.InvalidRequest, "%s: %w", what, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://dataplane/"+Version+path, body)
	if err != nil {
		return driver.Errorf(driver.InvalidRequest, "%s: %w", what, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if err := ctx.Err(); err != nil {
		return driver.Errorf(driver.Unreachable, "%s: not asked: %w", what, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.lost(what, changes, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return c.lost(what, changes, err)
	}
	if resp.StatusCode/100 != 2 {
		return fault(what, resp.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return c.lost(what, changes, fmt.Errorf("answer makes no sense: %w", err))
	}
	return nil
}

// fault makes an error of an answer that is no success.
func fault(what string, status int, body []byte) error {
	var f Fault
	if err := json.Unmarshal(body, &f); err != nil || f.Error == "" {
		return driver.Errorf(driver.Unknown, "%s: data plane answered %s", what, strings.ToLower(http.StatusText(status)))
	}
	return &driver.Error{Kind: driver.ParseKind(f.Kind), Message: f.Error}
}

// ask is call for a question that is no GET because it has a body.
func (c *Client) ask(ctx context.Context, what, path string, in, out any) error {
	err := c.call(ctx, what, http.MethodPost, path, in, out)
	var e *driver.Error
	if errors.As(err, &e) && e.Kind == driver.OutcomeUnknown {
		q := *e
		q.Kind = driver.Unreachable
		return &q
	}
	return err
}

// Kind classifies an error of one of the Client's methods.
func (c *Client) Kind(err error) driver.Kind {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return driver.Unknown
}

func esc[S ~string](s S) string { return url.PathEscape(string(s)) }
