package cinder

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/cleave-san/cleave/arrays/driver"
)

const (
	attempts   = 6
	firstPause = 250 * time.Millisecond
	mostPause  = 20 * time.Second // also of what Retry-After asks for
)

// client makes Cinder's calls. It logs in with the first one.
type client struct {
	o *Options

	mu sync.Mutex
	sc *gophercloud.ServiceClient
}

// service is the client of Cinder, logged in.
func (c *client) service(ctx context.Context) (*gophercloud.ServiceClient, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sc == nil {
		sc, err := c.o.login(ctx)
		if err != nil {
			return nil, err
		}
		c.sc = sc
	}
	return c.sc, nil
}

// verb is a method of HTTP and what may be done where nobody knows whether the
// request was acted on.
type verb struct {
	method string
	once   bool // it may not be made again: it would make another one
}

var (
	ask    = verb{http.MethodGet, false}
	create = verb{http.MethodPost, true}
	act    = verb{http.MethodPost, false} // comes to the same end however often it is made
	change = verb{http.MethodPut, false}
	end    = verb{http.MethodDelete, false}
)

// call makes a request and decodes the reply into out, unless that is nil. Path
// begins behind the project. What may be repeated is repeated: questions,
// deletions and settings always, a creation where it was certainly not acted on.
func (c *client) call(ctx context.Context, v verb, path string, query url.Values, in, out any) error {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	pause := firstPause
	for try := 1; ; try++ {
		if err := ctx.Err(); err != nil {
			return driver.Errorf(driver.Unreachable, "%s: Cinder was not asked: %w", what(v.method, path), err)
		}
		err := c.try(ctx, v, path, in, out)
		if err == nil || try == attempts || !again(err, v) {
			return err
		}
		wait := pause/2 + rand.N(pause/2)
		var f *fault
		if errors.As(err, &f) && f.after > 0 {
			wait = min(f.after, mostPause) + rand.N(firstPause)
		}
		pause = min(2*pause, mostPause)
		if c.o.pause(ctx, wait) != nil {
			return err
		}
	}
}

// again reports whether a call that failed may and should be repeated.
func again(err error, v verb) bool {
	var f *fault
	if !errors.As(err, &f) {
		return false
	}
	switch f.status {
	case http.StatusTooManyRequests:
		return true
	case http.StatusRequestEntityTooLarge: // Cinder's older word for 429 where it says when
		return f.after > 0
	case http.StatusServiceUnavailable:
		return !v.once || f.after > 0
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		return !v.once
	case 0:
		return f.transient && (!v.once || !f.sent)
	}
	return false
}

// createLimit is how long a creation may take whose caller has left.
const createLimit = 3 * time.Minute

// try makes a request once. A creation is not taken back when ctx ends, as nobody
// would know whether it comes to something after it was looked up in vain: it
// goes on to its end, and keeps the lock of its call until then.
func (c *client) try(ctx context.Context, v verb, path string, in, out any) error {
	if !v.once {
		return c.request(ctx, v.method, path, in, out)
	}
	done := make(chan error, 1)
	unlock := extend(ctx)
	go func() {
		defer unlock()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createLimit)
		defer cancel()
		done <- c.request(ctx, v.method, path, in, out)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return driver.Errorf(driver.OutcomeUnknown, "%s: Cinder was still at it when the time was over: %w", what(v.method, path), context.Cause(ctx))
	}
}

func (c *client) request(ctx context.Context, method, path string, in, out any) error {
	sc, err := c.service(ctx)
	if err != nil {
		return err
	}
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }})
	// The body is read here: an error in it is an answer that was cut off.
	o := &gophercloud.RequestOpts{KeepResponseBody: true, JSONBody: in, OkCodes: []int{200, 201, 202, 204}}
	resp, err := sc.Request(ctx, method, sc.ServiceURL(path), o)
	if err != nil {
		return failure(ctx, what(method, path), err, sent.Load(), method != http.MethodGet)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err == nil && out != nil {
		err = json.Unmarshal(raw, out)
	}
	if err != nil {
		return failure(ctx, what(method, path), cutOff{err}, true, method != http.MethodGet)
	}
	return nil
}

// retryAfter reads the header of that name: seconds or a date (RFC 9110, 10.2.3).
func retryAfter(h http.Header) time.Duration {
	s := h.Get("Retry-After")
	if n, err := strconv.Atoi(s); err == nil && n > 0 {
		return time.Duration(min(n, 3600)) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(time.Until(t), time.Millisecond)
	}
	return 0
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// until calls done until it says so. ctx bounds it.
func (c *client) until(ctx context.Context, done func() (bool, error)) error {
	for pause := 50 * time.Millisecond; ; pause = min(pause*3/2, 3*time.Second) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if err := c.o.pause(ctx, pause/2+rand.N(pause/2)); err != nil {
			return driver.Errorf(driver.OutcomeUnknown, "Cinder was still at it when the time was over: %w", err)
		}
	}
}
