package embedded

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Kind classifies an error of one of Array's methods.
func (a *Array) Kind(err error) driver.Kind { return kindOf(err) }

func kindOf(err error) driver.Kind {
	var e *driver.Error
	switch {
	case err == nil:
		return driver.Unknown
	case errors.As(err, &e) && e.Kind != driver.Unknown:
		return e.Kind
	case errors.Is(err, lun.ErrNoSpace), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return driver.NoSpace
	case errors.Is(err, lun.ErrClosed):
		// Nothing is begun on a closed array.
		return driver.Unreachable
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EROFS):
		return driver.NotPermitted
	}
	return driver.Unknown
}

// noSpace adds lun.ErrNoSpace to errors by which a file system says the same.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", lun.ErrNoSpace, err)
	}
	return err
}

// notBegun is the error of a call whose context ended before it did anything.
func notBegun(ctx context.Context, what string) error {
	return driver.Errorf(driver.Unreachable, "%s: not begun: %w", what, context.Cause(ctx))
}
