package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
)

// Exit statuses. They are part of the interface: scripts branch on them.
const (
	ExitOK           = 0
	ExitFailed       = 1
	ExitUsage        = 2
	ExitPartial      = 3 // done in part, or a level below the one asked
	ExitNotFound     = 4
	ExitBusy         = 5
	ExitTimeout      = 6
	ExitUnreachable  = 7
	ExitNotPermitted = 8
)

// exits is the one table from errors to exit statuses and to what to try next
// where the error itself brings no hint. The first row that matches decides.
var exits = []struct {
	code  int
	errs  []error
	kinds []driver.Kind
	hint  string
}{
	{ExitUsage, []error{errUsage, orchestrator.ErrUsage},
		[]driver.Kind{driver.InvalidRequest, driver.NotSupported},
		"add --help to the command to see what it takes"},
	{ExitPartial, []error{orchestrator.ErrLevel}, nil,
		"`cleave explain VM` says what stands in the way; --level asks for less"},
	{ExitBusy, []error{syscall.EADDRINUSE}, nil,
		"`ss -ltnp` shows who listens there: end it, or choose another port"},
	{ExitFailed, []error{syscall.EADDRNOTAVAIL}, nil,
		"the address is none of this host's; `ip address` lists those that are"},
	{ExitBusy, []error{orchestrator.ErrBusy}, []driver.Kind{driver.Busy},
		"`cleave snapshot list` shows which set holds it"},
	{ExitNotPermitted, []error{orchestrator.ErrNotPermitted, fs.ErrPermission},
		[]driver.Kind{driver.NotPermitted, driver.NeedsConsent},
		"run as the user that started Cleave"},
	{ExitTimeout, []error{orchestrator.ErrTimeout, context.DeadlineExceeded}, nil,
		"`cleave doctor` shows who does not answer"},
	{ExitUnreachable, []error{orchestrator.ErrUnreachable},
		[]driver.Kind{driver.Unreachable, driver.OutcomeUnknown},
		"`cleave doctor` shows who does not answer"},
	// After those: a socket that is not there is unreachable.
	{ExitNotFound, []error{orchestrator.ErrNotFound, fs.ErrNotExist},
		[]driver.Kind{driver.NotFound, driver.NotMine},
		"`cleave vm list`, `cleave volume list` and `cleave snapshot list` show what there is"},
	{ExitFailed, nil, []driver.Kind{driver.NoSpace}, "free space in the pool, or use a larger one"},
	{ExitFailed, nil, []driver.Kind{driver.NotSynchronized},
		"`cleave mirror status` shows how far the mirrors are"},
}

// errUsage marks what the command line itself refuses.
var errUsage = errors.New("usage")

// usagef makes an error that ends with exit status 2.
func usagef(format string, args ...any) error {
	return &hinted{err: fmt.Errorf(format, args...), is: errUsage}
}

// hint adds what to try next to err; the text is a sentence without a full
// stop. A hint nearer to the cause wins over one added later.
func hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	if h := (*hinted)(nil); errors.As(err, &h) && h.next != "" {
		return err
	}
	return &hinted{err: err, next: fmt.Sprintf(format, args...)}
}

type hinted struct {
	err  error
	is   error // a further identity, may be nil
	next string
}

func (h *hinted) Error() string        { return h.err.Error() }
func (h *hinted) Unwrap() error        { return h.err }
func (h *hinted) Is(target error) bool { return h.is != nil && target == h.is }

// Hint is what to try next, for errors that come from other packages as well:
// any error with this method brings its own.
func (h *hinted) Hint() string { return h.next }

// status is an exit status that is no error of ours: the words have been said.
type status int

func (s status) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// exitOf returns the exit status for err and what to try next.
func exitOf(err error) (code int, next string) {
	if err == nil {
		return ExitOK, ""
	}
	if s := status(0); errors.As(err, &s) {
		return int(s), ""
	}
	kind := arrays.KindOf(err)
	code = ExitFailed
	for _, row := range exits {
		is := func(target error) bool { return errors.Is(err, target) }
		if slices.ContainsFunc(row.errs, is) || kind != driver.Unknown && slices.Contains(row.kinds, kind) {
			code, next = row.code, row.hint
			break
		}
	}
	if h := (interface{ Hint() string })(nil); errors.As(err, &h) && h.Hint() != "" {
		next = h.Hint()
	}
	return code, next
}

// several is the status of a command that did its work on more than one thing
// and has said what failed: partial if some of it was done.
func several(done int, errs []error) error {
	switch {
	case len(errs) == 0:
		return nil
	case done > 0:
		return status(ExitPartial)
	}
	code, _ := exitOf(errs[0])
	return status(code)
}
