package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"

	"github.com/cleave-san/cleave/lun/process"
	"github.com/cleave-san/cleave/lun/recovery"
)

// Worker is a running view.
type Worker struct {
	Ready
	Handle Handle

	p        *child
	mu       sync.Mutex
	detached bool
}

// Start starts a worker that recovers s.Sources and serves each device of the
// view as an NBD export on s.Socket. It returns when clients can connect. ctx
// bounds the start, not the worker's life: that ends with Close, or with this
// process unless it is detached. On error nothing is left.
func Start(ctx context.Context, s Spec) (_ *Worker, err error) {
	s.defaults()
	if err := s.check(); err != nil {
		return nil, err
	}
	lf, err := newSocket(s.Socket)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.Remove(s.Socket)
		}
	}()
	extra := []*os.File{lf}
	c := config{
		Snapshots: s.Snapshots, ListenFD: 3, Limit: s.OverlayLimit,
		ReadOnly: s.ReadOnly, Detachable: s.Detachable, Identity: s.NewIdentity, NoRecovery: s.NoRecovery,
	}
	if !s.ReadOnly {
		for range s.disks() {
			f, err := overlayFile(s.OverlayDir)
			if err != nil {
				for _, f := range extra {
					f.Close()
				}
				return nil, fmt.Errorf("overlay of the recovery worker: %w", err)
			}
			c.OverlayFDs = append(c.OverlayFDs, 3+len(extra))
			extra = append(extra, f)
		}
	}
	p, err := launch(modeView, &s, c, ownID(), extra)
	if err != nil {
		return nil, err
	}
	rep, err := p.listen(ctx, s.Timeout)
	if err != nil {
		return nil, err
	}
	if rep.View == nil || len(rep.View.Exports) != s.disks() {
		p.end()
		return nil, errors.New("recovery worker's answer makes no sense: not one export for each device")
	}
	for i, e := range rep.View.Exports {
		if len(s.Places) > 0 {
			break // of these only the worker knows the sizes
		}
		// A view never changes a size, but for that of a container; who says so
		// is not to be trusted.
		if want := s.Sources[i].Device.Size(); e.Size != want && !s.Containers {
			p.end()
			return nil, fmt.Errorf("recovery worker serves %s with %d bytes, it has %d", s.Sources[i].Name, e.Size, want)
		}
	}
	id, err := process.Of(p.cmd.Process.Pid)
	select {
	case <-p.over:
		// Reaped, so what was just read may be another process's.
		p.end()
		return nil, p.death()
	default:
	}
	if err != nil {
		p.end()
		return nil, fmt.Errorf("recovery worker: %w", err)
	}
	return &Worker{Ready: *rep.View, Handle: Handle{Process: id, Socket: s.Socket, Lenders: p.lent}, p: p}, nil
}

// newSocket makes a listening socket that only this user can connect to, and
// returns it for the worker. It is at path until that is removed.
func newSocket(path string) (_ *os.File, err error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket of the recovery worker: %s has %d bytes, the path of a socket at most %d", path, len(path), maxSocketPath)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket of the recovery worker: %w", err)
	}
	l.SetUnlinkOnClose(false) // the worker goes on listening after we close ours
	defer l.Close()
	err = os.Chmod(path, 0o600)
	var f *os.File
	if err == nil {
		f, err = l.File()
	}
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("socket of the recovery worker: %w", err)
	}
	return f, nil
}

// overlayFile makes a file without a name.
func overlayFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".cleave-view-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Address is where the exports are: a unix socket.
func (w *Worker) Address() string { return w.Handle.Socket }

// Done is closed when the process has ended, for whatever reason.
func (w *Worker) Done() <-chan struct{} { return w.p.over }

// Err says why the process ended without Close. It is nil before Done.
func (w *Worker) Err() error {
	select {
	case <-w.p.over:
		return w.p.death()
	default:
		return nil
	}
}

// Detach cuts the lifeline: the worker goes on when this process ends, until
// Kill. Record Handle first. Close still works.
func (w *Worker) Detach() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.detached {
		return nil
	}
	if _, err := w.p.stdin.WriteString(wordDetach + "\n"); err != nil {
		return fmt.Errorf("recovery worker %d: detaching: %w", w.Handle.PID, err)
	}
	w.detached = true
	return nil
}

// Close kills the worker, waits for it and removes its socket. What was
// written to the view is gone.
func (w *Worker) Close() error {
	w.p.end()
	if err := os.Remove(w.Handle.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("recovery worker: %w", err)
	}
	return nil
}

// Inspect describes what is on the sources.
func Inspect(ctx context.Context, s Spec) (*recovery.Report, Found, error) {
	rep, err := once(ctx, modeInspect, s, config{})
	if err != nil {
		return nil, Found{}, err
	}
	r := new(recovery.Report)
	if err := json.Unmarshal(rep.Report, r); err != nil {
		return nil, Found{}, fmt.Errorf("recovery worker's report makes no sense: %w", err)
	}
	f, err := rep.Contents.seen()
	return r, f, err
}

// Check looks for the snapshots that a guest reported. The verdicts are in the
// order of want.
func Check(ctx context.Context, s Spec, want []recovery.Expected) ([]recovery.Verdict, error) {
	rep, err := once(ctx, modeCheck, s, config{Expected: want})
	if err != nil {
		return nil, err
	}
	if len(rep.Verdicts) != len(want) {
		return nil, fmt.Errorf("recovery worker gave %d verdicts on %d snapshots", len(rep.Verdicts), len(want))
	}
	for i, v := range rep.Verdicts {
		if v.Expected != want[i] {
			return nil, fmt.Errorf("recovery worker's verdict is on snapshot %.60q, asked was %q", v.Snapshot, want[i].Snapshot)
		}
	}
	return rep.Verdicts, nil
}

// once runs a worker for one answer.
func once(ctx context.Context, m mode, s Spec, c config) (*reply, error) {
	s.defaults()
	s.Detachable = false
	if err := s.check(); err != nil {
		return nil, err
	}
	return launchOnce(ctx, m, s, c)
}

func launchOnce(ctx context.Context, m mode, s Spec, c config) (*reply, error) {
	p, err := launch(m, &s, c, ownID(), nil)
	if err != nil {
		return nil, err
	}
	rep, err := p.listen(ctx, s.Timeout)
	if err == nil {
		p.end()
	}
	return rep, err
}

// Confined starts a worker that tries what none may do, and returns what came
// of it.
func Confined(ctx context.Context) (Confinement, error) {
	s := Spec{}
	s.defaults()
	rep, err := launchOnce(ctx, modeConfined, s, config{})
	if err != nil {
		return Confinement{}, err
	}
	if rep.Confinement == nil {
		return Confinement{}, errors.New("recovery worker's answer makes no sense: it says nothing of its confinement")
	}
	return *rep.Confinement, nil
}
