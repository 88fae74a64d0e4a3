package dataplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/lun"
)

// maxRequest is the most bytes of one request's body.
const maxRequest = 1 << 20

// maxSocketPath is what fits into sockaddr_un with its final zero, unix(7).
const maxSocketPath = 107

// control serves the API until ctx ends.
func (p *plane) control(ctx context.Context) error {
	l, err := listenPrivate(p.c.Socket)
	if err != nil {
		return fmt.Errorf("data plane: control socket: %w", err)
	}
	s := &http.Server{
		Handler:           p.routes(),
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelWarn),
		// Requests end with us, so that a Prepare that waits does not.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	if p.c.Ready != nil {
		p.c.Ready(p.status())
	}
	p.log.Info("data plane is up", "target", p.c.IQN, "portals", p.portalNames(), "socket", p.c.Socket)
	select {
	case err = <-served:
		return fmt.Errorf("data plane: control socket: %w", err)
	case <-ctx.Done():
	}
	// Ours to remove, as long as we hold the array's lock.
	os.Remove(p.c.Socket)
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Shutdown(grace); err != nil {
		s.Close()
	}
	<-served
	p.handed.Wait()
	return nil
}

// listenPrivate makes a socket that only its owner can use from its first
// moment, in the place of one that nobody listens on.
func listenPrivate(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("%s has %d bytes, the path of a socket at most %d", path, len(path), maxSocketPath)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s: another data plane listens there", path)
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s is there and is no socket", path)
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".c") // 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	tmp := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/s", d.Fd()), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(tmp, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// answer is what a handler returns: a value to send as JSON, or an error.
type answer func(r *http.Request) (any, error)

func (p *plane) routes() http.Handler {
	mux := http.NewServeMux()
	on := func(pattern string, a answer) {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" /"+remote.Version+path, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
			v, err := a(r)
			p.reply(w, v, err)
		})
	}
	vol := func(r *http.Request) driver.VolumeID { return driver.VolumeID(r.PathValue("id")) }
	snap := func(r *http.Request) driver.SnapshotID { return driver.SnapshotID(r.PathValue("id")) }

	on("GET /status", func(*http.Request) (any, error) { return p.status(), nil })
	on("GET /describe", func(r *http.Request) (any, error) { return p.array.Describe(r.Context()) })
	on("GET /events", p.listEvents)

	on("GET /volumes", func(*http.Request) (any, error) { return p.volumes(), nil })
	on("POST /volumes", p.createVolume)
	on("GET /volumes/{id}", func(r *http.Request) (any, error) {
		v, err := p.array.VolumeInfo(vol(r))
		if err != nil {
			return nil, err
		}
		return p.volume(v), nil
	})
	on("DELETE /volumes/{id}", func(r *http.Request) (any, error) { return nil, p.array.DeleteVolume(r.Context(), vol(r)) })
	on("POST /volumes/{id}/resize", with(func(r *http.Request, in remote.ResizeRequest) (any, error) {
		return p.resize(r.Context(), vol(r), in.Size)
	}))
	on("POST /volumes/{id}/policy", with(func(r *http.Request, in remote.PolicyRequest) (any, error) {
		v, err := p.array.SetSnapshotPolicy(r.Context(), vol(r), embedded.SnapshotPolicy(in.Snapshots))
		if err != nil {
			return nil, err
		}
		return p.volume(v), nil
	}))
	on("POST /volumes/{id}/expose", with(func(r *http.Request, in remote.ExposeVolumeRequest) (any, error) {
		return p.exposeVolume(vol(r), in)
	}))
	on("DELETE /volumes/{id}/expose", func(r *http.Request) (any, error) { return nil, p.unexposeVolume(r.Context(), vol(r)) })
	on("POST /volumes/{id}/mirrors", with(func(r *http.Request, in remote.AddMirrorRequest) (any, error) {
		m, err := p.array.AddMirror(r.Context(), vol(r), in.Pool)
		return remote.Mirror(m), err
	}))
	on("DELETE /volumes/{id}/mirrors/{mirror}", func(r *http.Request) (any, error) {
		m, err := lun.ParseIdentity(r.PathValue("mirror"))
		if err != nil {
			return nil, driver.Errorf(driver.InvalidRequest, "mirror: %w", err)
		}
		return nil, p.array.RemoveMirror(r.Context(), vol(r), m)
	})
	on("POST /volumes/{id}/repair", func(r *http.Request) (any, error) { return p.repair(r.Context(), vol(r)) })
	on("GET /volumes/{id}/in-sync", func(r *http.Request) (any, error) { return nil, p.array.WaitInSync(r.Context(), vol(r)) })

	on("POST /resolve", with(func(r *http.Request, in driver.Disk) (any, error) { return p.resolve(r.Context(), in) }))
	on("POST /prepare", with(func(r *http.Request, in remote.PrepareRequest) (any, error) {
		return nil, p.array.Prepare(r.Context(), in.Volumes, in.Options)
	}))
	on("POST /split", with(func(r *http.Request, in remote.SplitRequest) (any, error) { return p.split(r.Context(), in) }))
	on("POST /arm", with(func(r *http.Request, in remote.ArmRequest) (any, error) {
		return nil, p.array.Arm(r.Context(), in.Tag, in.Volumes, in.AbortAfter)
	}))
	on("POST /commit", with(func(r *http.Request, in remote.TagRequest) (any, error) { return p.commit(r.Context(), in.Tag) }))
	on("POST /abort", with(func(r *http.Request, in remote.TagRequest) (any, error) {
		return nil, p.array.Abort(r.Context(), in.Tag)
	}))
	on("GET /lookup", func(r *http.Request) (any, error) { return p.array.Lookup(r.Context(), driver.Tag(r.FormValue("tag"))) })

	on("POST /volumes/{id}/scrub", with(func(r *http.Request, in remote.ScrubRequest) (any, error) { return p.startScrub(vol(r), in) }))
	on("GET /volumes/{id}/scrub", func(r *http.Request) (any, error) { return p.waitScrub(r.Context(), vol(r)) })
	on("DELETE /volumes/{id}/scrub", func(r *http.Request) (any, error) { return nil, p.array.StopScrub(vol(r)) })

	on("GET /snapshots", func(*http.Request) (any, error) { return p.snapshots(), nil })
	on("DELETE /snapshots/{id}", func(r *http.Request) (any, error) { return nil, p.array.Delete(r.Context(), snap(r)) })
	on("POST /snapshots/{id}/resync", func(r *http.Request) (any, error) { return nil, p.array.Resync(r.Context(), snap(r)) })
	on("POST /snapshots/{id}/revert", func(r *http.Request) (any, error) { return p.revert(r.Context(), snap(r)) })
	on("POST /snapshots/{id}/reverse", func(r *http.Request) (any, error) { return p.array.Reverse(r.Context(), snap(r)) })
	on("POST /snapshots/{id}/break", with(func(r *http.Request, in remote.BreakRequest) (any, error) {
		return p.breakOff(r.Context(), snap(r), in.Name)
	}))
	on("POST /volumes/{id}/changes", with(func(r *http.Request, in remote.ChangesRequest) (any, error) {
		return p.changes(r.Context(), vol(r), in)
	}))
	on("POST /snapshots/{id}/expose", with(func(r *http.Request, in driver.ExposeOptions) (any, error) {
		return p.exposeSnapshot(snap(r), in)
	}))
	on("DELETE /snapshots/{id}/expose", func(r *http.Request) (any, error) {
		return nil, p.unexpose(r.Context(), kindSnapshot, r.PathValue("id"))
	})
	mux.HandleFunc("POST /"+remote.Version+"/snapshots/{id}/open", p.handOver)
	mux.HandleFunc("POST /"+remote.Version+"/snapshots/{id}/rewrite", p.rewrite)

	on("POST /publications", with(func(r *http.Request, in remote.Publication) (any, error) { return p.publish(r.Context(), in) }))
	on("DELETE /publications", func(r *http.Request) (any, error) { return nil, p.unexpose(r.Context(), kindView, r.FormValue("name")) })

	on("GET /masks", func(*http.Request) (any, error) { return p.masks(), nil })
	on("PUT /masks", with(func(r *http.Request, in remote.MaskRequest) (any, error) { return nil, p.setMask(r.Context(), in) }))

	on("GET /initiators", func(*http.Request) (any, error) { return p.initiators(), nil })
	on("PUT /initiators/{iqn}", with(func(r *http.Request, in remote.Initiator) (any, error) {
		in.IQN = r.PathValue("iqn")
		return nil, p.setInitiator(in)
	}))
	on("DELETE /initiators/{iqn}", func(r *http.Request) (any, error) { return nil, p.removeInitiator(r.PathValue("iqn")) })

	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		p.reply(w, nil, driver.Errorf(driver.NotSupported, "%s %.80s: this data plane does not know that", r.Method, r.URL.Path))
	})
	return mux
}

// with decodes a request's body for a handler.
func with[T any](fn func(*http.Request, T) (any, error)) answer {
	return func(r *http.Request) (any, error) {
		var in T
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(&in); err != nil {
			return nil, driver.Errorf(driver.InvalidRequest, "body of the request: %w", err)
		}
		return fn(r, in)
	}
}

func (p *plane) reply(w http.ResponseWriter, v any, err error) {
	status := http.StatusOK
	if err != nil {
		k := p.array.Kind(err)
		text := strings.ReplaceAll(err.Error(), "\n", "; ") // errors that were joined
		v, status = remote.Fault{Error: text, Kind: k.String()}, statusOf(k)
	}
	b, err := json.Marshal(v)
	if err != nil {
		b, status = []byte(`{"error":"answer can't be encoded","kind":"unknown"}`), http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a client that left has no use for it
}

func statusOf(k driver.Kind) int {
	switch k {
	case driver.NotFound, driver.NotMine:
		return http.StatusNotFound
	case driver.Busy, driver.Ambiguous, driver.NeedsConsent, driver.NotSynchronized, driver.NotArmed:
		return http.StatusConflict
	case driver.NoSpace:
		return http.StatusInsufficientStorage
	case driver.NotPermitted:
		return http.StatusForbidden
	case driver.NotSupported:
		return http.StatusNotImplemented
	case driver.InvalidRequest:
		return http.StatusBadRequest
	case driver.Unreachable, driver.OutcomeUnknown:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}
