// Package toxiproxy starts Shopify's toxiproxy for tests: it stands before a server
// and cuts connections when it is told to. It is built by `go install`, so that
// go.mod stays free of it, and is for tests only.
package toxiproxy

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

const version = "v2.12.0"

// Server is a toxiproxy that runs until its test ends. Its methods fail the test.
type Server struct {
	t    *testing.T
	base string
}

// Start builds and starts a toxiproxy.
func Start(t *testing.T) *Server {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "install", "github.com/Shopify/toxiproxy/v2/cmd/server@"+version)
	build.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building toxiproxy: %v: %s", err, out)
	}
	t.Logf("PEER toxiproxy %s", version)
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
	p := &Server{t: t, base: "http://" + api}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) { // between two questions
		err := p.call(http.MethodGet, "/version", nil)
		if err == nil {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("toxiproxy does not answer: %v", err)
		}
	}
}

// Proxy makes a proxy in front of upstream and returns where it listens.
func (p *Server) Proxy(name, upstream string) string {
	p.t.Helper()
	listen := freeAddr(p.t)
	p.must(http.MethodPost, "/proxies", map[string]any{"name": name, "listen": listen, "upstream": upstream, "enabled": true})
	return listen
}

// Enable lets connections through, or cuts those there are and refuses more.
func (p *Server) Enable(name string, on bool) {
	p.t.Helper()
	p.must(http.MethodPost, "/proxies/"+name, map[string]any{"enabled": on})
}

// Toxic adds a toxic to both directions of a proxy.
func (p *Server) Toxic(name, kind string, attributes map[string]any) {
	p.t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		p.must(http.MethodPost, "/proxies/"+name+"/toxics", map[string]any{"type": kind, "stream": stream, "attributes": attributes})
	}
}

// Reset takes all toxics away, and enables every proxy.
func (p *Server) Reset() {
	p.t.Helper()
	p.must(http.MethodPost, "/reset", nil)
}

func (p *Server) must(method, path string, body any) {
	p.t.Helper()
	if err := p.call(method, path, body); err != nil {
		p.t.Fatal(err)
	}
}

func (p *Server) call(method, path string, body any) error {
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
