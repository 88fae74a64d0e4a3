package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
)

const (
	// readLimit is how long a client may take to send its request.
	readLimit = 10 * time.Second
	// writeLimit is how long a client may take to accept one event. A watcher
	// that hangs loses its stream; it never holds a set up.
	writeLimit = 10 * time.Second
	// stopLimit is how long answers under way may take after the server was
	// told to stop.
	stopLimit = 5 * time.Second
)

// Handler answers the paths of the package comment from s. release is what it
// says of itself.
func Handler(s orchestrator.Service, release string, log *slog.Logger) http.Handler {
	h := &handler{service: s, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) {
		h.answer(w, http.StatusOK, versionAnswer{API: Version, Release: release})
	})
	mux.HandleFunc("GET /v1/vms", h.vms)
	mux.HandleFunc("GET /v1/verdicts", h.verdicts)
	mux.HandleFunc("POST /v1/sets", h.create)
	mux.HandleFunc("GET /v1/sets", h.list)
	mux.HandleFunc("GET /v1/sets/{id}", h.onSet(s.Get))
	mux.HandleFunc("GET /v1/sets/{id}/events", h.events)
	mux.HandleFunc("POST /v1/sets/{id}/expose", h.expose)
	mux.HandleFunc("POST /v1/sets/{id}/unexpose", h.onSet(s.Unexpose))
	mux.HandleFunc("POST /v1/sets/{id}/release", h.onSet(s.Release))
	mux.HandleFunc("POST /v1/sets/{id}/recover", h.recover)
	mux.HandleFunc("POST /v1/sets/{id}/revert", h.onSet(s.Revert))
	mux.HandleFunc("POST /v1/sets/{id}/break", h.onSet(s.Break))
	mux.HandleFunc("GET /v1/sets/{id}/diff", h.diff)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		h.fail(w, nil, fmt.Errorf("%s %.200s: %w: this server speaks version %d of the interface, under /v%d/",
			r.Method, r.URL.Path, orchestrator.ErrUsage, Version, Version))
	})
	return mux
}

// Serve answers on l until ctx ends, and closes it. It returns nil when it was
// told to stop, and when it returns no handler runs any more.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readLimit,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		// Streams end when the server stops.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		if server.Shutdown(limit) != nil {
			server.Close()
		}
	}()
	err := server.Serve(l)
	cancel()
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving the control socket: %w", err)
}

type handler struct {
	service orchestrator.Service
	log     *slog.Logger
}

func (h *handler) vms(w http.ResponseWriter, r *http.Request) {
	vms, err := h.service.VMs(r.Context())
	if err != nil {
		h.fail(w, nil, err)
		return
	}
	h.answer(w, http.StatusOK, vmsAnswer{VMs: orEmpty(vms)})
}

func (h *handler) verdicts(w http.ResponseWriter, r *http.Request) {
	vs, err := h.service.Explain(r.Context(), r.URL.Query().Get("vm"))
	if err != nil {
		h.fail(w, nil, err)
		return
	}
	h.answer(w, http.StatusOK, verdictsAnswer{Verdicts: orEmpty(vs)})
}

func (h *handler) list(w http.ResponseWriter, r *http.Request) {
	sets, err := h.service.List(r.Context())
	if err != nil {
		h.fail(w, nil, err)
		return
	}
	h.answer(w, http.StatusOK, setsAnswer{Sets: orEmpty(sets)})
}

func (h *handler) create(w http.ResponseWriter, r *http.Request) {
	var req orchestrator.Request
	if err := decode(w, r, &req); err != nil {
		h.fail(w, nil, err)
		return
	}
	set, err := h.service.Create(r.Context(), req)
	h.answerSet(w, set, err)
}

func (h *handler) expose(w http.ResponseWriter, r *http.Request) {
	var req orchestrator.ExposeRequest
	if err := decode(w, r, &req); err != nil {
		h.fail(w, nil, err)
		return
	}
	set, err := h.service.Expose(r.Context(), orchestrator.SetID(r.PathValue("id")), req)
	h.answerSet(w, set, err)
}

func (h *handler) recover(w http.ResponseWriter, r *http.Request) {
	var req orchestrator.RecoverRequest
	if err := decode(w, r, &req); err != nil {
		h.fail(w, nil, err)
		return
	}
	set, err := h.service.Recover(r.Context(), orchestrator.SetID(r.PathValue("id")), req)
	h.answerSet(w, set, err)
}

func (h *handler) diff(w http.ResponseWriter, r *http.Request) {
	d, err := h.service.Diff(r.Context(), orchestrator.SetID(r.PathValue("id")), orchestrator.SetID(r.URL.Query().Get("from")))
	if err != nil {
		h.fail(w, nil, err)
		return
	}
	h.answer(w, http.StatusOK, diffAnswer{Diff: &d})
}

// onSet answers with what do says of the set in the path.
func (h *handler) onSet(do func(context.Context, orchestrator.SetID) (orchestrator.Set, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		set, err := do(r.Context(), orchestrator.SetID(r.PathValue("id")))
		h.answerSet(w, set, err)
	}
}

// events streams the set's events, one JSON object a line, and ends with the
// set or the error.
func (h *handler) events(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	control := http.NewResponseController(w)
	defer control.SetWriteDeadline(time.Time{})
	enc := json.NewEncoder(w)
	began := false
	send := func(l eventLine) {
		if !began {
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.WriteHeader(http.StatusOK)
			began = true
		}
		// The write fails on a client that hangs, and so does every later one:
		// the wait has nobody left to tell.
		control.SetWriteDeadline(time.Now().Add(writeLimit))
		if enc.Encode(l) != nil || control.Flush() != nil {
			cancel()
		}
	}
	set, err := h.service.Wait(ctx, orchestrator.SetID(r.PathValue("id")), func(e orchestrator.Event) {
		if ctx.Err() == nil {
			send(eventLine{Event: &e})
		}
	})
	switch {
	case err != nil && r.Context().Err() != nil && began:
		// The watcher left, or the server stops: the stream ends without an
		// end, which says so.
	case err != nil && !began:
		h.fail(w, some(set), err)
	case err != nil:
		_, e := describe(err)
		send(eventLine{Error: &e, Set: some(set)})
	default:
		send(eventLine{Set: &set})
	}
}

func (h *handler) answerSet(w http.ResponseWriter, set orchestrator.Set, err error) {
	if err != nil {
		h.fail(w, some(set), err)
		return
	}
	h.answer(w, http.StatusOK, setAnswer{Set: &set})
}

func (h *handler) fail(w http.ResponseWriter, set *orchestrator.Set, err error) {
	status, e := describe(err)
	h.answer(w, status, errorAnswer{Error: e, Set: set})
}

func (h *handler) answer(w http.ResponseWriter, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil { // a value that JSON can't carry: a bug, but still an answer
		h.log.Error("answer can't be encoded", "error", err)
		http.Error(w, `{"error":{"code":"internal","message":"answer can't be encoded"}}`, http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // a client that has gone needs no answer
}

// decode reads a request's body. A field that this version does not know is an
// error: leaving it out might do the opposite of what was asked.
func decode(w http.ResponseWriter, r *http.Request, into any) error {
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(readLimit))
	defer control.SetReadDeadline(time.Time{})
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); err == nil {
			err = errors.New("more than one JSON value")
		} else if errors.Is(err, io.EOF) {
			return nil
		}
	}
	return fmt.Errorf("request body: %w: %w", err, orchestrator.ErrUsage)
}

// some returns the set, or nil where the Service returned none.
func some(s orchestrator.Set) *orchestrator.Set {
	if s.ID == "" && len(s.VMs) == 0 {
		return nil
	}
	return &s
}

// orEmpty makes no items an empty list in JSON, not null.
func orEmpty[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}
