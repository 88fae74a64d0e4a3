package api

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
)

// codes is the one table between the errors of a Service, their names on the
// wire and the HTTP status that goes with them. The first row that matches an
// error decides.
var codes = []struct {
	code   string
	status int
	err    error
}{
	{"usage", http.StatusBadRequest, orchestrator.ErrUsage},
	{"level", http.StatusUnprocessableEntity, orchestrator.ErrLevel},
	{"not-found", http.StatusNotFound, orchestrator.ErrNotFound},
	{"busy", http.StatusConflict, orchestrator.ErrBusy},
	{"not-permitted", http.StatusForbidden, orchestrator.ErrNotPermitted},
	{"timeout", http.StatusGatewayTimeout, orchestrator.ErrTimeout},
	{"timeout", http.StatusGatewayTimeout, context.DeadlineExceeded},
	{"unreachable", http.StatusBadGateway, orchestrator.ErrUnreachable},
	// The caller is still there, so it was the server that gave up: it stops.
	{"unreachable", http.StatusServiceUnavailable, context.Canceled},
}

const codeInternal = "internal"

// Error is an error that a server answered. errors.Is finds the orchestrator's
// error in it, errors.As the *driver.Error of an array.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"` // one line
	Next    string `json:"hint,omitempty"`
	Kind    string `json:"kind,omitempty"` // of an array's error
}

func (e *Error) Error() string { return e.Message }

// Hint is what to try next, "" if the server did not say.
func (e *Error) Hint() string { return e.Next }

// Unwrap gives the error the identities that it had on the server.
func (e *Error) Unwrap() []error {
	var is []error
	for _, row := range codes {
		if row.code == e.Code {
			is = append(is, row.err)
			break
		}
	}
	if k := driver.ParseKind(e.Kind); k != driver.Unknown {
		is = append(is, &driver.Error{Kind: k, Message: e.Message})
	}
	return is
}

// maxMessage bounds what one error may say, in bytes.
const maxMessage = 8 << 10

// describe puts err into words for the wire.
func describe(err error) (int, Error) {
	out := Error{Code: codeInternal, Message: oneLine(err.Error())}
	status := http.StatusInternalServerError
	for _, row := range codes {
		if errors.Is(err, row.err) {
			out.Code, status = row.code, row.status
			break
		}
	}
	if h := (interface{ Hint() string })(nil); errors.As(err, &h) {
		out.Next = oneLine(h.Hint())
	}
	if k := arrays.KindOf(err); k != driver.Unknown {
		out.Kind = k.String()
	}
	return status, out
}

func oneLine(s string) string {
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "…"
	}
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
