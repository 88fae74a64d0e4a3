package cinderlab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
)

// The roles of As, besides Keystone's admin, member and reader.
const (
	// Pools may read which pools there are and volumes are in, by the policy: an
	// administrator's by default.
	Pools = "cleave"
	// WithoutSnapshots may take none.
	WithoutSnapshots = "without-snapshots"
)

// policy is what an operator adds to Cinder's defaults.
const policy = `"scheduler_extension:scheduler_stats:get_pools": "rule:admin_api or role:cleave"
"volume_extension:volume_host_attribute": "rule:admin_api or role:cleave"
"volume:create_snapshot": "rule:xena_system_admin_or_project_member and not role:without-snapshots"
`

// pipelines are Debian's api-paste.ini, with one more way in: at /roles it is as
// behind Keystone, but for the middleware that asks Keystone about the token. What
// that would write into the request is taken as it comes.
func pipelines() ([]byte, error) {
	ini, err := os.ReadFile("/etc/cinder/api-paste.ini")
	if err != nil {
		return nil, err
	}
	const at = "/v3: openstack_volume_api_v3\n"
	if !bytes.Contains(ini, []byte(at)) {
		return nil, fmt.Errorf("/etc/cinder/api-paste.ini has no line %q", strings.TrimSpace(at))
	}
	ini = bytes.Replace(ini, []byte(at), []byte(at+"/roles/v3: roles_v3\n"), 1)
	return append(ini, "\n[pipeline:roles_v3]\npipeline = request_id faultwrap sizelimit keystonecontext apiv3\n"...), nil
}

// As is an endpoint of the same Cinder for a user of the project with roles, as
// Keystone names them: an administrator has "admin", "member" and "reader".
func (c *Cinder) As(roles ...string) string {
	c.t.Helper()
	to, err := url.Parse(strings.TrimSuffix(c.Endpoint, "/v3") + "/roles")
	if err != nil {
		c.t.Fatal(err)
	}
	p := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		for name, value := range map[string]string{
			"X-Identity-Status": "Confirmed", "X-User-Id": "f00d", "X-Project-Id": Project, "X-Roles": strings.Join(roles, ","),
		} {
			r.Out.Header.Set(name, value)
		}
	}, Transport: &http.Transport{DisableKeepAlives: true}}
	s := httptest.NewServer(p)
	c.t.Cleanup(s.Close)
	return s.URL + "/v3"
}

// Everything is all that there is in the project, as one text.
func (c *Cinder) Everything() string {
	c.t.Helper()
	var b strings.Builder
	for _, kind := range []string{"volumes", "snapshots", "groups", "group_snapshots", "attachments"} {
		var out json.RawMessage
		c.Do(http.MethodGet, kind+"/detail?sort=id", nil, &out)
		b.Write(append(out, '\n'))
	}
	return b.String()
}
