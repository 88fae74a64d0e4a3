package driver

import "fmt"

// Kind says what a caller may do about an error.
type Kind int

const (
	Unknown Kind = iota
	// NotMine: the disk is not on this array. Ask the next one.
	NotMine
	// NotFound: no volume or snapshot of that name.
	NotFound
	// Ambiguous: several volumes answer to one identity. Nothing is touched.
	Ambiguous
	// Busy: in use by another set, an initiator or the array itself.
	Busy
	// NeedsConsent: possible, but the operator has to allow it.
	NeedsConsent
	// NotSynchronized: no mirror is in sync; Prepare comes first.
	NotSynchronized
	// NotArmed: the tag was never armed, or its time is over.
	NotArmed
	// NoSpace: pool or quota is full.
	NoSpace
	// NotSupported: this array can't do it, ever.
	NotSupported
	// NotPermitted: credentials or role refuse it.
	NotPermitted
	// InvalidRequest: the request makes no sense; repeating it won't help.
	InvalidRequest
	// Unreachable: the request certainly did not reach the array. Repeating it
	// is safe.
	Unreachable
	// OutcomeUnknown: the request left and no answer came. A driver must not
	// say Unreachable if the array might have acted. Lookup before anything.
	OutcomeUnknown
)

var kindNames = [...]string{
	Unknown: "unknown", NotMine: "not-mine", NotFound: "not-found",
	Ambiguous: "ambiguous", Busy: "busy", NeedsConsent: "needs-consent",
	NotSynchronized: "not-synchronized", NotArmed: "not-armed", NoSpace: "no-space",
	NotSupported: "not-supported", NotPermitted: "not-permitted",
	InvalidRequest: "invalid-request", Unreachable: "unreachable",
	OutcomeUnknown: "outcome-unknown",
}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return kindNames[k]
}

// ParseKind is the inverse of String; an unknown word is Unknown.
func ParseKind(s string) Kind {
	for k, n := range kindNames {
		if n == s {
			return Kind(k)
		}
	}
	return Unknown
}

// Error is an error with its kind: a ready way for providers to classify.
// Error's text is Message alone, one line.
type Error struct {
	Kind    Kind
	Message string
	Err     error // the cause, may be nil
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an *Error; a %w operand becomes its cause.
func Errorf(k Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: k, Message: err.Error(), Err: err}
}
