package dataplane

import (
	"net/http"
	"strconv"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
)

// listEvents answers with the events that a request's query asks for.
func (p *plane) listEvents(r *http.Request) (any, error) {
	f := embedded.EventFilter{Volume: r.FormValue("volume"), Severity: embedded.Severity(r.FormValue("severity"))}
	var err error
	if s := r.FormValue("after"); s != "" {
		if f.After, err = strconv.ParseUint(s, 10, 63); err != nil {
			return nil, driver.Errorf(driver.InvalidRequest, "events after %.40q: want a number", s)
		}
	}
	if s := r.FormValue("since"); s != "" {
		if f.Since, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return nil, driver.Errorf(driver.InvalidRequest, "events since %.40q: want a time as in RFC 3339", s)
		}
	}
	switch f.Severity {
	case "", embedded.Info, embedded.Warning, embedded.Error:
	default:
		return nil, driver.Errorf(driver.InvalidRequest, "severity %.40q: want info, warning or error", f.Severity)
	}
	out := []remote.Event{}
	for _, e := range p.array.Events(f) {
		out = append(out, remote.Event{
			Seq: e.Seq, At: e.At, Kind: string(e.Kind), Severity: string(e.Severity), Volume: e.Name, Pool: e.Pool, Text: e.Text,
		})
	}
	return out, nil
}
