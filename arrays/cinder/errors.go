package cinder

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/cleave-san/cleave/arrays/driver"
)

// fault is a request that failed.
type fault struct {
	what      string // "POST /snapshots"
	who       string // is asked: "Cinder"
	status    int    // 0: there was no answer
	message   string
	after     time.Duration // Retry-After
	sent      bool          // a connection was there: Cinder may have heard it
	transient bool
	kind      driver.Kind
	cause     error // of a context that ended, or nil: causes may tell secrets
}

func (f *fault) Error() string {
	if f.status == 0 {
		return fmt.Sprintf("%s: %s", f.what, f.message)
	}
	return fmt.Sprintf("%s: %s answers %d: %s", f.what, f.who, f.status, f.message)
}

func (f *fault) Unwrap() error { return f.cause }

// cutOff is a reply that ended before its end or is none of Cinder's.
type cutOff struct{ error }

// what names a request without its query.
func what(method, path string) string {
	path, _, _ = strings.Cut(path, "?")
	return method + " /" + path
}

// failure classifies what gophercloud returned. changes: the request was one to
// change something.
func failure(ctx context.Context, what string, err error, sent, changes bool) error {
	f := &fault{what: what, who: "Cinder", sent: sent}
	var code gophercloud.ErrUnexpectedResponseCode
	var reauth *gophercloud.ErrUnableToReauthenticate
	var tlsErr *tls.CertificateVerificationError
	switch {
	case errors.As(err, &reauth):
		// The request itself was answered with 401: nothing was done.
		f.status, f.message, f.kind = http.StatusUnauthorized, "the token is no longer valid, and Keystone gives no other", driver.NotPermitted
	case errors.As(err, &code):
		f.status, f.message, f.after = code.Actual, faultText(code.Body), retryAfter(code.ResponseHeader)
		f.kind = kindOf(f.status, f.after, changes)
	case errors.As(err, &tlsErr):
		f.message, f.kind = "the server's certificate doesn't verify: "+oneLine(tlsErr.Err.Error()), driver.Unreachable
	default:
		f.message, f.transient, f.kind = oneLine(err.Error()), true, driver.Unreachable
		if sent && changes {
			f.kind = driver.OutcomeUnknown
		}
		if cause := ctx.Err(); cause != nil {
			f.cause = cause
		}
	}
	return f
}

// loginFailure is failure for what Keystone was asked.
func loginFailure(ctx context.Context, err error) error {
	err = failure(ctx, "logging in", err, false, false)
	var f *fault
	if errors.As(err, &f) {
		f.who = "Keystone"
	}
	return err
}

func kindOf(status int, after time.Duration, changes bool) driver.Kind {
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return driver.InvalidRequest
	case http.StatusUnauthorized, http.StatusForbidden:
		return driver.NotPermitted
	case http.StatusNotFound:
		return driver.NotFound
	case http.StatusConflict, http.StatusTooManyRequests:
		return driver.Busy
	case http.StatusRequestEntityTooLarge:
		if after > 0 {
			return driver.Busy
		}
		return driver.NoSpace // "over limit": a quota
	case http.StatusNotAcceptable:
		return driver.NotSupported
	}
	if status >= 500 && changes && (status != http.StatusServiceUnavailable || after == 0) {
		return driver.OutcomeUnknown
	}
	return driver.Unreachable
}

// faultText is what an error of Cinder's or Keystone's says:
// {"badRequest": {"code": 400, "message": "…"}}.
func faultText(body []byte) string {
	var faults map[string]struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &faults) == nil {
		for _, f := range faults {
			if f.Message != "" {
				return oneLine(f.Message)
			}
		}
	}
	return "without a reason"
}

// oneLine makes a stranger's text fit into an error.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

// Kind implements driver.Driver.
func (d *Driver) Kind(err error) driver.Kind {
	var e *driver.Error
	var f *fault
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.As(err, &f):
		return f.kind
	}
	return driver.Unknown
}

func isKind(err error, k driver.Kind) bool { return err != nil && (*Driver)(nil).Kind(err) == k }
