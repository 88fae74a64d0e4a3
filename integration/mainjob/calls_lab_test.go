//go:build lab

package mainjob

import (
	"bufio"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/arrays/cinder/cinderlab"
)

// calls tells of each call to an array before it gets there and before its reply
// gets back: "before split", "after split".
type calls struct {
	mu  sync.Mutex
	on  func(what string) (passes bool)
	all []string
}

// each has f told of every call from now on, which passes if f says so; nil: nobody.
func (c *calls) each(f func(what string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on = f
}

func (c *calls) tell(what string) (passes bool) {
	c.mu.Lock()
	f := c.on
	c.all = append(c.all, what)
	c.mu.Unlock()
	return f == nil || f(what)
}

// seen are the calls since it was asked last.
func (c *calls) seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.all
	c.all = nil
	return all
}

// hearRelay hears what a relay says, and returns the relay's socket.
func (c *calls) hearRelay(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
					c.tell(strings.TrimSpace(line))
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return socket
}

var ids = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}`)

// hearHTTP stands before an HTTP server and returns its own address. Calls are
// named by method and path, those that only ask left out.
func (c *calls) hearHTTP(t *testing.T, endpoint string) string {
	t.Helper()
	u, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = ""
	pass := httputil.NewSingleHostReverseProxy(u)
	pass.ModifyResponse = func(r *http.Response) error {
		if r.Request.Method != http.MethodGet {
			c.tell("after " + named(r.Request))
		}
		return nil
	}
	pass.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			if !c.tell("before " + named(r)) {
				panic(http.ErrAbortHandler)
			}
		}
		pass.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func named(r *http.Request) string {
	_, path, _ := strings.Cut(r.URL.Path, cinderlab.Project+"/")
	return r.Method + " " + ids.ReplaceAllString(path, "ID")
}
