// Package chap is the challenge and response of CHAP (RFC 1994) as iSCSI uses it
// (RFC 7143 section 12.1.3), with the hash algorithms of the IANA registry: MD5,
// and SHA-1 and SHA-256 which stand there for iSCSI.
//
// It knows no names and keeps no secrets. Answers are compared in constant time.
package chap

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
)

// Algorithm is a hash algorithm by its number in the PPP authentication
// algorithms registry.
type Algorithm uint8

// Algorithms that are spoken here.
const (
	MD5    Algorithm = 5
	SHA1   Algorithm = 6
	SHA256 Algorithm = 7
)

// String is the algorithm's name.
func (a Algorithm) String() string {
	switch a {
	case MD5:
		return "MD5"
	case SHA1:
		return "SHA-1"
	case SHA256:
		return "SHA-256"
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

func (a Algorithm) new() hash.Hash {
	switch a {
	case MD5:
		return md5.New()
	case SHA1:
		return sha1.New()
	default:
		return sha256.New()
	}
}

// Choose picks the first algorithm of a CHAP_A list that is spoken here.
func Choose(list string) (Algorithm, bool) {
	for s := range strings.SplitSeq(list, ",") {
		switch n, err := strconv.ParseUint(strings.TrimSpace(s), 0, 8); {
		case err != nil:
		case n >= uint64(MD5) && n <= uint64(SHA256):
			return Algorithm(n), true
		}
	}
	return 0, false
}

// Limits of the binary values, in bytes (RFC 7143 section 12.1.4: at most 1024).
const (
	ChallengeLen = 32
	minChallenge = 1
	maxBinary    = 1024
)

// ErrValue says that a CHAP key's value can't be read.
var ErrValue = errors.New("CHAP value is malformed")

// Challenge is what one side sends for the other to prove itself. It is used for
// one login.
type Challenge struct {
	Algorithm  Algorithm
	Identifier byte
	Value      []byte
}

// NewChallenge makes one that was never used before.
func NewChallenge(a Algorithm) Challenge {
	b := make([]byte, 1+ChallengeLen)
	rand.Read(b) // never fails: crypto/rand aborts the program instead
	return Challenge{a, b[0], b[1:]}
}

// ReadChallenge reads CHAP_I and CHAP_C as the other side sent them.
func ReadChallenge(a Algorithm, identifier, value string) (Challenge, error) {
	id, err := strconv.ParseUint(identifier, 0, 8)
	if err != nil {
		return Challenge{}, fmt.Errorf("CHAP_I: %w", ErrValue)
	}
	v, err := Decode(value)
	if err != nil || len(v) < minChallenge {
		return Challenge{}, fmt.Errorf("CHAP_C: %w", ErrValue)
	}
	return Challenge{a, byte(id), v}, nil
}

// Answer is the response that proves secret.
func (c Challenge) Answer(secret []byte) []byte {
	h := c.Algorithm.new()
	h.Write([]byte{c.Identifier})
	h.Write(secret)
	h.Write(c.Value)
	return h.Sum(nil)
}

// Verify reports whether answer proves secret. Its time does not depend on where
// they differ.
func (c Challenge) Verify(secret, answer []byte) bool {
	return subtle.ConstantTimeCompare(c.Answer(secret), answer) == 1
}

// Encode writes a binary value in the hexadecimal form of RFC 7143 section 6.1.
func Encode(b []byte) string { return "0x" + hex.EncodeToString(b) }

// Decode reads a binary value: hexadecimal after 0x, base64 after 0b.
func Decode(s string) ([]byte, error) {
	if len(s) < 2 || s[0] != '0' || len(s) > 2*maxBinary+2 {
		return nil, ErrValue
	}
	switch digits := s[2:]; s[1] {
	case 'x', 'X':
		if len(digits)%2 == 1 {
			digits = "0" + digits
		}
		b, err := hex.DecodeString(digits)
		if err != nil {
			return nil, ErrValue // not hex's error: it quotes the value
		}
		return b, nil
	case 'b', 'B':
		b, err := base64.StdEncoding.DecodeString(digits)
		if err != nil || len(b) > maxBinary {
			return nil, ErrValue
		}
		return b, nil
	}
	return nil, ErrValue
}
