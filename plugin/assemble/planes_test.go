package assemble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/plugin/api"
	"github.com/cleave-san/cleave/plugin/cli"
)

// planes are a data plane and a control plane in this process, over one VM
// whose QEMU does not run.
type planes struct {
	dir     string
	config  string
	control *api.Client
	storage cli.Storage
}

func start(t *testing.T) *planes {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	portal := l.Addr().String()
	l.Close()
	p := &planes{dir: dir, config: filepath.Join(dir, "cleave.yaml")}
	text := fmt.Sprintf("state: st\nsocket: c.sock\narrays: [{name: main, type: embedded}]\n"+
		"writers: [{type: qemu, vms: [{name: db, qmp: db.qmp}]}]\n"+
		"dataPlane: {socket: a.sock, state: array, portals: ['%s'], pools: {a: pa, b: pb}}\n", portal)
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	run := func(what string, f func(context.Context) error) {
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := f(ctx); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
		t.Cleanup(func() { cancel(); wg.Wait() })
	}
	run("data plane", func(ctx context.Context) error {
		return Array(ctx, cli.ArrayOptions{Config: p.config}, none, log)
	})
	run("control plane", func(ctx context.Context) error {
		return Serve(ctx, cli.ServeOptions{Config: p.config}, "v0-test", none, log)
	})
	p.storage = storage{remote.New(filepath.Join(dir, "a.sock"))}
	p.control = api.NewClient(filepath.Join(dir, "c.sock"))
	t.Cleanup(func() { p.control.Close(); p.storage.Close() })
	eventually(t, "data plane", func() error { _, err := p.storage.Pools(t.Context()); return err })
	eventually(t, "control plane", func() error { _, err := p.control.Version(t.Context()); return err })
	return p
}

// eventually waits until f succeeds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func TestControlPlaneFromConfiguration(t *testing.T) {
	p := start(t)
	ctx := t.Context()
	vms, err := p.control.VMs(ctx)
	if err != nil || len(vms) != 1 || vms[0].Name != "db" || vms[0].Problem == "" {
		t.Errorf("VMs: %+v, %v; want db with a problem", vms, err)
	}
	if _, err := p.control.Create(ctx, orchestrator.Request{VMs: []string{"nobody"}, Level: orchestrator.LevelCrash}); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("a set over an unknown VM: %v", err)
	}
	if _, err := p.control.Create(ctx, orchestrator.Request{VMs: []string{"db"}, Level: orchestrator.LevelCrash}); !errors.Is(err, orchestrator.ErrLevel) {
		t.Errorf("a set over a VM that is away: %v", err)
	}
	// A second control plane ends before it has touched anything.
	err = Serve(ctx, cli.ServeOptions{Config: p.config}, "", none, slog.New(slog.DiscardHandler))
	if !errors.Is(err, orchestrator.ErrBusy) {
		t.Errorf("a second control plane: %v", err)
	}
	for file, want := range map[string]os.FileMode{"st/journal.db": 0o600, "c.sock": 0o600, "st": 0o700, "st/views": 0o700} {
		if info, err := os.Stat(filepath.Join(p.dir, file)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %v", file, info.Mode(), err, want)
		}
	}
}

func TestStorageAdministersTheDataPlane(t *testing.T) {
	p := start(t)
	ctx, s := t.Context(), p.storage
	v, err := s.CreateVolume(ctx, "db", 8<<20, []string{"a", "b"}, "mirror")
	if err != nil {
		t.Fatal(err)
	}
	if v.Name != "db" || v.Size != 8<<20 || len(v.Mirrors) != 2 || v.Wanted != 2 || v.State != string(driver.Synchronized) || v.LUN != nil {
		t.Errorf("new volume: %+v", v)
	}
	secret := filepath.Join(p.dir, "host.secret")
	if err := os.WriteFile(secret, []byte("correct-horse-battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const host = "iqn.2026-01.test:host"
	if err := s.AddInitiator(ctx, cli.Initiator{IQN: host, User: "host"}, secret, ""); err != nil {
		t.Fatal(err)
	}
	v, err = s.ExposeVolume(ctx, "db", []string{host}, false)
	if err != nil || v.LUN == nil || !slices.Equal(v.LUN.Initiators, []string{host}) || len(v.LUN.Portals) != 1 || v.LUN.ReadOnly {
		t.Errorf("exposed: %+v, %v", v.LUN, err)
	}
	is, err := s.Initiators(ctx)
	if err != nil || len(is) != 1 || is[0].IQN != host || is[0].User != "host" || len(is[0].LUNs) != 1 {
		t.Errorf("initiators: %+v, %v", is, err)
	}
	if err := s.DeleteVolume(ctx, "db"); arrays.KindOf(err) != driver.Busy {
		t.Errorf("deleting an exposed volume: %v", err)
	}
	if v, err = s.ResizeVolume(ctx, "db", 16<<20); err != nil || v.Size != 16<<20 {
		t.Errorf("resized: %d, %v", v.Size, err)
	}
	if v, err = s.AddMirror(ctx, "db", "a"); err != nil || len(v.Mirrors) != 3 {
		t.Errorf("another mirror: %+v, %v", v.Mirrors, err)
	}
	if v, err = s.RemoveMirror(ctx, "db", v.Mirrors[2].ID); err != nil || len(v.Mirrors) != 2 {
		t.Errorf("a mirror less: %+v, %v", v.Mirrors, err)
	}
	if _, err = s.RemoveMirror(ctx, "db", "m1"); arrays.KindOf(err) != driver.InvalidRequest {
		t.Errorf("a mirror without an ID: %v", err)
	}
	if err := s.UnexposeVolume(ctx, "db"); err != nil {
		t.Error(err)
	}
	if err := s.DeleteVolume(ctx, "db"); err != nil {
		t.Error(err)
	}
	if err := s.DeleteVolume(ctx, "db"); arrays.KindOf(err) != driver.NotFound {
		t.Errorf("deleting what is not there: %v", err)
	}
	if err := s.RemoveInitiator(ctx, host); err != nil {
		t.Error(err)
	}
	if vs, err := s.Volumes(ctx); err != nil || len(vs) != 0 {
		t.Errorf("volumes left: %v, %v", vs, err)
	}
}

func TestPolicyFillsInWhatIsOpen(t *testing.T) {
	var got orchestrator.Request
	s := withPolicy{Service: recorder{got: &got}, policy: PolicyConfig{Attempts: 5, Lease: time.Hour, PauseLimit: time.Second, GuestLimit: time.Minute}}
	s.Create(t.Context(), orchestrator.Request{Lease: 2 * time.Hour})
	if got.Lease != 2*time.Hour || got.Attempts != 5 || got.PauseLimit != time.Second || got.GuestLimit != time.Minute {
		t.Errorf("request: %+v", got)
	}
}

type recorder struct {
	orchestrator.Service
	got *orchestrator.Request
}

func (r recorder) Create(_ context.Context, q orchestrator.Request) (orchestrator.Set, error) {
	*r.got = q
	return orchestrator.Set{}, nil
}

func TestHiddenCommandsOnly(t *testing.T) {
	for _, args := range [][]string{nil, {"vm", "list"}, {"--help"}, {"workers"}} {
		if _, hidden := Hidden(args, nil, nil, nil); hidden {
			t.Errorf("%q is taken for a hidden command", args)
		}
	}
	var out, errs bytes.Buffer
	if code, hidden := Hidden([]string{"worker"}, bytes.NewReader(nil), &out, &errs); !hidden || code == 0 {
		t.Errorf("worker without its descriptors: status %d, hidden %v", code, hidden)
	}
}
