package qemu

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/guest/requester"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/agent"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu/qmp"
)

// describe learns all there is about a VM. What can't be learned is its Problem.
func (m *machine) describe(ctx context.Context) orchestrator.VM {
	v := orchestrator.VM{Name: m.Name, Writer: "qemu", Config: m.Config, Power: orchestrator.PowerUnknown}
	err := orchestrator.ErrBusy
	for errors.Is(err, orchestrator.ErrBusy) {
		if m.isPaused() { // or paused in this moment, or resumed in this one: then it is asked
			return m.describePaused()
		}
		err = m.ask(ctx, func(ctx context.Context, c *qmp.Conn) error { return facts(ctx, c, &v) })
	}
	switch {
	case errors.Is(err, qmp.ErrAbsent):
		v.Power = orchestrator.Off
		v.Problem = err.Error() + ": the VM is off, and only its own QEMU knows its disks"
	case err != nil:
		v.Power = orchestrator.PowerUnknown
		v.Problem = err.Error()
	}
	switch {
	case v.Power != orchestrator.Running:
		v.Guest.Silence = "the VM is " + string(v.Power)
	case m.agent == nil:
		v.Guest.Silence = "no agent socket is configured for it"
	default:
		v.Guest = m.askGuest(ctx)
	}
	if err == nil {
		m.mu.Lock()
		kept := v
		m.last = &kept
		m.mu.Unlock()
	}
	return v
}

// describePaused is what is known while the guard has the QMP socket.
func (m *machine) describePaused() orchestrator.VM {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := orchestrator.VM{Name: m.Name, Writer: "qemu", Config: m.Config, Problem: "it is paused by a guard, and was not asked for its disks before"}
	if m.last != nil {
		v = *m.last
	}
	v.Power = orchestrator.Paused
	v.Guest = orchestrator.Guest{Silence: "the VM is paused"}
	return v
}

// facts fills in what QMP tells.
func facts(ctx context.Context, c *qmp.Conn, v *orchestrator.VM) error {
	s, err := c.QueryStatus(ctx)
	if err != nil {
		return err
	}
	var problems []string
	switch {
	case s.Running:
		v.Power = orchestrator.Running
	case s.Status == "shutdown":
		v.Power = orchestrator.Off
	default:
		v.Power = orchestrator.Paused
		if s.Status != "paused" {
			problems = append(problems, fmt.Sprintf("QEMU says that it is %q", s.Status))
		}
	}
	var id struct{ UUID string }
	if err := c.Do(ctx, "query-uuid", nil, &id); err != nil {
		return err
	}
	if id.UUID != "00000000-0000-0000-0000-000000000000" && len(id.UUID) <= 64 { // QEMU's way of saying none
		v.ID = id.UUID
	}
	var blocks []block
	if err := c.Do(ctx, "query-block", nil, &blocks); err != nil {
		return err
	}
	var nodes []node
	if err := c.Do(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		return err
	}
	disks, more := disks(blocks, nodes)
	v.Disks = disks
	v.Problem = strings.Join(append(problems, more...), "; ")
	return nil
}

// askGuest asks the agent who it is, and then what it could do.
func (m *machine) askGuest(ctx context.Context) orchestrator.Guest {
	var g orchestrator.Guest
	short, cancel := context.WithTimeoutCause(ctx, infoLimit, agent.ErrSilent)
	info, err := m.agent.Info(short)
	cancel()
	if err != nil {
		g.Silence = err.Error()
		return g
	}
	g.Requester = agentName(info)
	g.CanFreeze = info.Enabled["guest-fsfreeze-freeze"] && info.Enabled["guest-fsfreeze-thaw"]
	for _, need := range []string{"guest-exec", "guest-exec-status"} {
		if !info.Enabled[need] {
			g.Cannot = "the guest agent's owner has disabled " + need
			return g
		}
	}
	long, cancel := context.WithTimeoutCause(ctx, probeLimit, fmt.Errorf("the guest did not answer the probe within %v: %w", probeLimit, orchestrator.ErrTimeout))
	defer cancel()
	p, err := requester.Probe(long, m.agent)
	if err != nil {
		g.Cannot = err.Error()
		return g
	}
	requester.Describe(p, &g)
	return g
}

func agentName(i agent.Info) string { return "qemu-ga " + i.Version }
