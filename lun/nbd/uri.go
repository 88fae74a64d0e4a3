package nbd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// URI says where an export is, in the form of the NBD project's specification
// (doc/uri.md): nbd://host[:port]/export, or nbd+unix:///export?socket=path. Those
// over TLS are not among them.
type URI struct {
	Network string // "tcp" or "unix", as Dial takes it
	Address string
	Export  string
}

// defaultPort is NBD's, assigned by IANA.
const defaultPort = "10809"

// IsURI reports whether s begins as a URI of NBD does.
func IsURI(s string) bool {
	return strings.HasPrefix(s, "nbd://") || strings.HasPrefix(s, "nbd+unix://")
}

// ParseURI reads a URI.
func ParseURI(s string) (URI, error) {
	u, err := url.Parse(s)
	if err != nil {
		return URI{}, fmt.Errorf("NBD URI: %w", errors.Unwrap(err))
	}
	r := URI{Export: strings.TrimPrefix(u.Path, "/")}
	if u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return URI{}, fmt.Errorf("NBD URI %.200q: want nbd://host[:port]/export or nbd+unix:///export?socket=path", u.Redacted())
	}
	if len(r.Export) > maxName {
		return URI{}, fmt.Errorf("NBD URI: the export's name has %d bytes, at most %d", len(r.Export), maxName)
	}
	switch socket := u.Query().Get("socket"); {
	case u.Scheme == "nbd" && u.Hostname() != "" && u.RawQuery == "":
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		r.Network, r.Address = "tcp", net.JoinHostPort(u.Hostname(), port)
	case u.Scheme == "nbd+unix" && u.Host == "" && socket != "" && len(u.Query()) == 1:
		r.Network, r.Address = "unix", socket
	default:
		return URI{}, fmt.Errorf("NBD URI %.200q: want nbd://host[:port]/export or nbd+unix:///export?socket=path", s)
	}
	return r, nil
}
