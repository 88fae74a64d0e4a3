package scsi

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// iSCSI TransportIDs: SPC-4 section 7.6.4.6. The format code in the top bits says
// whether an initiator device is meant (its name) or one port of it (name and
// ISID).
const (
	formatDevice = 0x05
	formatPort   = 0x45
	isidMark     = ",i,0x"

	// maxTransportID is the longest there is: a name of 223 bytes (RFC 7143
	// section 4.2.7.2), the mark and ISID, a zero and padding.
	maxTransportID = 4 + 244
)

// transportID is that of one port.
func (p Port) transportID() []byte {
	s := p.Name + isidMark + hex.EncodeToString(p.ISID[:])
	n := max((len(s)+4)&^3, 20)
	b := make([]byte, 4+n)
	b[0] = formatPort
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	copy(b[4:], s)
	return b
}

// parseTransportID reads the TransportID at the beginning of b and returns its
// length. port is false where it names a device with whatever port.
func parseTransportID(b []byte) (p Port, port bool, size int, err error) {
	if len(b) < 4 {
		return Port{}, false, 0, fmt.Errorf("TransportID of %d bytes", len(b))
	}
	size = 4 + int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case b[0] != formatDevice && b[0] != formatPort:
		return Port{}, false, 0, fmt.Errorf("TransportID of format and protocol %#x", b[0])
	case size > len(b) || size > maxTransportID || size < 24 || size%4 != 0:
		return Port{}, false, 0, fmt.Errorf("TransportID of %d bytes in %d", size, len(b))
	}
	text, rest, terminated := bytes.Cut(b[4:size], []byte{0})
	if !terminated || len(bytes.Trim(rest, "\x00")) > 0 {
		return Port{}, false, 0, fmt.Errorf("TransportID is not ended by zeroes")
	}
	name, isid, found := strings.Cut(string(text), isidMark)
	p.Name = strings.ToLower(name)
	if found != (b[0] == formatPort) || name == "" || len(name) > 223 {
		return Port{}, false, 0, fmt.Errorf("TransportID of name %.40q", name)
	}
	if found {
		// An ISID may be shortened by leading zeroes.
		if len(isid) == 0 || len(isid) > 12 {
			return Port{}, false, 0, fmt.Errorf("TransportID with ISID %.40q", isid)
		}
		raw, err := hex.DecodeString(strings.Repeat("0", 12-len(isid)) + isid)
		if err != nil {
			return Port{}, false, 0, fmt.Errorf("TransportID with ISID %.40q", isid)
		}
		p.ISID = [6]byte(raw)
	}
	return p, found, size, nil
}
