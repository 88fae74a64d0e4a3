package cli

import (
	"net/url"

	"github.com/cleave-san/cleave/orchestrator"
)

// nbdURL is the NBD URI of a LUN on this host. Empty if there is none.
func nbdURL(l orchestrator.LUN) string {
	if l.Socket == "" {
		return ""
	}
	return nbdURI(l.Export, l.Socket, "", false)
}

// nbdURI is the NBD URI of an export at a unix socket or else an address
// (nbd/doc/uri.md: nbd+unix:///EXPORT?socket=PATH, nbd://ADDRESS:PORT/EXPORT, and
// nbds for TLS).
func nbdURI(export, socket, address string, secure bool) string {
	u := url.URL{Scheme: "nbd", Host: address, Path: "/" + export}
	if secure {
		u.Scheme = "nbds"
	}
	if socket == "" {
		return u.Scheme + "://" + u.Host + u.EscapedPath()
	}
	return u.Scheme + "+unix://" + u.EscapedPath() + "?socket=" + url.QueryEscape(socket)
}
