package lun

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
)

// Identity is who a LUN is, whatever path leads to it. It is a random UUID
// (RFC 9562 version 4), made when a volume or a split is made and never used
// again; a split never carries the identity of its source, so that no host can
// take one for the other.
//
// Over SCSI it appears as the unit serial number (VPD page 0x80), and in page
// 0x83 as an NAA designator of type 3 (locally assigned: Cleave owns no OUI)
// and as the text of the UUID.
type Identity [16]byte

// NewIdentity returns a fresh identity.
func NewIdentity() Identity {
	var id Identity
	rand.Read(id[:]) // never fails: crypto/rand aborts the program instead
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// IsZero reports whether no identity was given.
func (id Identity) IsZero() bool { return id == Identity{} }

// String is the UUID with dashes, lower case.
func (id Identity) String() string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Serial is the unit serial number: the UUID without dashes.
func (id Identity) Serial() string { return hex.EncodeToString(id[:]) }

// NAA is the 8-byte NAA type 3 designator: the nibble 3 and the first 60 bits
// of the UUID, so that an operator sees at a glance which belongs to which.
func (id Identity) NAA() [8]byte {
	var naa [8]byte
	naa[0] = 0x30 | id[0]>>4
	for i := 1; i < 8; i++ {
		naa[i] = id[i-1]<<4 | id[i]>>4
	}
	return naa
}

// NAAString is NAA in the form hosts print it: "naa.3…".
func (id Identity) NAAString() string {
	naa := id.NAA()
	return "naa." + hex.EncodeToString(naa[:])
}

// ParseIdentity reads what String or Serial wrote.
func ParseIdentity(s string) (Identity, error) {
	var id Identity
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(id) {
		return Identity{}, fmt.Errorf("identity %.60q: want a UUID of 32 hexadecimal digits", s)
	}
	copy(id[:], b)
	return id, nil
}

// MarshalText and UnmarshalText make an Identity a string in JSON.
func (id Identity) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return nil, nil
	}
	return []byte(id.String()), nil
}

func (id *Identity) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = Identity{}
		return nil
	}
	v, err := ParseIdentity(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// Identified is a Device that knows who it is.
type Identified interface {
	Identity() Identity
}
