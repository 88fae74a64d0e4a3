//go:build lab

package initiators

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// toxiproxyVersion is what cuts connections: fetched and built by `go install`,
// so that go.mod stays free of it.
const toxiproxyVersion = "v2.12.0"

// toxiproxy is a running toxiproxy server.
type toxiproxy struct {
	t    *testing.T
	base string
}

func startToxiproxy(t *testing.T) *toxiproxy {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "install", "github.com/Shopify/toxiproxy/v2/cmd/server@"+toxiproxyVersion)
	build.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building toxiproxy: %v: %s", err, out)
	}
	t.Logf("PEER toxiproxy %s", toxiproxyVersion)
	api := freeAddr(t)
	host, port, err := net.SplitHostPort(api)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "server"), "-host", host, "-port", port)
	cmd.Env = append(os.Environ(), "LOG_LEVEL=error")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended by itself
		cmd.Wait()         //nolint:errcheck // killed
	})
	p := &toxiproxy{t: t, base: "http://" + api}
	eventually(t, 20*time.Second, "toxiproxy answers", func() error {
		return p.call(http.MethodGet, "/version", nil)
	})
	return p
}

// proxy makes a proxy in front of upstream and returns where it listens.
func (p *toxiproxy) proxy(name, upstream string) string {
	p.t.Helper()
	listen := freeAddr(p.t)
	p.must(http.MethodPost, "/proxies", map[string]any{"name": name, "listen": listen, "upstream": upstream, "enabled": true})
	return listen
}

// enable lets connections through, or cuts those there are and refuses more.
func (p *toxiproxy) enable(name string, on bool) {
	p.t.Helper()
	p.must(http.MethodPost, "/proxies/"+name, map[string]any{"enabled": on})
}

// toxic adds a toxic to both directions of a proxy; reset takes all away.
func (p *toxiproxy) toxic(name, kind string, attributes map[string]any) {
	p.t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		p.must(http.MethodPost, "/proxies/"+name+"/toxics", map[string]any{"type": kind, "stream": stream, "attributes": attributes})
	}
}

func (p *toxiproxy) reset() {
	p.t.Helper()
	p.must(http.MethodPost, "/reset", nil)
}

func (p *toxiproxy) must(method, path string, body any) {
	p.t.Helper()
	if err := p.call(method, path, body); err != nil {
		p.t.Fatal(err)
	}
}

func (p *toxiproxy) call(method, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(method, p.base+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("toxiproxy: %s %s: %s: %s", method, path, resp.Status, text)
	}
	return err
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// eventually repeats try until it succeeds.
func eventually(t *testing.T, limit time.Duration, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
