package initiator

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/cleave-san/cleave/iscsi"
)

// URL is a static record in one line: iscsi://[user@]host[:port]/target/lun. It
// never holds a secret.
type URL struct {
	User   string // CHAP name; empty: none
	Portal string // host:port
	Target iscsi.Name
	LUN    int
}

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
	if u.Portal, err = hostPort(authority); err != nil {
		return URL{}, fmt.Errorf("iSCSI URL: %w", err)
	}
	if u.Target, err = iscsi.ParseName(target); err != nil {
		return URL{}, fmt.Errorf("iSCSI URL: %w", err)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n > maxLUN {
		return URL{}, fmt.Errorf("iSCSI URL: LUN %.20q: want a number from 0 to %d", number, maxLUN)
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
