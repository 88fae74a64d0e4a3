package arrays

import (
	"context"
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Error is what every method of Array returns: the array, what was attempted,
// and the provider's error, classified.
type Error struct {
	Array string
	Op    string // "splitting volume \"db\""
	Kind  driver.Kind
	Err   error
}

func (e *Error) Error() string { return fmt.Sprintf("array %q: %s: %v", e.Array, e.Op, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// KindOf says what may be done about an error of an Array, however it was
// wrapped since. An error of no array is Unknown.
func KindOf(err error) driver.Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var d *driver.Error
	if errors.As(err, &d) {
		return d.Kind
	}
	return driver.Unknown
}

// wrap classifies a provider's error. A call that changes something and ended
// with its context, without a word about the outcome, has an unknown one.
func (a *Array) wrap(ctx context.Context, op string, changes bool, err error) error {
	if err == nil {
		return nil
	}
	k := a.d.Kind(err)
	if k == driver.Unknown {
		k = KindOf(err)
	}
	if k == driver.Unknown && changes && ctx.Err() != nil {
		k = driver.OutcomeUnknown
	}
	return &Error{Array: a.name, Op: op, Kind: k, Err: err}
}

// refuse is an error of Array's own.
func (a *Array) refuse(op string, k driver.Kind, format string, args ...any) error {
	return &Error{Array: a.name, Op: op, Kind: k, Err: driver.Errorf(k, format, args...)}
}
