package cinder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
)

const (
	project  = "0123456789abcdef0123456789abcdef"
	volumeID = "5a1c7a8e-6d3b-4c8e-9a51-2f0c2e4b7d10"
	secret   = "correct-horse-battery"
)

// scripted is a Cinder that says what it is told to: the replies of real ones, and
// those that they give in trouble. Each route has its replies, the last of which
// is repeated.
type scripted struct {
	*httptest.Server
	mu     sync.Mutex
	routes map[string][]http.HandlerFunc
	asked  []string
}

func script(t *testing.T, routes map[string][]http.HandlerFunc) *scripted {
	s := &scripted{routes: routes}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// ServeHTTP implements http.Handler.
func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/v3/"+project+"/")
	s.mu.Lock()
	s.asked = append(s.asked, route)
	rs := s.routes[route]
	if len(rs) > 1 {
		s.routes[route] = rs[1:]
	}
	s.mu.Unlock()
	if len(rs) == 0 {
		refuse(404, "itemNotFound", "Resource could not be found.", "")(w, r)
		return
	}
	rs[0](w, r)
}

func (s *scripted) times(route string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(s.asked), func(a string) bool { return a != route }))
}

func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }
}

func refuse(code int, key, message, after string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(map[string]any{key: map[string]any{"code": code, "message": message}})
	}
}

// hangUp ends the connection without a reply, after then has been done.
func hangUp(then func()) http.HandlerFunc {
	return func(http.ResponseWriter, *http.Request) {
		if then != nil {
			then()
		}
		panic(http.ErrAbortHandler)
	}
}

// cut says a part of what it said it would say.
func cut(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	fmt.Fprint(w, `{"snapshot": {"id": "`)
}

const (
	theVolume   = `{"volume": {"id": "` + volumeID + `", "name": "db", "size": 1, "status": "in-use", "volume_type": "lvm"}}`
	theID       = "e8c5c6af-2421-42ba-bd19-f66a46bc4c63"
	theSnapshot = `{"id": "` + theID + `", "name": "cleave-t", "size": 1, "volume_id": "` + volumeID + `", "metadata": {"cleave-tag": "t"}, "created_at": "2026-11-23T07:21:01.336813", "status": "`
	none        = `{"snapshots": []}`
)

func one(status string) http.HandlerFunc { return says(`{"snapshot": ` + theSnapshot + status + `"}}`) }
func listOf(status string) http.HandlerFunc {
	return says(`{"snapshots": [` + theSnapshot + status + `"}]}`)
}

// scriptedDriver waits for nothing, and counts what it would have waited.
func scriptedDriver(t *testing.T, s *scripted) (*Driver, *time.Duration) {
	t.Helper()
	var waited time.Duration
	d, err := New(Options{Endpoint: s.URL + "/v3", Project: project, pause: func(ctx context.Context, p time.Duration) error {
		if waited += p; waited > time.Hour {
			return context.DeadlineExceeded
		}
		return ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	return d, &waited
}

// TestSplitInTrouble is the table of what goes wrong with taking a snapshot.
func TestSplitInTrouble(t *testing.T) {
	const post = "POST snapshots"
	quota := refuse(413, "overLimit", "SnapshotLimitExceeded: Maximum number of snapshots allowed (10) exceeded", "")
	for _, x := range []struct {
		name   string
		create []http.HandlerFunc
		find   []http.HandlerFunc // after the first look
		states []http.HandlerFunc
		kind   driver.Kind // Unknown with times > 0 and no error text: success
		says   string      // in the error; empty: there is none
		posts  int
	}{
		{name: "Works", create: []http.HandlerFunc{one("creating")}, posts: 1},
		{name: "429 with Retry-After", create: []http.HandlerFunc{refuse(429, "overLimit", "slow down", "7"), one("creating")}, posts: 2},
		{name: "429 without", create: []http.HandlerFunc{refuse(429, "overLimit", "slow down", ""), one("creating")}, posts: 2},
		{name: "429 for ever", create: []http.HandlerFunc{refuse(429, "overLimit", "slow down", "1")}, kind: driver.Busy, says: "slow down", posts: attempts},
		{name: "503 with Retry-After", create: []http.HandlerFunc{refuse(503, "serviceUnavailable", "later", "1"), one("creating")}, posts: 2},
		{name: "503 without, nothing done", create: []http.HandlerFunc{refuse(503, "serviceUnavailable", "later", "")}, kind: driver.OutcomeUnknown, says: "503", posts: 1},
		{name: "503 without, but done", create: []http.HandlerFunc{refuse(503, "serviceUnavailable", "later", "")}, find: []http.HandlerFunc{listOf("creating")}, posts: 1},
		{name: "500, nothing done", create: []http.HandlerFunc{refuse(500, "computeFault", "Unexpected API Error.", "")}, kind: driver.OutcomeUnknown, says: "Unexpected API Error.", posts: 1},
		{name: "500, but done", create: []http.HandlerFunc{refuse(500, "computeFault", "Unexpected API Error.", "")}, find: []http.HandlerFunc{listOf("creating")}, posts: 1},
		{name: "409", create: []http.HandlerFunc{refuse(409, "conflictingRequest", "the volume is busy", "")}, kind: driver.Busy, says: "the volume is busy", posts: 1},
		{name: "403", create: []http.HandlerFunc{refuse(403, "forbidden", "Policy doesn't allow volume:create_snapshot to be performed.", "")}, kind: driver.NotPermitted, says: "volume:create_snapshot", posts: 1},
		{name: "quota", create: []http.HandlerFunc{quota}, kind: driver.NoSpace, says: "SnapshotLimitExceeded", posts: 1},
		{name: "reply lost, nothing done", create: []http.HandlerFunc{hangUp(nil)}, kind: driver.OutcomeUnknown, says: "POST /snapshots", posts: 1},
		{name: "reply lost, but done", create: []http.HandlerFunc{hangUp(nil)}, find: []http.HandlerFunc{listOf("creating")}, posts: 1},
		{name: "reply cut, but done", create: []http.HandlerFunc{cut}, find: []http.HandlerFunc{listOf("creating")}, posts: 1},
		{name: "reply is nonsense", create: []http.HandlerFunc{says("<html>proxy</html>")}, kind: driver.OutcomeUnknown, says: "POST /snapshots", posts: 1},
		{name: "error", create: []http.HandlerFunc{one("creating")}, states: []http.HandlerFunc{one("creating"), one("error")}, says: "failed in Cinder's back end", posts: 1},
		{name: "stuck in creating", create: []http.HandlerFunc{one("creating")}, states: []http.HandlerFunc{one("creating")}, kind: driver.OutcomeUnknown, says: "still at it", posts: 1},
	} {
		t.Run(x.name, func(t *testing.T) {
			find, states := x.find, x.states
			if find == nil {
				find = []http.HandlerFunc{says(none)}
			}
			if states == nil {
				states = []http.HandlerFunc{one("creating"), one("available")}
			}
			s := script(t, map[string][]http.HandlerFunc{
				"GET volumes/" + volumeID: {says(theVolume)}, "GET snapshots/detail": append([]http.HandlerFunc{says(none)}, find...),
				post: x.create, "GET snapshots/" + theID: states, "DELETE snapshots/" + theID: {says("")},
			})
			d, _ := scriptedDriver(t, s)
			got, err := d.Split(t.Context(), "t", volumeID)
			switch {
			case x.says == "" && (err != nil || got.ID != theID || got.Size != gib || got.State != driver.Split):
				t.Errorf("%+v, %v", got, err)
			case x.says != "" && (err == nil || d.Kind(err) != x.kind || !strings.Contains(err.Error(), x.says) || strings.Contains(err.Error(), "\n")):
				t.Errorf("%v, of kind %v, want %v and %q", err, d.Kind(err), x.kind, x.says)
			}
			if n := s.times(post); n != x.posts {
				t.Errorf("it was asked for %d times, want %d", n, x.posts)
			}
		})
	}
}

// Questions and deletions are repeated whatever happened.
func TestQuestionsAreRepeated(t *testing.T) {
	trouble := []http.HandlerFunc{hangUp(nil), refuse(500, "computeFault", "oops", ""), refuse(503, "serviceUnavailable", "later", ""), cut}
	s := script(t, map[string][]http.HandlerFunc{
		"GET snapshots/detail": append(slices.Clone(trouble), listOf("available")), "GET snapshots/" + theID: {one("available"), refuse(404, "itemNotFound", "", "")},
		"GET volumes/detail": {says(`{"volumes": []}`)}, "DELETE snapshots/" + theID: append(trouble[:3:3], says("")),
	})
	d, waited := scriptedDriver(t, s)
	ss, err := d.Lookup(t.Context(), "t")
	if err != nil || len(ss) != 1 {
		t.Errorf("%v, %v", ss, err)
	}
	if err := d.Delete(t.Context(), theID); err != nil {
		t.Error(err)
	}
	if n := s.times("DELETE snapshots/" + theID); n != 4 || *waited == 0 {
		t.Errorf("deleted %d times, after %v", n, *waited)
	}
}

// keystone is an identity service as far as it is used, in front of a scripted
// Cinder: it gives out tokens, each good for a number of requests.
func keystone(t *testing.T, s *scripted, good int) *httptest.Server {
	var mu sync.Mutex
	tokens, used := 0, 0
	var k *httptest.Server
	k = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/identity/v3/auth/tokens" {
			var in struct {
				Auth struct {
					Identity struct {
						Password struct {
							User struct{ Password string }
						}
						Credential struct{ Secret string } `json:"application_credential"`
					}
				}
			}
			json.NewDecoder(r.Body).Decode(&in)
			if i := in.Auth.Identity; i.Password.User.Password != secret && i.Credential.Secret != secret {
				refuse(401, "error", "The request you have made requires authentication.", "")(w, r)
				return
			}
			tokens++
			used = 0
			w.Header().Set("X-Subject-Token", fmt.Sprintf("token-%d", tokens))
			w.WriteHeader(201)
			fmt.Fprintf(w, `{"token": {"expires_at": "2099-01-01T00:00:00.000000Z", "project": {"id": "%[2]s", "name": "p"}, "roles": [{"id": "1", "name": "member"}, {"id": "2", "name": "reader"}], "catalog": [{"type": "volumev3", "name": "cinderv3", "endpoints": [{"interface": "public", "region": "R", "region_id": "R", "url": "%[1]s/v3/%[2]s"}]}]}}`, k.URL, project)
			return
		}
		if used++; used > good || r.Header.Get("X-Auth-Token") != fmt.Sprintf("token-%d", tokens) {
			refuse(401, "error", "The request you have made requires authentication.", "")(w, r)
			return
		}
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(k.Close)
	return k
}

func cloudsFile(t *testing.T, entry string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clouds.yaml")
	if err := os.WriteFile(path, []byte("clouds:\n  lab:\n"+entry), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func password(url, word string) string {
	return fmt.Sprintf("    region_name: R\n    auth:\n      auth_url: %s/identity/v3\n      username: u\n      password: %s\n      project_name: p\n      user_domain_name: Default\n      project_domain_name: Default\n", url, word)
}

// A token that ends in the middle is replaced, by password and by application
// credential.
func TestKeystone(t *testing.T) {
	s := script(t, map[string][]http.HandlerFunc{"GET volumes/" + volumeID: {says(theVolume)}})
	k := keystone(t, s, 2)
	credential := fmt.Sprintf("    region_name: R\n    auth_type: v3applicationcredential\n    auth:\n      auth_url: %s/identity/v3\n      application_credential_id: c\n      application_credential_secret: %s\n", k.URL, secret)
	for name, entry := range map[string]string{"password": password(k.URL, secret), "credential": credential} {
		d, err := New(Options{Cloud: "lab", CloudsFile: cloudsFile(t, entry)})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 7 {
			if v, err := d.Resolve(t.Context(), driver.Disk{Serial: volumeID}); err != nil || v.ID != volumeID {
				t.Fatalf("%s, request %d: %+v, %v", name, i, v, err)
			}
		}
	}
}

// Wrong credentials, a token that ends for good and a certificate of nobody's are
// one clear line, without what was logged in with.
func TestRefusedLogin(t *testing.T) {
	s := script(t, map[string][]http.HandlerFunc{"GET volumes/" + volumeID: {says(theVolume)}})
	check := func(name string, o Options, kind driver.Kind, want string) {
		t.Helper()
		o.pause = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
		d, err := New(o)
		if err == nil {
			_, err = d.Resolve(t.Context(), driver.Disk{Serial: volumeID})
		}
		if err == nil || d.Kind(err) != kind || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, of kind %v, want %v and %q", name, err, d.Kind(err), kind, want)
		}
		for ; err != nil; err = errors.Unwrap(err) {
			if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, "battery") || strings.Contains(text, "token-") {
				t.Errorf("%s: it tells a secret: %s", name, text)
			}
		}
	}
	k := keystone(t, s, 100)
	check("wrong password", Options{Cloud: "lab", CloudsFile: cloudsFile(t, password(k.URL, "wrong-battery"))}, driver.NotPermitted, "requires authentication")
	check("no such cloud", Options{Cloud: "other", CloudsFile: cloudsFile(t, password(k.URL, secret))}, driver.InvalidRequest, "other")
	check("tokens that are never good", Options{Cloud: "lab", CloudsFile: cloudsFile(t, password(keystone(t, s, 0).URL, secret))}, driver.NotPermitted, "401")
	tls := httptest.NewTLSServer(s)
	t.Cleanup(tls.Close)
	check("a stranger's certificate", Options{Endpoint: tls.URL + "/v3", Project: project}, driver.Unreachable, "certificate")
	check("nobody there", Options{Endpoint: "http://127.0.0.1:1/v3", Project: project}, driver.Unreachable, "refused")
}

func TestQuota(t *testing.T) {
	s := script(t, map[string][]http.HandlerFunc{
		"GET volumes/" + volumeID: {says(theVolume)}, "GET snapshots/detail": {says(none)},
		"GET limits": {says(`{"limits": {"absolute": {"maxTotalSnapshots": 10, "totalSnapshotsUsed": 10, "maxTotalVolumeGigabytes": -1}}}`),
			says(`{"limits": {"absolute": {"maxTotalSnapshots": 10, "totalSnapshotsUsed": 9, "maxTotalVolumeGigabytes": 5, "totalGigabytesUsed": 5}}}`),
			says(`{"limits": {"absolute": {"maxTotalSnapshots": 10, "totalSnapshotsUsed": 9, "maxTotalVolumeGigabytes": 5, "totalGigabytesUsed": 4}}}`)},
	})
	d, _ := scriptedDriver(t, s)
	for i, want := range []driver.Kind{driver.NoSpace, driver.NoSpace, driver.Unknown} {
		err := d.Prepare(t.Context(), []driver.VolumeID{volumeID}, driver.PrepareOptions{Tag: "t"})
		if d.Kind(err) != want || (err == nil) != (want == driver.Unknown) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// A secret of CHAP is in nothing that anybody prints.
func TestCHAPSecretIsHidden(t *testing.T) {
	a := attachment{ID: "a", Connection: []byte(`{"driver_volume_type": "iscsi", "target_iqn": "iqn.x", "target_portal": "192.0.2.1:3260", "target_lun": "1", "auth_method": "CHAP", "auth_username": "u", "auth_password": "` + secret + `"}`)}
	c, err := a.connection()
	if err != nil || c.CHAP == nil || string(c.CHAP.Secret) != secret || c.LUN != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	p := driver.Path{CHAP: c.CHAP}
	j, err := json.Marshal(map[string]any{"path": p, "connection": c})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprintf("%v %+v %#v %s %v", c, *c.CHAP, c.CHAP.Secret, c.CHAP.Secret, p), string(j)} {
		if strings.Contains(text, secret) {
			t.Errorf("it is in %s", text)
		}
	}
}

func FuzzConnection(f *testing.F) {
	f.Add([]byte(`{"driver_volume_type": "iscsi", "target_iqns": ["a"], "target_portals": ["[::1]:3260"], "target_luns": [1]}`))
	f.Add([]byte(`{"driver_volume_type": "rbd", "name": "p/i", "hosts": ["h"], "ports": ["1"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := attachment{Connection: b}.connection()
		if err == nil && c.Protocol == "iscsi" && (len(c.Portals) == 0 || len(c.Portals) != len(c.Targets)) {
			t.Errorf("%+v", c)
		}
	})
}
