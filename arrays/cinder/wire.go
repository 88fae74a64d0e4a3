package cinder

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Objects of the Block Storage API v3, as far as they are used.
type (
	volume struct {
		ID         string            `json:"id"`
		Name       string            `json:"name"`
		Status     string            `json:"status"`
		Size       int64             `json:"size"` // GiB
		Type       string            `json:"volume_type"`
		Group      string            `json:"group_id"`
		Metadata   map[string]string `json:"metadata"`
		SnapshotID string            `json:"snapshot_id"`
		Pool       string            `json:"os-vol-host-attr:host"` // host@backend#pool; administrators see it
		Attached   []struct {
			Host string `json:"host_name"` // administrators see it
		} `json:"attachments"`
	}
	snapshot struct {
		ID            string            `json:"id"`
		Name          string            `json:"name"`
		Status        string            `json:"status"`
		Size          int64             `json:"size"` // GiB
		Volume        string            `json:"volume_id"`
		GroupSnapshot string            `json:"group_snapshot_id"`
		Metadata      map[string]string `json:"metadata"`
		Created       stamp             `json:"created_at"`
	}
	group struct {
		ID      string   `json:"id"`
		Name    string   `json:"name"`
		Status  string   `json:"status"`
		Volumes []string `json:"volumes"`
	}
	groupSnapshot struct {
		ID     string `json:"id"`
		Name   string `json:"name"`
		Status string `json:"status"`
		Group  string `json:"group_id"`
	}
	attachment struct {
		ID         string          `json:"id"`
		Status     string          `json:"status"`
		Volume     string          `json:"volume_id"`
		Connection json.RawMessage `json:"connection_info"` // has secrets
	}
	pool struct {
		Name         string `json:"name"`
		Capabilities struct {
			Consistent anyBool  `json:"consistent_group_snapshot_enabled"`
			Total      capacity `json:"total_capacity_gb"`
			Free       capacity `json:"free_capacity_gb"`
		} `json:"capabilities"`
	}
)

// stamp is a time as Cinder writes it: UTC, without a zone.
type stamp struct{ time.Time }

// UnmarshalJSON implements json.Unmarshaler. What is no time is the zero time.
func (s *stamp) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) != nil {
		return nil
	}
	for _, form := range []string{"2006-01-02T15:04:05.999999", time.RFC3339Nano} {
		if t, err := time.Parse(form, text); err == nil {
			s.Time = t
			return nil
		}
	}
	return nil
}

// anyBool is true, "True" or "<is> True", as back ends write it; anything else is
// false.
type anyBool bool

// UnmarshalJSON implements json.Unmarshaler.
func (a *anyBool) UnmarshalJSON(b []byte) error {
	*a = anyBool(slices.Contains([]string{`true`, `"True"`, `"true"`, `"<is> True"`, `"\u003cis\u003e True"`}, string(b)))
	return nil
}

const gib = 1 << 30

// isID reports whether s can be an object's ID, so that it may stand in a path.
func isID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range s {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		hex := r >= '0' && r <= '9' || r >= 'a' && r <= 'f' || r >= 'A' && r <= 'F'
		if dash != (r == '-') || !dash && !hex {
			return false
		}
	}
	return true
}

// get asks for one object, which stands in the reply under key.
func get[T any](ctx context.Context, c *client, path, key string) (T, error) {
	return send[T](ctx, c, ask, path, key, nil)
}

// send makes a request whose reply has one object, under key.
func send[T any](ctx context.Context, c *client, v verb, path, key string, in any) (T, error) {
	var out map[string]json.RawMessage
	var x T
	if err := c.call(ctx, v, path, nil, in, &out); err != nil {
		return x, err
	}
	if err := json.Unmarshal(out[key], &x); err != nil {
		kind := driver.Unreachable
		if v != ask {
			kind = driver.OutcomeUnknown
		}
		return x, driver.Errorf(kind, "%s: the reply has no %s: %w", what(v.method, path), key, err)
	}
	return x, nil
}

// pageSize is how many objects are asked for at once, and mostPages how often: a
// server that always has more ends there.
const (
	pageSize  = 500
	mostPages = 200
)

// list asks for all objects that the query finds.
func list[T any](ctx context.Context, c *client, path, key string, query url.Values, id func(T) string) ([]T, error) {
	if query == nil {
		query = url.Values{}
	}
	query.Set("limit", strconv.Itoa(pageSize))
	var all []T
	for range mostPages {
		var out map[string]json.RawMessage
		var some []T
		if err := c.call(ctx, ask, path, query, nil, &out); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(out[key], &some); err != nil {
			return nil, driver.Errorf(driver.Unreachable, "%s: the reply has no %s: %w", what(http.MethodGet, path), key, err)
		}
		all = append(all, some...)
		// A server's own limit may be lower than ours: what says that there is
		// more is the link to it.
		if _, more := out[key+"_links"]; !more || len(some) == 0 {
			return all, nil
		}
		query.Set("marker", id(some[len(some)-1]))
	}
	return nil, driver.Errorf(driver.Unreachable, "GET /%s: there are more than %d, and no end", path, len(all))
}
