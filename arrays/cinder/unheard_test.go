package cinder

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/cinder/cinderlab"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// deaf is a way to Cinder on which a reply is lost: the first one to a request that
// makes something of a kind.
type deaf struct {
	endpoint string
	kind     atomic.Pointer[string]
	lost     atomic.Int32
}

func newDeaf(t *testing.T, c *cinderlab.Cinder) *deaf {
	t.Helper()
	to, err := url.Parse(strings.TrimSuffix(c.Endpoint, "/v3"))
	if err != nil {
		t.Fatal(err)
	}
	x := new(deaf)
	p := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport: &http.Transport{DisableKeepAlives: true},
		ModifyResponse: func(r *http.Response) error {
			kind := x.kind.Load()
			if kind == nil || r.Request.Method != http.MethodPost || !strings.HasSuffix(r.Request.URL.Path, *kind) || !x.kind.CompareAndSwap(kind, nil) {
				return nil
			}
			x.lost.Add(1)
			_, err := io.Copy(io.Discard, r.Body)
			return errors.Join(errors.New("lost"), err)
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	x.endpoint = s.URL + "/v3"
	return x
}

// unheard has Cinder act on requests and nobody hear of it. What was made is found,
// and used: there is one of each, and none is left.
func unheard(t *testing.T, c *cinderlab.Cinder) {
	v := driver.VolumeID(c.Volume("plain"))
	x := newDeaf(t, c)
	d, err := New(Options{
		Endpoint: x.endpoint, Project: cinderlab.Project, Limit: time.Minute, Initiator: "iqn.2026-01.org.example:reader",
		Connect: func(context.Context, Connection) (lun.Device, error) { return nothing{}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"/snapshots", "/volumes", "/attachments", "/action", "/metadata"} {
		t.Run(kind[1:], func(t *testing.T) {
			lose := func() { x.kind.Store(&kind) }
			lose()
			s, err := d.Split(t.Context(), driver.Tag("unheard"+strings.ReplaceAll(kind, "/", "-")), v)
			if err != nil {
				t.Fatal(err)
			}
			lose()
			r, err := d.Open(t.Context(), s.ID)
			if err != nil {
				t.Fatal(err)
			}
			lose()
			if _, err := d.Expose(t.Context(), s.ID, driver.ExposeOptions{Initiators: []string{"iqn.1993-08.org.debian:01:backup"}, Writable: true}); err != nil {
				t.Fatal(err)
			}
			x.kind.Store(nil)
			if n, want := x.lost.Swap(0), int32(2); n < 1 || kind != "/snapshots" && n != want {
				t.Errorf("%d replies were lost", n)
			}
			made, err := d.madeOf(t.Context(), string(s.ID))
			if err != nil || len(made) != 2 {
				t.Errorf("%d volumes were made of the snapshot, %v; want one that is read and one that is exposed", len(made), err)
			}
			for _, m := range made {
				if as, err := d.attachments(t.Context(), m.ID); err != nil || len(as) != 1 {
					t.Errorf("volume %s has %d attachments, %v", m.ID, len(as), err)
				}
			}
			if err := errors.Join(r.(io.Closer).Close(), d.Unexpose(t.Context(), s.ID), d.Delete(t.Context(), s.ID)); err != nil {
				t.Error(err)
			}
			if made, err := d.madeOf(t.Context(), string(s.ID)); err != nil || len(made) > 0 {
				t.Errorf("left: %v, %v", made, err)
			}
		})
	}
}
