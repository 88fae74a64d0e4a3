package open

import (
	"encoding/binary"
	"fmt"

	"github.com/cleave-san/cleave/lun"
)

// LUKS, versions 1 and 2: both begin with a magic and a version, big-endian.
// The second header of version 2 is not looked for: a guest whose first one is
// gone does not open it by itself either.
const luksMagic = "LUKS\xba\xbe"

// Encrypted says, by an error, that the n bytes at off of dev hold LUKS: their
// content can be copied and recovered, and not looked into. The error is nil if
// there is none, and a *lun.FormatError if there is.
func Encrypted(dev lun.Device, off, n int64) error {
	b := make([]byte, len(luksMagic)+2)
	if n < int64(len(b)) {
		return nil
	}
	if _, err := dev.ReadAt(b, off); err != nil {
		return fmt.Errorf("look for LUKS: %w", err)
	}
	if string(b[:len(luksMagic)]) != luksMagic {
		return nil
	}
	return &lun.FormatError{Format: "luks", Offset: off, Field: "version", Value: binary.BigEndian.Uint16(b[len(luksMagic):]),
		Reason: "is encrypted: what is in it can't be looked into, only copied or put back as a whole"}
}
