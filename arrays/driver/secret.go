package driver

import "fmt"

// CHAP is a user and secret for logging in to a target (RFC 7143, 12.1.3).
type CHAP struct {
	User   string
	Secret Secret
}

// Secret is a string that no format, log or JSON shows. string(s) is what it
// holds.
type Secret string

const hidden = "(secret)"

// Format implements fmt.Formatter.
func (Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, hidden) }

// String implements fmt.Stringer.
func (Secret) String() string { return hidden }

// MarshalText implements encoding.TextMarshaler.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }
