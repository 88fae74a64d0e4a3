package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var discard = slog.New(slog.DiscardHandler)

// fake is a Service that answers every call from one place.
type fake struct {
	set   orchestrator.Set
	vms   []orchestrator.VM
	err   error
	block chan struct{} // if not nil, calls wait for it or for their context
	asked func(method string, arg any)
	watch []orchestrator.Event
	after func(context.Context) // runs in Wait after the events
}

func (f *fake) call(ctx context.Context, method string, arg any) error {
	if f.asked != nil {
		f.asked(method, arg)
	}
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", method, ctx.Err())
		}
	}
	return f.err
}

func (f *fake) VMs(ctx context.Context) ([]orchestrator.VM, error) {
	return f.vms, f.call(ctx, "VMs", nil)
}

func (f *fake) Explain(ctx context.Context, name string) ([]orchestrator.Verdict, error) {
	return []orchestrator.Verdict{{VM: name}}, f.call(ctx, "Explain", name)
}

func (f *fake) Create(ctx context.Context, r orchestrator.Request) (orchestrator.Set, error) {
	return f.set, f.call(ctx, "Create", r)
}

func (f *fake) Get(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return f.set, f.call(ctx, "Get", id)
}

func (f *fake) List(ctx context.Context) ([]orchestrator.Set, error) {
	return []orchestrator.Set{f.set}, f.call(ctx, "List", nil)
}

func (f *fake) Wait(ctx context.Context, id orchestrator.SetID, watch func(orchestrator.Event)) (orchestrator.Set, error) {
	for _, e := range f.watch {
		watch(e)
	}
	if f.after != nil {
		f.after(ctx)
	}
	return f.set, f.call(ctx, "Wait", id)
}

func (f *fake) Expose(ctx context.Context, id orchestrator.SetID, r orchestrator.ExposeRequest) (orchestrator.Set, error) {
	return f.set, f.call(ctx, "Expose", r)
}

func (f *fake) Unexpose(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return f.set, f.call(ctx, "Unexpose", id)
}

func (f *fake) Release(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return f.set, f.call(ctx, "Release", id)
}

func (f *fake) Recover(ctx context.Context, id orchestrator.SetID, r orchestrator.RecoverRequest) (orchestrator.Set, error) {
	return f.set, f.call(ctx, "Recover", r)
}

func (f *fake) Revert(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return f.set, f.call(ctx, "Revert", id)
}

func (f *fake) Break(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	return f.set, f.call(ctx, "Break", id)
}

func (f *fake) Diff(ctx context.Context, id, from orchestrator.SetID) (orchestrator.Diff, error) {
	return diffOf(id, from), f.call(ctx, "Diff", []orchestrator.SetID{id, from})
}

func diffOf(id, from orchestrator.SetID) orchestrator.Diff {
	return orchestrator.Diff{Version: 1, From: from, To: id, Disks: []orchestrator.DiskDiff{
		{VM: "db", Granularity: 1 << 16, Total: 1 << 16, Regions: []orchestrator.Region{{Offset: 1 << 40, Length: 1 << 16}}},
	}}
}

// serve starts a server over f and returns its client and a function that
// stops the server and waits for its end.
func serve(t *testing.T, f orchestrator.Service) (*Client, func()) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "run", "control.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, Handler(f, "v0.0.0-test", discard), discard) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	c := NewClient(socket)
	t.Cleanup(func() { c.Close(); stop() })
	return c, stop
}

var sample = orchestrator.Set{
	Version: 1, ID: "set-0123456789abcdef", State: orchestrator.StateReady,
	Request: orchestrator.Request{VMs: []string{"db"}, Level: orchestrator.LevelApplication, GuestLimit: time.Minute},
	Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
	VMs: []orchestrator.VMResult{{Name: "db", Asked: orchestrator.LevelApplication, Reached: orchestrator.LevelCrash,
		Disks: []orchestrator.DiskResult{{Device: "vda", Volume: "db"}}}},
}

// calls are all methods of a Service, for tests that treat them alike.
var calls = map[string]func(context.Context, orchestrator.Service) (orchestrator.Set, error){
	"VMs": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		_, err := s.VMs(ctx)
		return orchestrator.Set{}, err
	},
	"Explain": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		_, err := s.Explain(ctx, "db & co")
		return orchestrator.Set{}, err
	},
	"List": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		_, err := s.List(ctx)
		return orchestrator.Set{}, err
	},
	"Create": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		return s.Create(ctx, sample.Request)
	},
	"Get": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		return s.Get(ctx, sample.ID)
	},
	"Wait": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		return s.Wait(ctx, sample.ID, nil)
	},
	"Expose": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		return s.Expose(ctx, sample.ID, orchestrator.ExposeRequest{Initiators: []string{"iqn.2026-01.a:b"}, Writable: true})
	},
	"Unexpose": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		return s.Unexpose(ctx, sample.ID)
	},
	"Release": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		return s.Release(ctx, sample.ID)
	},
	"Recover": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		return s.Recover(ctx, sample.ID, orchestrator.RecoverRequest{DiscardOthers: true})
	},
	"Revert": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		return s.Revert(ctx, sample.ID)
	},
	"Break": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		return s.Break(ctx, sample.ID)
	},
	"Diff": func(ctx context.Context, s orchestrator.Service) (orchestrator.Set, error) {
		d, err := s.Diff(ctx, sample.ID, "set-00000000000000ab")
		if err == nil && !cmp.Equal(d, diffOf(sample.ID, "set-00000000000000ab")) {
			err = fmt.Errorf("diff %+v", d)
		}
		return orchestrator.Set{}, err
	},
}

func TestCallsArriveAndAnswersReturn(t *testing.T) {
	type asked struct {
		Method string
		Arg    any
	}
	var got asked
	f := &fake{set: sample, vms: []orchestrator.VM{{Name: "db", Disks: []orchestrator.Disk{{Size: 1 << 40}}}},
		asked: func(m string, a any) { got = asked{m, a} }}
	c, _ := serve(t, f)
	args := map[string]any{
		"Explain": "db & co", "Create": sample.Request,
		"Get": sample.ID, "Wait": sample.ID, "Unexpose": sample.ID, "Release": sample.ID,
		"Recover": orchestrator.RecoverRequest{DiscardOthers: true},
		"Revert":  sample.ID, "Break": sample.ID, "Diff": []orchestrator.SetID{sample.ID, "set-00000000000000ab"},
		"Expose": orchestrator.ExposeRequest{Initiators: []string{"iqn.2026-01.a:b"}, Writable: true},
	}
	for name, call := range calls {
		set, err := call(t.Context(), c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(asked{name, args[name]}, got); d != "" {
			t.Errorf("%s arrived differently (-sent +arrived):\n%s", name, d)
		}
		switch name {
		case "VMs", "Explain", "List", "Diff":
			continue
		}
		if d := cmp.Diff(sample, set); d != "" {
			t.Errorf("%s returned differently:\n%s", name, d)
		}
	}
	vms, err := c.VMs(t.Context())
	if err != nil || cmp.Diff(f.vms, vms) != "" {
		t.Errorf("VMs: %v, %v", vms, err)
	}
	if v, err := c.Version(t.Context()); v != "v0.0.0-test" || err != nil {
		t.Errorf("Version: %q, %v", v, err)
	}
}

// hinted is an error of a Service that says what to try next.
type hinted struct{ error }

func (h hinted) Unwrap() error { return h.error }
func (h hinted) Hint() string  { return "try the other one" }

func TestEveryErrorKeepsItsIdentity(t *testing.T) {
	all := []error{
		orchestrator.ErrNotFound, orchestrator.ErrBusy, orchestrator.ErrUsage, orchestrator.ErrLevel,
		orchestrator.ErrTimeout, orchestrator.ErrUnreachable, orchestrator.ErrNotPermitted, errors.New("disk on fire"),
	}
	f := &fake{set: sample}
	c, _ := serve(t, f)
	for i, want := range all {
		f.err = hinted{fmt.Errorf("volume %q:\nsecond line: %w", "db", want)}
		for name, call := range calls {
			set, err := call(t.Context(), c)
			if err == nil {
				t.Fatalf("%s: no error for %v", name, want)
			}
			for j, other := range all[:len(all)-1] {
				if errors.Is(err, other) != (i == j) {
					t.Errorf("%s: %v: errors.Is(err, %v) = %v", name, err, other, i != j)
				}
			}
			if got, want := err.Error(), `volume "db":; second line: `+want.Error(); got != want {
				t.Errorf("%s: text %q, want %q", name, got, want)
			}
			var h interface{ Hint() string }
			if !errors.As(err, &h) || h.Hint() != "try the other one" {
				t.Errorf("%s: hint lost", name)
			}
			switch name {
			case "VMs", "Explain", "List", "Diff":
			default:
				if set.ID != sample.ID {
					t.Errorf("%s: the set beside the error is lost", name)
				}
			}
		}
	}
}

func TestArrayErrorKeepsItsKind(t *testing.T) {
	f := &fake{err: fmt.Errorf("split: %w", driver.Errorf(driver.NoSpace, "pool is full"))}
	c, _ := serve(t, f)
	_, err := c.Get(t.Context(), "x")
	var e *driver.Error
	if !errors.As(err, &e) || e.Kind != driver.NoSpace {
		t.Errorf("got %v, want kind %v", err, driver.NoSpace)
	}
}

func TestDeadlineOnTheServerIsATimeout(t *testing.T) {
	c, _ := serve(t, &fake{err: fmt.Errorf("asking: %w", context.DeadlineExceeded)})
	if _, err := c.VMs(t.Context()); !errors.Is(err, orchestrator.ErrTimeout) {
		t.Errorf("got %v, want %v", err, orchestrator.ErrTimeout)
	}
}

func TestCancelReachesTheServer(t *testing.T) {
	for name, call := range calls {
		started := make(chan struct{})
		f := &fake{block: make(chan struct{}), asked: func(string, any) { close(started) }}
		c, stop := serve(t, f)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-started; cancel() }()
		if _, err := call(ctx, c); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want %v", name, err, context.Canceled)
		}
		stop() // returns only when the handler has
	}
}

func TestWaitStreamsEvents(t *testing.T) {
	want := []orchestrator.Event{
		{Set: sample.ID, State: orchestrator.StatePlanned, Text: "planned"},
		{Set: sample.ID, State: orchestrator.StateSplit, Text: "split in 4 ms"},
	}
	seen := make(chan orchestrator.Event, len(want))
	// The set ends only after the client has seen the events: they are not
	// kept back until the end.
	f := &fake{set: sample, watch: want, after: func(ctx context.Context) {
		for i := range want {
			select {
			case e := <-seen:
				if d := cmp.Diff(want[i], e); d != "" {
					t.Errorf("event %d:\n%s", i, d)
				}
			case <-ctx.Done():
				t.Error("the client left")
			}
		}
	}}
	c, _ := serve(t, f)
	set, err := c.Wait(t.Context(), sample.ID, func(e orchestrator.Event) { seen <- e })
	if err != nil || set.ID != sample.ID {
		t.Errorf("Wait: %v, %v", set.ID, err)
	}
	f.err = fmt.Errorf("%s: %w", sample.ID, orchestrator.ErrLevel)
	set, err = c.Wait(t.Context(), sample.ID, func(e orchestrator.Event) { seen <- e })
	if !errors.Is(err, orchestrator.ErrLevel) || set.ID != sample.ID {
		t.Errorf("Wait with an error after events: %v, %v", set.ID, err)
	}
}

func TestServerStopsInTheMiddleOfAWait(t *testing.T) {
	watching := make(chan struct{})
	f := &fake{watch: []orchestrator.Event{{Text: "on its way"}}, block: make(chan struct{}),
		asked: func(string, any) { close(watching) }}
	c, stop := serve(t, f)
	go func() { <-watching; stop() }()
	if _, err := c.Wait(t.Context(), sample.ID, nil); !errors.Is(err, orchestrator.ErrUnreachable) {
		t.Errorf("got %v, want %v", err, orchestrator.ErrUnreachable)
	}
}

func TestNobodyAtTheSocket(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for _, socket := range []string{dead, filepath.Join(dir, "none.sock")} {
		c := NewClient(socket)
		_, err := c.VMs(t.Context())
		if !errors.Is(err, orchestrator.ErrUnreachable) || errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), socket) {
			t.Errorf("%s: got %v", socket, err)
		}
	}
}

func TestBadRequests(t *testing.T) {
	c, _ := serve(t, &fake{asked: func(m string, _ any) { t.Errorf("%s was called", m) }})
	for _, tt := range []struct{ method, path, body, want string }{
		{"POST", "/v1/sets", `{"vms":["a"],"levle":"crash"}`, "levle"}, //nolint:misspell // that is the case
		{"POST", "/v1/sets", `{"vms":["a"]} {}`, "more than one"},
		{"POST", "/v1/sets", `{"vms":["a"],"level":"best"}`, "level"},
		{"POST", "/v1/sets", ``, "EOF"},
		{"POST", "/v1/sets", `{"note":"` + strings.Repeat("x", maxRequest) + `"}`, "too large"},
		{"GET", "/v2/sets", ``, "version 1"},
		{"PUT", "/v1/sets", ``, "version 1"},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), tt.method, "http://cleave"+tt.path, strings.NewReader(tt.body))
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, err = answeredError(resp)
		resp.Body.Close()
		if !errors.Is(err, orchestrator.ErrUsage) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s %.40s: got %v, want %q", tt.method, tt.path, tt.body, err, tt.want)
		}
	}
}

// hostile answers with whatever it was given.
func hostile(t *testing.T, answer string) *Client {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			c.Read(buf)
			c.Write([]byte(answer))
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return NewClient(socket)
}

func TestAnswersThatAreNone(t *testing.T) {
	for _, answer := range []string{
		"", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n{", "HTTP/1.1 500 Oh\r\n\r\nhello",
		"HTTP/1.1 404 Not Found\r\n\r\n{}", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 200 OK\r\n\r\n{\"event\":{}}\n",
	} {
		c := hostile(t, answer)
		for name, call := range calls {
			if _, err := call(t.Context(), c); err == nil {
				t.Errorf("%s: answer %q is taken for success", name, answer)
			} else if strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: error of several lines: %q", name, err)
			}
		}
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "c.sock")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	probed := make(chan struct{})
	go func(l net.Listener) { // answers the probe of the second Listen
		defer close(probed)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}(l)
	if _, err := Listen(socket); !errors.Is(err, orchestrator.ErrBusy) {
		t.Errorf("a second server: %v, want %v", err, orchestrator.ErrBusy)
	}
	l.Close()
	<-probed
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left after Close: %v", left)
	}

	// What a killed server left is replaced.
	dead, _ := net.Listen("unix", socket)
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	l, err = Listen(socket)
	if err != nil {
		t.Fatalf("over a dead socket: %v", err)
	}
	l.Close()

	// What is no socket is not touched.
	os.WriteFile(socket, []byte("data"), 0o600)
	if _, err := Listen(socket); err == nil {
		t.Error("took the place of a file")
	}
	if b, _ := os.ReadFile(socket); string(b) != "data" {
		t.Error("the file was touched")
	}
}
