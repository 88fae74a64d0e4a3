// Package iscsi names the ends of an iSCSI connection: an IQN, a portal, a LUN
// number (RFC 7143 section 4.2.7). Its children do the work: pdu the bytes on
// the wire, chap the challenge and response, mask who sees what, scsi the
// command set, target and initiator the sessions.
package iscsi

import (
	"fmt"
	"net/netip"
	"strings"
)

// Name is an iSCSI name: iqn., eui. or naa. form, lower case, at most 223
// bytes.
type Name string

// ParseName checks and normalises an iSCSI name (RFC 3722 preparation is
// limited to ASCII here: other names are refused).
func ParseName(s string) (Name, error) {
	n := strings.ToLower(s)
	switch {
	case len(n) > 223:
		return "", fmt.Errorf("iSCSI name %.40q…: %d bytes, at most 223", s, len(n))
	case !strings.HasPrefix(n, "iqn.") && !strings.HasPrefix(n, "eui.") && !strings.HasPrefix(n, "naa."):
		return "", fmt.Errorf("iSCSI name %.80q: must begin with iqn., eui. or naa", s)
	}
	for _, r := range n {
		if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune(".-:", r)) {
			return "", fmt.Errorf("iSCSI name %.80q: %q is not allowed in it", s, r)
		}
	}
	return Name(n), nil
}

// DefaultPort is the port that IANA gave to iSCSI targets.
const DefaultPort = 3260

// ParsePortal reads "address:port", "[v6]:port" or an address alone.
func ParsePortal(s string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap, nil
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("portal %.80q: want ADDRESS:PORT with a numeric address", s)
	}
	return netip.AddrPortFrom(a, DefaultPort), nil
}
