package assemble

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/recovery/worker"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/engine"
)

// views is an engine.Recoverer by worker processes. A view outlives the control
// plane: its worker's handle is in a file before the worker is let go, so that
// another process can end it.
type views struct {
	dir    string // of handles and sockets, private
	config RecoveryConfig
}

var _ engine.Recoverer = (*views)(nil)

func newViews(state string, c RecoveryConfig) (*views, error) {
	v := &views{dir: filepath.Join(state, "views"), config: c}
	for _, dir := range []string{v.dir, c.Overlay} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("directory of recovered views: %w", err)
		}
	}
	if p := v.path("any", ".sock"); len(p) > maxSocket {
		return nil, usage("state: %s is too long: the sockets of views in it would have %d bytes, at most %d", state, len(p), maxSocket)
	}
	return v, nil
}

// path is a file of the view of that name. Names are of any length and hold
// slashes; what they are hashed to does not.
func (v *views) path(name, ext string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(v.dir, hex.EncodeToString(sum[:8])+ext)
}

func (v *views) spec(disks engine.Disks) worker.Spec {
	s := worker.Spec{OverlayDir: v.config.Overlay, OverlayLimit: v.config.OverlayLimit, Limits: worker.Limits{Memory: v.config.Memory}}
	for i, d := range disks.Devices {
		s.Sources = append(s.Sources, worker.Source{Name: fmt.Sprintf("disk %d", i), Device: d})
	}
	for _, p := range disks.Places {
		s.Places = append(s.Places, open.Place{Name: p.Name, On: p.On, Volume: p.Volume, Path: p.Path, Format: p.Format})
	}
	return s
}

// Containers implements engine.Recoverer.
func (v *views) Containers(ctx context.Context, disks engine.Disks) ([]orchestrator.Container, error) {
	found, err := worker.Containers(ctx, v.spec(disks))
	if err != nil {
		return nil, err
	}
	out := make([]orchestrator.Container, len(found))
	for i, c := range found {
		out[i] = orchestrator.Container{Size: c.Size, Dirty: c.Dirty, Warnings: c.Warnings}
		if c.Problem != nil {
			out[i].Problem = c.Problem.Error()
		}
	}
	return out, nil
}

// Check implements engine.Recoverer.
func (v *views) Check(ctx context.Context, disks engine.Disks, want []engine.InGuest) ([]string, error) {
	expected := make([]recovery.Expected, len(want))
	for i, w := range want {
		expected[i] = recovery.Expected{Volume: w.Volume, Snapshot: w.Snapshot}
	}
	verdicts, err := worker.Check(ctx, v.spec(disks), expected)
	if err != nil {
		return nil, err
	}
	whys := make([]string, len(verdicts))
	for i, x := range verdicts {
		switch {
		case x.OK:
		case x.Reason == "":
			whys[i] = "it is not valid"
		default:
			whys[i] = x.Reason
		}
	}
	return whys, nil
}

// handle is what is kept of a view's worker.
type handle struct {
	Name   string        `json:"name"`
	Worker worker.Handle `json:"worker"`
}

// Start implements engine.Recoverer.
func (v *views) Start(ctx context.Context, name string, disks engine.Disks, want []engine.InGuest, identity string) (_ engine.View, err error) {
	// Whatever an earlier attempt left under this name.
	if err := v.Stop(ctx, name); err != nil {
		return engine.View{}, err
	}
	s := v.spec(disks)
	s.Socket, s.Detachable = v.path(name, ".sock"), true
	s.NoRecovery, s.NewIdentity = len(want) == 0, identity
	for _, w := range want {
		s.Snapshots = append(s.Snapshots, w.Snapshot)
	}
	log, err := os.OpenFile(v.path(name, ".log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return engine.View{}, fmt.Errorf("log of a recovered view: %w", err)
	}
	defer log.Close()
	s.Stderr = log
	w, err := worker.Start(ctx, s)
	if err != nil {
		return engine.View{}, errors.Join(err, v.forget(name))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close(), v.forget(name))
		}
	}()
	if err := v.record(name, handle{Name: name, Worker: w.Handle}); err != nil {
		return engine.View{}, err
	}
	if err := w.Detach(); err != nil {
		return engine.View{}, err
	}
	view := engine.View{Socket: w.Address()}
	for _, e := range w.Exports {
		view.Exports = append(view.Exports, e.Name)
	}
	return view, nil
}

// record writes the handle of a view; it is on the disk when record returns.
func (v *views) record(name string, h handle) error {
	b, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("recording a recovered view: %w", err)
	}
	draft := v.path(name, ".new")
	f, err := os.OpenFile(draft, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("recording a recovered view: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(draft, v.path(name, ".json"))
	}
	if err == nil {
		err = syncDir(v.dir)
	}
	if err != nil {
		return fmt.Errorf("recording a recovered view: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Stop implements engine.Recoverer.
func (v *views) Stop(ctx context.Context, name string) error {
	b, err := os.ReadFile(v.path(name, ".json"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// No worker was let go under this name, and one that was not has died
		// with its launcher. Its socket may be there.
		return v.forget(name)
	case err != nil:
		return fmt.Errorf("record of a recovered view: %w", err)
	}
	var h handle
	if err := json.Unmarshal(b, &h); err != nil || h.Name != name {
		return fmt.Errorf("record of a recovered view: %s is damaged; remove it when no process listens on %s",
			v.path(name, ".json"), v.path(name, ".sock"))
	}
	if err := worker.Kill(ctx, h.Worker); err != nil {
		return fmt.Errorf("ending the view of %s: %w", name, err)
	}
	return v.forget(name)
}

// forget removes the files of a view whose worker is gone; the record last.
func (v *views) forget(name string) error {
	for _, ext := range []string{".sock", ".log", ".new", ".json"} {
		if err := os.Remove(v.path(name, ext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("recovered view: %w", err)
		}
	}
	return nil
}
