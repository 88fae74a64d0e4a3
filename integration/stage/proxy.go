package stage

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync/atomic"
	"time"
)

// proxy stands between the control plane and the array's control socket, so
// that tests make the array slow or cut its replies without a knob for it in
// the product. I/O does not pass through here.
type proxy struct {
	server http.Server
	delay  atomic.Int64 // of a split, in nanoseconds
	// Told of each split before it is passed on, and before its reply is.
	before, after atomic.Pointer[func()]
}

func newProxy(listen, to string) (*proxy, error) {
	l, err := net.Listen("unix", listen)
	if err != nil {
		return nil, err
	}
	p := &proxy{}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "array"
		},
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", to)
		}},
		FlushInterval: -1,
		ModifyResponse: func(r *http.Response) error {
			if isSplit(r.Request) {
				tell(&p.after)
			}
			return nil
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) {
			panic(http.ErrAbortHandler) // cut the connection, as the array's death would
		},
	}
	p.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isSplit(r) {
			tell(&p.before)
			select {
			case <-time.After(time.Duration(p.delay.Load())):
			case <-r.Context().Done():
				return
			}
		}
		forward.ServeHTTP(w, r)
	})
	go p.server.Serve(l) //nolint:errcheck // ends by Close
	return p, nil
}

func isSplit(r *http.Request) bool {
	return r.Method == http.MethodPost && strings.Contains(r.URL.Path, "split")
}

func (p *proxy) Close() error {
	if err := p.server.Close(); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func tell(who *atomic.Pointer[func()]) {
	if f := who.Load(); f != nil {
		(*f)()
	}
}

// OnSplit has f told of each split before the array is; nil: nobody.
func (s *Stage) OnSplit(f func()) { set(&s.proxy.before, f) }

// OnSplitReply has f told when the array has answered a split, before the
// control plane hears of it; nil: nobody.
func (s *Stage) OnSplitReply(f func()) { set(&s.proxy.after, f) }

func set(who *atomic.Pointer[func()], f func()) {
	if f == nil {
		who.Store(nil)
		return
	}
	who.Store(&f)
}
