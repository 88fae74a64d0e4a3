package iscsi

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

// URL is a static record in one line: iscsi://[user@]host[:port]/target/lun. It
// never holds a secret.
type URL struct {
	User   string // CHAP name; empty: none
	Portal string // host:port
	Target Name
	LUN    int
}

// MaxLUN is the highest LUN number: the peripheral and flat space addressing
// methods of SAM-5 section 4.7.7 hold 14 bits.
const MaxLUN = 0x3fff

// Scheme is how a URL begins.
const Scheme = "iscsi://"

// ParseURL reads a URL. A secret in it (user%secret, as libiscsi takes it, or
// user:secret) is refused, and not repeated in the error: command lines are
// seen by everybody on the host.
func ParseURL(s string) (URL, error) {
	var u URL
	rest, ok := strings.CutPrefix(s, Scheme)
	if !ok {
		return u, fmt.Errorf("iSCSI URL: must begin with %s", Scheme)
	}
	authority, path, ok := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		u.User, authority = authority[:i], authority[i+1:]
		if u.User == "" || len(u.User) > 255 || strings.ContainsAny(u.User, "%:") {
			return URL{}, fmt.Errorf("iSCSI URL: before the @ stands a CHAP name alone, without %% or colon: no secret belongs there")
		}
	}
	target, number, ok2 := strings.Cut(path, "/")
	if !ok || !ok2 {
		return URL{}, fmt.Errorf("iSCSI URL %.200q: want %s[user@]host[:port]/target/lun", redact(s), Scheme)
	}
	var err error
	if u.Portal, err = HostPort(authority); err != nil {
		return URL{}, fmt.Errorf("iSCSI URL: %w", err)
	}
	if u.Target, err = ParseName(target); err != nil {
		return URL{}, fmt.Errorf("iSCSI URL: %w", err)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n > MaxLUN {
		return URL{}, fmt.Errorf("iSCSI URL: LUN %.20q: want a number from 0 to %d", number, MaxLUN)
	}
	u.LUN = int(n)
	return u, nil
}

// redact leaves out all that might be a secret.
func redact(s string) string {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		return Scheme + "…" + s[i:]
	}
	return s
}

// String is what ParseURL reads.
func (u URL) String() string {
	at := ""
	if u.User != "" {
		at = u.User + "@"
	}
	return fmt.Sprintf("%s%s%s/%s/%d", Scheme, at, u.Portal, u.Target, u.LUN)
}

// HostPort reads HOST, HOST:PORT or the like with an IPv6 address, and adds the
// default port where there is none. Unlike ParsePortal it takes names.
func HostPort(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, strconv.Itoa(DefaultPort)
		if inner, ok := strings.CutPrefix(s, "["); ok {
			host, ok = strings.CutSuffix(inner, "]")
			if !ok {
				host = ""
			}
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || !isHost(host) {
		return "", fmt.Errorf("portal %.80q: want HOST or HOST:PORT", s)
	}
	return net.JoinHostPort(host, port), nil
}

// isHost reports whether s is an address or what a name's labels are made of
// (RFC 1123 section 2.1), with the underscore that many sites use.
func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	for _, r := range s {
		if !strings.ContainsRune("-._", r) && !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			return false
		}
	}
	return s != ""
}
