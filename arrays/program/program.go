package program

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

// Options of a Driver.
type Options struct {
	// Command is the program's absolute path and its arguments; a call's name is
	// added as the last one.
	Command []string
	// Environment has NAME=VALUE for all that the program gets.
	Environment []string
	// Limit is the longest that a call may take, where its caller leaves more.
	// Default: a minute. Prepare has PrepareLimit, default: an hour.
	Limit, PrepareLimit time.Duration
	// Log gets what the program writes to its standard error. Default: none.
	Log *slog.Logger
}

// Driver is an array behind a program. Its methods may be called at once.
type Driver struct {
	o     Options
	can   []call
	ids   atomic.Uint64
	serve *server // nil: each call is a process of its own
	// send makes a call's request, and returns the reply to it.
	send func(ctx context.Context, c call, id string, line []byte) (reply, error)

	rewriting rewriting
}

// Open asks the program what it can do. It has to answer that without its array.
func Open(ctx context.Context, o Options) (*Driver, error) {
	if len(o.Command) == 0 || !filepath.IsAbs(o.Command[0]) {
		return nil, driver.Errorf(driver.InvalidRequest, "command %q: want the absolute path of a program, and its arguments", o.Command)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Limit <= 0 {
		o.Limit = time.Minute
	}
	if o.PrepareLimit <= 0 {
		o.PrepareLimit = time.Hour
	}
	d := &Driver{o: o}
	d.send = func(ctx context.Context, c call, id string, line []byte) (reply, error) {
		return once(ctx, &d.o, c, id, line)
	}
	x, err := d.describe(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s describe: %w", o.Command[0], err)
	}
	for _, c := range required {
		if !slices.Contains(x.Calls, c) {
			return nil, driver.Errorf(driver.InvalidRequest, "%s describe: calls: %q is missing", o.Command[0], c)
		}
	}
	d.can = x.Calls
	if x.Serve {
		d.serve = &server{o: &d.o, pending: map[string]chan reply{}}
		d.send = func(ctx context.Context, _ call, id string, line []byte) (reply, error) {
			return d.serve.ask(ctx, id, line)
		}
	}
	return d, nil
}

// Close ends a program that serves.
func (d *Driver) Close() error {
	if d.serve != nil {
		d.serve.end(errClosed)
	}
	return nil
}

// Without lists the options that the program doesn't answer, for arrays.New.
func (d *Driver) Without() []arrays.Capability {
	options := map[arrays.Capability][]call{
		arrays.SplitGroup: {callSplitGroup}, arrays.Arm: {callArm, callCommit, callAbort},
		arrays.Expose: {callExpose, callUnexpose}, arrays.OpenDevice: {callOpen},
		arrays.Rewrite: {callRewrite, callRewritten}, arrays.Resync: {callResync},
		arrays.Revert: {callRevert}, arrays.Break: {callBreak}, arrays.Changes: {callChanges},
		arrays.Check: {callCheck}, arrays.Presented: {callPresented},
	}
	var out []arrays.Capability
	for _, c := range arrays.Capabilities() {
		if slices.ContainsFunc(options[c], func(c call) bool { return !slices.Contains(d.can, c) }) {
			out = append(out, c)
		}
	}
	return out
}

// Kind implements driver.Driver.
func (d *Driver) Kind(err error) driver.Kind {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return driver.Unknown
}

// ask makes a call and decodes its result into out, unless that is nil. key is the
// same for a call that is repeated.
func (d *Driver) ask(ctx context.Context, c call, key string, args, out any) error {
	limit := d.o.Limit
	if c == callPrepare {
		limit = d.o.PrepareLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := ctx.Err(); err != nil { // nothing has been asked
		return driver.Errorf(driver.Unreachable, "the program was not asked: %w", err)
	}
	deadline, _ := ctx.Deadline()
	r := request{Version: Version, ID: strconv.FormatUint(d.ids.Add(1), 10), Call: c, Key: string(c) + "/" + key, Deadline: deadline.UTC(), Args: args}
	line, err := json.Marshal(r)
	if err != nil {
		return driver.Errorf(driver.InvalidRequest, "request: %w", err)
	}
	line = append(line, '\n')
	a, err := d.send(ctx, c, r.ID, line)
	switch {
	case errors.Is(err, errNotAsked):
		return driver.Errorf(driver.Unreachable, "%w", err)
	case err != nil:
		return driver.Errorf(c.lost(), "%w", err)
	case a.Error != nil:
		return a.Error.err()
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(a.Result, out); err != nil {
		return driver.Errorf(c.lost(), "the program's result of %s: %w", c, err)
	}
	return nil
}

// lost is the kind of an error after which nobody knows what the program did.
func (c call) lost() driver.Kind {
	if c.asks() {
		return driver.Unreachable
	}
	return driver.OutcomeUnknown
}
