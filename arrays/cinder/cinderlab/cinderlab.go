// Package cinderlab starts a real Cinder for tests: Debian's cinder-api,
// cinder-scheduler and cinder-volume in one process on a port of 127.0.0.1, with
// a SQLite database, back ends of the test's choice, and without Keystone
// (auth_strategy = noauth) or with a real one. It is for tests only.
package cinderlab

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

//go:embed cinder-process.py
var process []byte

// python is Debian's, which has Debian's packages.
const python = "/usr/bin/python3"

// Project is the project that everything belongs to where there is no Keystone.
const Project = "7bd3aa7a32334bd5b2e6d40fe0a0e0f1"

// GroupType is a group type that asks for one instant.
const GroupType = "cleave"

// Backends without data. Consistent ones report consistent_group_snapshot_enabled.
const (
	Plain      = "volume_driver = cinder.tests.fake_driver.PlainFake"
	Consistent = "volume_driver = cinder.tests.fake_driver.ConsistentFake"
)

// Cinder is one that runs until its test ends.
type Cinder struct {
	Endpoint string // http://127.0.0.1:port/v3
	Project  string // ID of the one that everything belongs to
	t        testing.TB
	log      string
	token    func() string // of the project's administrator
}

// Start starts a Cinder with back ends: for each name, which is a volume type's as
// well, the lines of its section in cinder.conf. A host without Cinder skips the
// test.
func Start(t testing.TB, backends map[string]string) *Cinder {
	t.Helper()
	c := &Cinder{Project: Project, t: t, token: func() string { return "admin:" + Project }}
	c.run("noauth", backends, "", nil)
	return c
}

// StartOn starts a Cinder whose storage is on another machine, which performs the
// commands that Cinder has for lvm2 and tgtd.
func StartOn(t testing.TB, there Elsewhere, backends map[string]string) *Cinder {
	t.Helper()
	c := &Cinder{Project: Project, t: t, token: func() string { return "admin:" + Project }}
	c.run("noauth", backends, "", there)
	return c
}

// StartWith starts a Cinder that is in Keystone's catalogue and checks its tokens. It
// keeps to the roles as they are meant to be (enforce_new_defaults): a reader
// changes nothing. Its project is called "lab".
func StartWith(t testing.TB, k *Keystone, backends map[string]string) *Cinder {
	t.Helper()
	k.service()
	_, project := k.User("lab-admin", ServicePassword, "lab", "admin")
	c := &Cinder{Project: project, t: t, token: func() string { return k.logIn("lab", "lab-admin", ServicePassword) }}
	c.run("keystone", backends, fmt.Sprintf(`[keystone_authtoken]
auth_type = password
auth_url = %[1]s
www_authenticate_uri = %[1]s
username = cinder
password = %[2]s
project_name = service
user_domain_id = default
project_domain_id = default
`, k.URL, ServicePassword), nil)
	k.publish(c.Endpoint)
	return c
}

// run starts the process, and returns when it answers.
func (c *Cinder) run(auth string, backends map[string]string, sections string, there Elsewhere) {
	t := c.t
	t.Helper()
	if out, err := exec.Command(python, "-c", "import cinder.cmd.api, cinder.cmd.volume, cinder.cmd.scheduler").CombinedOutput(); err != nil {
		t.Skipf("no Cinder is tested: %v: %s (`make deps` installs it)", err, lastLine(out))
	}
	dir, port := directory(t, "cinderlab-"), freePort(t)
	var names []string
	for name, lines := range backends {
		names = append(names, name)
		sections += fmt.Sprintf("[%s]\nvolume_backend_name = %s\n%s\n", name, name, lines)
	}
	conf := fmt.Sprintf(`[DEFAULT]
host = lab
auth_strategy = %s
transport_url = fake://
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = %d
osapi_volume_workers = 1
state_path = %[3]s
enabled_backends = %s
api_paste_config = %[3]s/api-paste.ini
resource_query_filters_file = /etc/cinder/resource_filters.json
rootwrap_config = /etc/cinder/rootwrap.conf
scheduler_driver_init_wait_time = 1
backend_stats_polling_interval = 3
periodic_fuzzy_delay = 0
quota_volumes = -1
quota_snapshots = -1
quota_gigabytes = -1
quota_groups = -1
default_log_levels = cinder=WARNING,eventlet=WARNING,oslo=WARNING,oslo_messaging=ERROR,sqlalchemy=WARNING
[database]
connection = sqlite:///%[3]s/cinder.sqlite
[coordination]
backend_url = file://%[3]s/coordination
[oslo_policy]
enforce_new_defaults = true
policy_file = %[3]s/policy.yaml
[oslo_concurrency]
lock_path = %[3]s/locks
%[5]s`, auth, port, dir, strings.Join(names, ","), sections)
	c.Endpoint, c.log = fmt.Sprintf("http://127.0.0.1:%d/v3", port), filepath.Join(dir, "log")
	script, ready := filepath.Join(dir, "cinder-process.py"), filepath.Join(dir, "ready")
	paste, err := pipelines()
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string][]byte{
		filepath.Join(dir, "cinder.conf"): []byte(conf), script: process,
		filepath.Join(dir, "api-paste.ini"): paste, filepath.Join(dir, "policy.yaml"): []byte(policy),
	} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	args := []string{script, filepath.Join(dir, "cinder.conf"), ready}
	if there != nil {
		args = append(args, there.listen(t, filepath.Join(dir, "commands.sock")))
	}
	p := start(t, c.log, args...)
	p.await(func() bool {
		_, err := os.Stat(ready)
		return err == nil
	})
	t.Logf("PEER %s, ready after %v", version("Cinder", "cinder-volume"), time.Since(began).Round(100*time.Millisecond))
}

// Log is the end of what Cinder wrote.
func (c *Cinder) Log() string { return end(c.log) }

// Do makes a request as the project's administrator; in and out are JSON or nil.
// A failure fails the test.
func (c *Cinder) Do(method, path string, in, out any) {
	c.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		c.t.Fatal(err)
	}
	if in == nil {
		body = nil
	}
	r, err := http.NewRequest(method, c.Endpoint+"/"+c.Project+"/"+path, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("X-Auth-Token", c.token())
	r.Header.Set("OpenStack-API-Version", "volume 3.60")
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatalf("%s %s: %v\n%s", method, path, err, c.Log())
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		c.t.Fatalf("%s %s: %s: %s, %v", method, path, resp.Status, b, err)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			c.t.Fatalf("%s %s: %v", method, path, err)
		}
	}
}

// Volume makes a volume of a back end, of 1 GiB, and returns its ID.
func (c *Cinder) Volume(backend string) string {
	c.t.Helper()
	return c.VolumeOf(backend, 1)
}

// VolumeOf makes a volume of so many GiB.
func (c *Cinder) VolumeOf(backend string, size int) string {
	c.t.Helper()
	var v struct {
		Volume struct{ ID, Status string }
	}
	in := map[string]any{"volume": map[string]any{"size": size, "name": "production", "volume_type": backend}}
	c.Do(http.MethodPost, "volumes", in, &v)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); v.Volume.Status != "available"; {
		select {
		case <-tick.C:
		case <-late:
			c.t.Fatalf("volume of %s is %q: %s", backend, v.Volume.Status, c.Log())
		}
		c.Do(http.MethodGet, "volumes/"+v.Volume.ID, nil, &v)
		if v.Volume.Status == "error" {
			c.t.Fatalf("volume of %s is %q: %s", backend, v.Volume.Status, c.Log())
		}
	}
	return v.Volume.ID
}
