package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
)

// Client is the Service behind a control socket. Its methods may be called at
// once; each obeys its context, and ending it ends the call on the server too
// (what was started there goes on by itself).
//
// A server that can't be reached is ErrUnreachable. If the server went away
// after it had got a request, the error says so: what was asked may have
// happened.
type Client struct {
	socket string
	http   *http.Client
}

var _ orchestrator.Service = (*Client)(nil)

// NewClient returns a client of the server at the unix socket. Nothing is
// connected until a method is called. Close it in the end.
func NewClient(socket string) *Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
		MaxIdleConns:       2,
		IdleConnTimeout:    30 * time.Second,
	}}}
}

// Close lets idle connections go. Calls under way are not touched.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Version asks the server which release of Cleave it is.
func (c *Client) Version(ctx context.Context) (release string, err error) {
	var a versionAnswer
	err = c.call(ctx, http.MethodGet, "version", nil, &a)
	return a.Release, err
}

func (c *Client) VMs(ctx context.Context) ([]orchestrator.VM, error) {
	var a vmsAnswer
	err := c.call(ctx, http.MethodGet, "vms", nil, &a)
	return list(c, "vms", a.VMs, err)
}

func (c *Client) Explain(ctx context.Context, name string) ([]orchestrator.Verdict, error) {
	path := "verdicts"
	if name != "" {
		path += "?vm=" + url.QueryEscape(name)
	}
	var a verdictsAnswer
	err := c.call(ctx, http.MethodGet, path, nil, &a)
	return list(c, "verdicts", a.Verdicts, err)
}

func (c *Client) Create(ctx context.Context, r orchestrator.Request) (orchestrator.Set, error) {
	return c.set(ctx, http.MethodPost, "sets", r)
}

func (c *Client) Get(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return c.set(ctx, http.MethodGet, "sets/"+url.PathEscape(string(id)), nil)
}

func (c *Client) List(ctx context.Context) ([]orchestrator.Set, error) {
	var a setsAnswer
	err := c.call(ctx, http.MethodGet, "sets", nil, &a)
	return list(c, "sets", a.Sets, err)
}

func (c *Client) Expose(ctx context.Context, id orchestrator.SetID, r orchestrator.ExposeRequest) (orchestrator.Set, error) {
	return c.set(ctx, http.MethodPost, "sets/"+url.PathEscape(string(id))+"/expose", r)
}

func (c *Client) Unexpose(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return c.set(ctx, http.MethodPost, "sets/"+url.PathEscape(string(id))+"/unexpose", nil)
}

func (c *Client) Release(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return c.set(ctx, http.MethodPost, "sets/"+url.PathEscape(string(id))+"/release", nil)
}

func (c *Client) Recover(ctx context.Context, id orchestrator.SetID, r orchestrator.RecoverRequest) (orchestrator.Set, error) {
	return c.set(ctx, http.MethodPost, "sets/"+url.PathEscape(string(id))+"/recover", r)
}

func (c *Client) Revert(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return c.set(ctx, http.MethodPost, "sets/"+url.PathEscape(string(id))+"/revert", nil)
}

func (c *Client) Break(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return c.set(ctx, http.MethodPost, "sets/"+url.PathEscape(string(id))+"/break", nil)
}

func (c *Client) Diff(ctx context.Context, id, from orchestrator.SetID) (orchestrator.Diff, error) {
	path := "sets/" + url.PathEscape(string(id)) + "/diff"
	if from != "" {
		path += "?from=" + url.QueryEscape(string(from))
	}
	var a diffAnswer
	err := c.call(ctx, http.MethodGet, path, nil, &a)
	if err == nil && a.Diff == nil {
		err = fmt.Errorf("control plane at %s: answer without a diff", c.socket)
	}
	if err != nil {
		return orchestrator.Diff{}, err
	}
	return *a.Diff, nil
}

// Wait streams the set's events. A stream that is cut off is ErrUnreachable;
// the set itself goes on.
func (c *Client) Wait(ctx context.Context, id orchestrator.SetID, watch func(orchestrator.Event)) (orchestrator.Set, error) {
	resp, err := c.do(ctx, http.MethodGet, "sets/"+url.PathEscape(string(id))+"/events", nil)
	if err != nil {
		return orchestrator.Set{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answeredError(resp)
	}
	limited := &io.LimitedReader{R: resp.Body}
	dec := json.NewDecoder(limited)
	for {
		limited.N = maxAnswer // for each line
		var l eventLine
		if err := dec.Decode(&l); err != nil {
			if ctx.Err() != nil {
				return orchestrator.Set{}, fmt.Errorf("waiting for %s: %w", id, ctx.Err())
			}
			return orchestrator.Set{}, fmt.Errorf("waiting for %s: the control plane went away: %w", id, orchestrator.ErrUnreachable)
		}
		switch {
		case l.Error != nil:
			return deref(l.Set), l.Error
		case l.Set != nil:
			return *l.Set, nil
		case l.Event != nil && watch != nil:
			watch(*l.Event)
		}
	}
}

func (c *Client) set(ctx context.Context, method, path string, body any) (orchestrator.Set, error) {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return orchestrator.Set{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answeredError(resp)
	}
	var a setAnswer
	if err := c.read(ctx, resp, &a); err != nil {
		return orchestrator.Set{}, err
	}
	if a.Set == nil {
		return orchestrator.Set{}, fmt.Errorf("control plane at %s: answer without a set", c.socket)
	}
	return *a.Set, nil
}

func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		_, err := answeredError(resp)
		return err
	}
	return c.read(ctx, resp, into)
}

func (c *Client) read(ctx context.Context, resp *http.Response, into any) error {
	err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(into)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("control plane at %s: %w", c.socket, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("control plane at %s: answer breaks off or is no JSON (%w): %w", c.socket, err, orchestrator.ErrUnreachable)
	}
	return nil
}

// do sends a request; the caller closes the answer's body.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("request: %w", err)
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://cleave/v%d/%s", Version, path), content)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err == nil {
		return resp, nil
	}
	var dial *net.OpError
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("control plane at %s: %w", c.socket, ctx.Err())
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("control plane at %s: %w", c.socket, orchestrator.ErrNotPermitted)
	case errors.As(err, &dial) && dial.Op == "dial":
		// As text: that the socket's file is missing is no "not found" of ours.
		return nil, fmt.Errorf("control plane at %s: %w (%s)", c.socket, orchestrator.ErrUnreachable, dial.Err.Error())
	}
	return nil, fmt.Errorf("control plane at %s went away before it answered; what was asked may have been done: %w",
		c.socket, orchestrator.ErrUnreachable)
}

// answeredError turns an answer that is no success into the error it stands for.
func answeredError(resp *http.Response) (orchestrator.Set, error) {
	var a errorAnswer
	err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&a)
	if err != nil || a.Error.Message == "" {
		return orchestrator.Set{}, fmt.Errorf("control plane answered %q without saying why", resp.Status)
	}
	return deref(a.Set), &a.Error
}

func deref(s *orchestrator.Set) orchestrator.Set {
	if s == nil {
		return orchestrator.Set{}
	}
	return *s
}

// list tells a list that is empty from one that did not come.
func list[T any](c *Client, name string, items []T, err error) ([]T, error) {
	if err == nil && items == nil {
		err = fmt.Errorf("control plane at %s: answer without %s", c.socket, name)
	}
	return items, err
}
