package pdu

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Key is one key=value pair of a login or text negotiation.
type Key struct{ Name, Value string }

// Limits of text data (RFC 7143 section 6.1): a name has at most 63 bytes, a
// value 255 unless its key says otherwise; CHAP's large values and
// SendTargets need more.
const (
	MaxKeyName  = 63
	MaxKeyValue = 8192
	MaxKeys     = 256
)

// ErrText says that text data does not follow RFC 7143 section 6.1.
var ErrText = errors.New("text data is malformed")

// ParseText reads key=value pairs, each ended by a zero byte. A last pair
// without its zero is accepted, empty pairs (padding) are passed over.
func ParseText(b []byte) ([]Key, error) {
	var keys []Key
	for len(b) > 0 {
		pair := b
		if i := bytes.IndexByte(b, 0); i >= 0 {
			pair, b = b[:i], b[i+1:]
		} else {
			b = nil
		}
		if len(pair) == 0 {
			continue
		}
		name, value, ok := strings.Cut(string(pair), "=")
		switch {
		case !ok:
			return nil, fmt.Errorf("%w: %.40q has no =", ErrText, pair)
		case !validName(name):
			return nil, fmt.Errorf("%w: key name %.70q", ErrText, name)
		case len(value) > MaxKeyValue:
			return nil, fmt.Errorf("%w: %s has %d bytes, at most %d", ErrText, name, len(value), MaxKeyValue)
		case len(keys) >= MaxKeys:
			return nil, fmt.Errorf("%w: more than %d keys", ErrText, MaxKeys)
		}
		keys = append(keys, Key{name, value})
	}
	return keys, nil
}

// validName checks a key-name: a letter, then letters, digits, and . - + @ _ #.
// The RFC wants a capital first and then names iSCSIProtocolLevel.
func validName(s string) bool {
	if s == "" || len(s) > MaxKeyName || s[0]|0x20 < 'a' || s[0]|0x20 > 'z' {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(".-+@_#", c) >= 0) {
			return false
		}
	}
	return true
}

// AppendText writes pairs as they go on the wire.
func AppendText(b []byte, keys ...Key) []byte {
	for _, k := range keys {
		b = append(b, k.Name...)
		b = append(b, '=')
		b = append(b, k.Value...)
		b = append(b, 0)
	}
	return b
}

// ParseNumber reads a numerical-value: decimal or 0x hexadecimal, at most 64
// bits.
func ParseNumber(s string) (uint64, error) {
	digits, base := s, 10
	if len(s) > 2 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X') {
		digits, base = s[2:], 16
	}
	n, err := strconv.ParseUint(digits, base, 64)
	if err != nil || digits[0] == '+' {
		return 0, fmt.Errorf("%w: number %.40q", ErrText, s)
	}
	return n, nil
}
