package cli

import (
	"net/url"

	"github.com/cleave-san/cleave/orchestrator"
)

// nbdURL is the NBD URI of a LUN on this host (nbd/doc/uri.md: nbd+unix:///EXPORT?socket=PATH).
// Empty if there is none.
func nbdURL(l orchestrator.LUN) string {
	if l.Socket == "" {
		return ""
	}
	u := url.URL{Scheme: "nbd+unix", Path: "/" + l.Export, RawQuery: "socket=" + url.QueryEscape(l.Socket)}
	return "nbd+unix://" + u.EscapedPath() + "?" + u.RawQuery
}
