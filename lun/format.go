package lun

import (
	"errors"
	"fmt"
)

// ErrNotFormat says "these bytes are not of my format at all": the only error
// after which probing goes on to the next format. Anything that carries the
// format's signature and is wrong is a *FormatError instead.
var ErrNotFormat = errors.New("not of this format")

// FormatError says that a device holds a format, and that it is damaged or uses
// what Cleave does not read. Its text is one line an operator can act on.
type FormatError struct {
	Format string // "gpt", "lvm2", "dm-snapshot", ... as in lun inspect
	Offset int64  // byte on the device where the field lies, -1 if none
	Field  string // the specification's name of the field
	Value  any    // what was found there; nil if there is nothing to show
	Reason string // what is wrong with it, and what to do where that is known
}

func (e *FormatError) Error() string {
	s := e.Format
	if e.Offset >= 0 {
		s += fmt.Sprintf(" at byte %d", e.Offset)
	}
	if e.Field != "" {
		s += ": " + e.Field
	}
	switch v := e.Value.(type) {
	case nil:
	case string:
		s += fmt.Sprintf(" = %.80q", v)
	default:
		s += fmt.Sprintf(" = %v", v)
	}
	return s + ": " + e.Reason
}
