// Package qemu is the host writer for plain QEMU virtual machines: those that
// somebody (a script, systemd, another manager) starts with a QMP socket and a
// guest agent's socket, and that a configuration names.
//
// Facts come from QMP alone: what QEMU does not say is left empty and reported
// as the VM's Problem, never guessed from a command line. Two sockets per VM are
// used, each of which serves one client at a time, so both are held only while
// a question is under way or a VM is paused:
//
//	QMP     list, classify (blocks.go); a pause belongs to the guard process
//	agent   who the guest is, and the guest step (package requester)
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/guest/requester"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
	"github.com/cleave-san/cleave/orchestrator/writer"
	"github.com/cleave-san/cleave/orchestrator/writer/guard"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/agent"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/qmp"
)

// Config names the VMs that a Writer speaks for.
type Config struct {
	VMs []VM `koanf:"vms" json:"vms"`
	// Executable answers the hidden command guard.Command with guard.Main.
	// Default: this program.
	Executable string `koanf:"executable" json:"executable,omitempty"`
}

// VM is one QEMU process.
type VM struct {
	Name string `koanf:"name" json:"name"`
	// QMP is the path of a QMP socket that nobody else uses
	// (-qmp unix:PATH,server=on,wait=off).
	QMP string `koanf:"qmp" json:"qmp"`
	// Agent is the path of the guest agent's socket; "" if the VM has none.
	Agent string `koanf:"agent" json:"agent,omitempty"`
	// Config is the file that describes the VM, kept with its backups; "" if
	// there is none.
	Config string `koanf:"config" json:"config,omitempty"`
}

// How long the parts of List may take for one VM, all VMs at once.
const (
	listLimit = 10 * time.Second // QMP
	infoLimit = 5 * time.Second  // is there an agent at all
	// probeLimit is for a script of a hundred small programs in a guest that
	// may be software-emulated and busy.
	probeLimit = 45 * time.Second
)

// Writer is a writer.Writer.
type Writer struct {
	executable string
	machines   []*machine
	log        *slog.Logger
}

var _ writer.Writer = (*Writer)(nil)

// machine is one VM with what must not be used twice at once.
type machine struct {
	VM
	agent *agent.Client
	// qmp holds a token while the QMP socket is in use by us: for a question,
	// or for as long as a guard holds it.
	qmp chan struct{}

	mu   sync.Mutex
	hold *hold            // from the beginning of a pause until its token is back
	last *orchestrator.VM // what QMP said last, for List while the guard has the socket
	free time.Time        // when the latest pause gave the socket back
}

// hold is a pause from its beginning to its end.
type hold struct {
	stands chan struct{} // closed when the VM stands
	paused *guard.Paused // valid once stands is closed
	over   chan struct{} // closed when the socket is free again
}

// holds says whether a guard holds the VM now.
func (h *hold) holds() bool {
	if h == nil {
		return false
	}
	select {
	case <-h.stands:
	default:
		return false
	}
	select {
	case <-h.paused.Done():
		return false
	default: // the guard of a VM that did not run ends by itself, at once
		return h.paused.Was() == orchestrator.Running
	}
}

// ending says whether nothing of the pause is left but giving back the token.
func (h *hold) ending() bool {
	select {
	case <-h.stands:
		return !h.holds()
	default:
		return false
	}
}

// New checks a configuration and returns its writer; it connects to nothing.
func New(c Config, log *slog.Logger) (*Writer, error) {
	w := &Writer{executable: c.Executable, log: log}
	if w.executable == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("qemu: which program is the guard: %w", err)
		}
		w.executable = exe
	}
	names, sockets := map[string]bool{}, map[string]string{}
	for _, v := range c.VMs {
		switch {
		case v.Name == "" || v.QMP == "":
			return nil, fmt.Errorf("qemu: VM %q: it needs a name and the path of a QMP socket", v.Name)
		case names[v.Name]:
			return nil, fmt.Errorf("qemu: VM %q is named twice", v.Name)
		}
		names[v.Name] = true
		for _, s := range []string{v.QMP, v.Agent} {
			if s == "" {
				continue
			}
			if other, used := sockets[s]; used {
				return nil, fmt.Errorf("qemu: VM %q: socket %s is given for VM %q too", v.Name, s, other)
			}
			sockets[s] = v.Name
		}
		m := &machine{VM: v, qmp: make(chan struct{}, 1)}
		if v.Agent != "" {
			m.agent = agent.New(v.Agent)
		}
		w.machines = append(w.machines, m)
	}
	return w, nil
}

// Name is "qemu".
func (w *Writer) Name() string { return "qemu" }

// List asks all VMs at once.
func (w *Writer) List(ctx context.Context) ([]orchestrator.VM, error) {
	vms := make([]orchestrator.VM, len(w.machines))
	var wg sync.WaitGroup
	for i, m := range w.machines {
		wg.Go(func() { vms[i] = m.describe(ctx) })
	}
	wg.Wait()
	return vms, ctx.Err()
}

// Snapshot is part of writer.Writer.
func (w *Writer) Snapshot(ctx context.Context, vm string, set orchestrator.SetID, o writer.GuestOptions) (wire.Report, error) {
	m, err := w.guest(ctx, vm)
	if err != nil {
		return wire.Report{}, err
	}
	info, err := m.agent.Info(ctx)
	if err != nil {
		return wire.Report{}, fmt.Errorf("VM %s: %w", vm, err)
	}
	report, err := requester.Snapshot(ctx, m.agent, agentName(info), set, o)
	if err != nil {
		return report, fmt.Errorf("VM %s: %w", vm, err)
	}
	return report, nil
}

// Drop is part of writer.Writer.
func (w *Writer) Drop(ctx context.Context, vm string, set orchestrator.SetID) error {
	m, err := w.guest(ctx, vm)
	if err != nil {
		return err
	}
	if err := requester.Drop(ctx, m.agent, set); err != nil {
		return fmt.Errorf("VM %s: %w", vm, err)
	}
	return nil
}

// Pause is part of writer.Writer.
func (w *Writer) Pause(ctx context.Context, vm string, limit time.Duration) (writer.Pause, error) {
	m, err := w.find(vm)
	if err != nil {
		return nil, err
	}
	h, err := m.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("VM %s: %w", vm, err)
	}
	p, err := guard.Pause(ctx, w.executable, m.QMP, limit)
	if err != nil {
		m.end(h)
		return nil, fmt.Errorf("VM %s: %w", vm, err)
	}
	h.paused = p
	close(h.stands)
	go func() {
		<-p.Done() // the guard has let go of the socket
		m.end(h)
	}()
	w.log.Debug("paused by a guard", "vm", vm, "limit", limit, "was", p.Was())
	return p, nil
}

// begin takes the socket for a pause. A pause that is over in all but giving
// back its token is waited for: whoever resumed may pause again at once.
func (m *machine) begin(ctx context.Context) (*hold, error) {
	h := &hold{stands: make(chan struct{}), over: make(chan struct{})}
	for {
		m.mu.Lock()
		other := m.hold
		if other == nil {
			m.hold = h
		}
		m.mu.Unlock()
		if other == nil {
			break
		}
		if !other.ending() {
			return nil, fmt.Errorf("another pause is under way: %w", orchestrator.ErrBusy)
		}
		select {
		case <-other.over:
		case <-ctx.Done():
			return nil, fmt.Errorf("QMP: %w", context.Cause(ctx))
		}
	}
	select {
	case m.qmp <- struct{}{}:
		return h, nil
	case <-ctx.Done():
		m.mu.Lock()
		m.hold = nil
		m.mu.Unlock()
		return nil, fmt.Errorf("QMP: %w", context.Cause(ctx))
	}
}

// end gives the socket back.
func (m *machine) end(h *hold) {
	m.mu.Lock()
	m.hold, m.free = nil, time.Now()
	m.mu.Unlock()
	<-m.qmp
	close(h.over)
}

func (w *Writer) find(vm string) (*machine, error) {
	i := slices.IndexFunc(w.machines, func(m *machine) bool { return m.Name == vm })
	if i < 0 {
		return nil, fmt.Errorf("VM %.60q is not in the configuration of the QEMU writer: %w", vm, orchestrator.ErrNotFound)
	}
	return w.machines[i], nil
}

// guest finds a VM whose guest can be asked: one that runs and has an agent.
func (w *Writer) guest(ctx context.Context, vm string) (*machine, error) {
	m, err := w.find(vm)
	if err != nil {
		return nil, err
	}
	if m.agent == nil {
		return nil, fmt.Errorf("VM %s has no guest agent: its configuration names no agent socket", vm)
	}
	var s qmp.Status
	err = m.ask(ctx, func(ctx context.Context, c *qmp.Conn) (err error) {
		s, err = c.QueryStatus(ctx)
		return err
	})
	switch {
	case errors.Is(err, qmp.ErrAbsent):
		return nil, fmt.Errorf("VM %s: %w (%w)", vm, writer.ErrGone, err)
	case err != nil:
		return nil, fmt.Errorf("VM %s: %w", vm, err)
	case !s.Running:
		return nil, fmt.Errorf("VM %s is %s: %w", vm, s.Status, writer.ErrGone)
	}
	return m, nil
}

// lockQMP takes the QMP socket for this process; <-m.qmp gives it back. While a
// guard holds the VM that is orchestrator.ErrBusy at once; one that has let it run
// gives the socket back in a moment.
func (m *machine) lockQMP(ctx context.Context) error {
	m.mu.Lock()
	h := m.hold
	m.mu.Unlock()
	var stands chan struct{} // nil, and so never, where nobody pauses
	if h != nil {
		stands = h.stands
	}
	for {
		select {
		case m.qmp <- struct{}{}:
			return nil
		case <-stands:
			if h.holds() {
				return fmt.Errorf("VM %s is paused by a guard of ours: %w", m.Name, orchestrator.ErrBusy)
			}
			stands = nil
		case <-ctx.Done():
			return fmt.Errorf("VM %s: QMP: %w", m.Name, context.Cause(ctx))
		}
	}
}

// isPaused says whether a guard of ours holds the VM.
func (m *machine) isPaused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hold.holds()
}

// ask connects for one round of questions.
func (m *machine) ask(ctx context.Context, questions func(context.Context, *qmp.Conn) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, listLimit, fmt.Errorf("QEMU did not answer within %v: %w", listLimit, orchestrator.ErrTimeout))
	defer cancel()
	if err := m.lockQMP(ctx); err != nil {
		return err
	}
	defer func() { <-m.qmp }()
	c, err := qmp.Dial(ctx, m.QMP, nil)
	// A QEMU that is short of processor time may not have seen yet that the guard
	// hung up, and serves one client at a time.
	for errors.Is(err, qmp.ErrBusy) && m.justFreed() {
		c, err = qmp.Dial(ctx, m.QMP, nil)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return questions(ctx, c)
}

// justFreed says whether a guard of ours had the socket until a moment ago.
func (m *machine) justFreed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.free) < listLimit
}
