package cinder

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/cleave-san/cleave/arrays/driver"
)

// nowhere is the ID of nothing.
const nowhere = "00000000-0000-4000-8000-000000000000"

// probeName is what a probe would leave behind if Cinder did not refuse it, in
// which case it is taken away at once.
const probeName = prefix + "doctor"

// reads tries the questions that sets ask.
func (e *examination) reads() {
	for _, q := range []struct{ check, rule, path, key string }{
		{"read volumes", "volume:get_all", "volumes/detail", "volumes"},
		{"read snapshots", "volume:get_all_snapshots", "snapshots/detail", "snapshots"},
		{"read attachments", "volume:attachment_get_all", "attachments/detail", "attachments"},
		{"read groups", "group:get_all", "groups/detail", "groups"},
		{"read group snapshots", "group:get_all_group_snapshots", "group_snapshots/detail", "group_snapshots"},
	} {
		var err error
		if q.key == "volumes" {
			e.all, err = list(e.ctx, e.c, q.path, q.key, nil, func(v volume) string { return v.ID })
		} else {
			err = e.c.call(e.ctx, ask, q.path, url.Values{"limit": {"1"}}, nil, nil)
		}
		if err != nil {
			e.refusal(q.check, q.rule, err, driver.Failed, "")
			continue
		}
		e.add(driver.AreaPermission, q.check, driver.OK, "", "allowed")
	}
}

// writes tries the changes that a set makes, by requests which Cinder refuses
// after it has asked its policy: what comes back is 403, or why they make no
// sense. Where there is no such request nothing is tried: to ask for the deletion
// of what should not be deleted is no way to learn whether one may.
func (e *examination) writes() {
	const clone = "create volumes"
	// A copy that is smaller than its source is refused.
	if i := slices.IndexFunc(e.all, func(v volume) bool { return v.Size > 1 }); i >= 0 {
		e.probe(clone, "volume:create", "volumes", map[string]any{"volume": map[string]any{"source_volid": e.all[i].ID, "size": 1, "name": probeName}})
	} else {
		e.add(driver.AreaPermission, clone, driver.Unchecked, "", "not tried: no volume has more than 1 GiB, of which a smaller copy would be refused; project members may by default")
	}
	e.probe("create groups", "group:create", "groups", map[string]any{"group": map[string]any{
		"group_type": nowhere, "volume_types": []string{nowhere}, "name": probeName,
	}})
	const take, rule = "create snapshots", "volume:create_snapshot"
	// Without force, a volume that is in use can't be snapshot.
	i := slices.IndexFunc(e.all, func(v volume) bool { return v.Status == "in-use" })
	switch {
	case i >= 0:
		e.probe(take, rule, "snapshots", map[string]any{"snapshot": map[string]any{"volume_id": e.all[i].ID, "force": false, "name": probeName}})
	default:
		e.add(driver.AreaPermission, take, driver.Unchecked, "", "not tried: only a volume that is in use refuses it without an effect, and none is; project members may by default")
	}
	if len(e.next) > 0 {
		// Nothing is added.
		e.probe("mark volumes", "volume:create_volume_metadata", "volumes/"+e.next[0].ID+"/metadata", map[string]any{"metadata": map[string]string{}})
	}
	e.add(driver.AreaPermission, "delete, attach, group snapshots", driver.Unchecked, "",
		"not tried: every request that would tell has an effect; project members may by default (docs/provider-cinder.md)")
}

// probe posts what has no effect, and tells what Cinder's policy thought of it.
func (e *examination) probe(check, rule, path string, in any) {
	var made map[string]struct {
		ID string `json:"id"`
	}
	var out any
	if path == "volumes" || path == "groups" || path == "snapshots" {
		out = &made
	}
	err := e.c.request(e.ctx, http.MethodPost, path, in, out)
	for _, x := range made { // it was no longer what it was a moment ago
		if isID(x.ID) {
			_ = e.c.call(e.ctx, end, path+"/"+x.ID, nil, nil, nil) // else it is seen by its name
		}
	}
	var f *fault
	switch {
	case err == nil, errors.As(err, &f) && (f.status == http.StatusBadRequest || f.status == http.StatusNotFound || f.status == http.StatusRequestEntityTooLarge):
		e.add(driver.AreaPermission, check, driver.OK, "", "allowed")
	default:
		e.refusal(check, rule, err, driver.Failed, "")
	}
}

// refusal tells why a call failed: of one that is not permitted with the result r
// and what it costs, of another that it is not known.
func (e *examination) refusal(check, rule string, err error, r driver.Result, cost string) {
	if !isKind(err, driver.NotPermitted) {
		e.add(driver.AreaPermission, check, driver.Unchecked, "", "%v", err)
		return
	}
	detail := "refused (policy " + rule + ")"
	if cost != "" {
		detail += ": " + cost
	}
	e.add(driver.AreaPermission, check, r, "give the user the project's role member, or allow "+rule+" in Cinder's policy", "%s", detail)
}

// capacity is GiB as back ends write it: a number, "infinite" or "unknown".
type capacity string

// UnmarshalJSON implements json.Unmarshaler.
func (c *capacity) UnmarshalJSON(b []byte) error {
	if s, err := strconv.Unquote(string(b)); err == nil {
		b = []byte(s)
	}
	*c = capacity(fmt.Sprintf("%.40s", b))
	return nil
}

// value is a capacity in bytes, if it is a number.
func (c capacity) value() (int64, bool) {
	f, err := strconv.ParseFloat(string(c), 64)
	if err != nil || !(f >= 0 && f < 1<<32) {
		return 0, false
	}
	return int64(f * gib), true
}
