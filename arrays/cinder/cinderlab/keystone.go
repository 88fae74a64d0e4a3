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
	"strconv"
	"testing"
	"time"
)

//go:embed keystone-process.py
var keystoneProcess []byte

// Keystone is a real one that runs until its test ends, with a SQLite database. Its
// administrator and the services' users log in with ServicePassword.
type Keystone struct {
	URL string // http://127.0.0.1:port/v3
	t   testing.TB
	dir string
}

// ServicePassword is what the services of the lab log in with.
const ServicePassword = "services' own secret"

// Region is the one region of the catalogue.
const Region = "R"

// StartKeystone starts a Keystone whose tokens are good for so long. A host without
// Keystone skips the test.
func StartKeystone(t testing.TB, tokens time.Duration) *Keystone {
	t.Helper()
	if out, err := exec.Command(python, "-c", "import keystone.server.flask").CombinedOutput(); err != nil {
		t.Skipf("no Keystone is tested: %v: %s (`make lab` installs it)", err, lastLine(out))
	}
	port := freePort(t)
	k := &Keystone{URL: fmt.Sprintf("http://127.0.0.1:%d/v3", port), t: t, dir: directory(t, "keystonelab-")}
	conf, owner := filepath.Join(k.dir, "keystone.conf"), strconv.Itoa(os.Getuid())
	k.write("keystone.conf", fmt.Sprintf(`[DEFAULT]
log_file = %[1]s/log
[database]
connection = sqlite:///%[1]s/keystone.sqlite
[token]
expiration = %[2]d
[fernet_tokens]
key_repository = %[1]s/fernet
[credential]
key_repository = %[1]s/credential
[identity]
password_hash_rounds = 4
[cache]
enabled = false
`, k.dir, int(tokens.Seconds())))
	for _, args := range [][]string{
		{"db_sync"},
		{"fernet_setup", "--keystone-user", owner, "--keystone-group", owner},
		{"credential_setup", "--keystone-user", owner, "--keystone-group", owner},
		{"bootstrap", "--bootstrap-password", ServicePassword, "--bootstrap-public-url", k.URL, "--bootstrap-internal-url", k.URL, "--bootstrap-region-id", Region},
	} {
		if out, err := exec.Command("keystone-manage", append([]string{"--config-file", conf}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("keystone-manage %s: %v: %s", args[0], err, out)
		}
	}
	k.write("keystone-process.py", string(keystoneProcess))
	p := start(t, filepath.Join(k.dir, "out"), filepath.Join(k.dir, "keystone-process.py"), conf, strconv.Itoa(port), filepath.Join(k.dir, "keystone.sqlite"))
	p.await(func() bool {
		r, err := http.Get(k.URL)
		if err == nil {
			r.Body.Close()
		}
		return err == nil
	})
	t.Logf("PEER %s", version("Keystone", "python3-keystone"))
	return k
}

func (k *Keystone) write(name, text string) {
	k.t.Helper()
	if err := os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

// logIn gives a token of a user in a project.
func (k *Keystone) logIn(project, user, password string) string {
	k.t.Helper()
	domain := map[string]any{"id": "default"}
	in := map[string]any{"auth": map[string]any{
		"identity": map[string]any{"methods": []string{"password"}, "password": map[string]any{"user": map[string]any{"name": user, "password": password, "domain": domain}}},
		"scope":    map[string]any{"project": map[string]any{"name": project, "domain": domain}},
	}}
	h := k.do(http.MethodPost, "auth/tokens", "", in, nil)
	return h.Get("X-Subject-Token")
}

// Do makes a request as Keystone's administrator.
func (k *Keystone) Do(method, path string, in, out any) {
	k.t.Helper()
	k.do(method, path, k.logIn("admin", "admin", ServicePassword), in, out)
}

func (k *Keystone) do(method, path, token string, in, out any) http.Header {
	k.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		k.t.Fatal(err)
	}
	if in == nil {
		body = nil
	}
	r, err := http.NewRequest(method, k.URL+"/"+path, bytes.NewReader(body))
	if err != nil {
		k.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("X-Auth-Token", token)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		k.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && out != nil {
		err = json.Unmarshal(b, out)
	}
	if err != nil || resp.StatusCode >= 300 {
		k.t.Fatalf("%s %s: %s: %s, %v\n%s", method, path, resp.Status, b, err, end(filepath.Join(k.dir, "out")))
	}
	return resp.Header
}

// User makes a user with a role in a project, which is made if it isn't there, and
// returns both IDs.
func (k *Keystone) User(name, password, project, role string) (userID, projectID string) {
	k.t.Helper()
	var found struct {
		Projects, Roles []struct{ ID string }
	}
	k.Do(http.MethodGet, "projects?name="+project, nil, &found)
	k.Do(http.MethodGet, "roles?name="+role, nil, &found)
	if len(found.Roles) != 1 {
		k.t.Fatalf("Keystone has no role %s", role)
	}
	if len(found.Projects) == 0 {
		var made struct{ Project struct{ ID string } }
		k.Do(http.MethodPost, "projects", map[string]any{"project": map[string]any{"name": project, "domain_id": "default"}}, &made)
		found.Projects = append(found.Projects, made.Project)
	}
	var made struct{ User struct{ ID string } }
	k.Do(http.MethodPost, "users", map[string]any{"user": map[string]any{"name": name, "password": password, "domain_id": "default"}}, &made)
	projectID = found.Projects[0].ID
	k.Do(http.MethodPut, "projects/"+projectID+"/users/"+made.User.ID+"/roles/"+found.Roles[0].ID, nil, nil)
	return made.User.ID, projectID
}

// Credential makes an application credential of a user, in a project, and returns
// its ID. End takes it away.
func (k *Keystone) Credential(userID, user, password, project, secret string) (id string, end func()) {
	k.t.Helper()
	token := k.logIn(project, user, password)
	path := "users/" + userID + "/application_credentials"
	var made struct {
		Credential struct{ ID string } `json:"application_credential"`
	}
	in := map[string]any{"application_credential": map[string]any{"name": "cleave", "secret": secret}}
	k.do(http.MethodPost, path, token, in, &made)
	return made.Credential.ID, func() {
		k.t.Helper()
		k.do(http.MethodDelete, path+"/"+made.Credential.ID, k.logIn(project, user, password), nil, nil)
	}
}

// service makes the user that a Cinder checks tokens as.
func (k *Keystone) service() { k.User("cinder", ServicePassword, "service", "admin") }

// publish puts a Cinder into the catalogue.
func (k *Keystone) publish(endpoint string) {
	k.t.Helper()
	var made struct{ Service struct{ ID string } }
	k.Do(http.MethodPost, "services", map[string]any{"service": map[string]any{"type": "volumev3", "name": "cinderv3"}}, &made)
	k.Do(http.MethodPost, "endpoints", map[string]any{"endpoint": map[string]any{
		"service_id": made.Service.ID, "interface": "public", "region_id": Region, "url": endpoint + "/%(project_id)s",
	}}, nil)
}
