//go:build lab

package mainjob

import (
	"bufio"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/integration/stage"
	"github.com/cleave-san/cleave/orchestrator"
)

// TestControlPlaneKilled kills the control plane with SIGKILL at points of a set
// over two running VMs, starts it again, and wants the set aborted with a reason
// and nothing left: no VM paused, no guest held, no LUN, no split, no snapshot.
func TestControlPlaneKilled(t *testing.T) {
	s := open(t, lab.Layout{Data: "700M", Canary: "16M"}, true)
	for _, row := range []struct {
		name string
		kill func() // returns when the control plane is dead
	}{
		{"while the guest makes its snapshot", s.killAtLine("prepared")},
		{"while legacy is paused, before the array splits", s.killAtSplit(s.stage.OnSplit)},
		{"while legacy is paused, the array has split", s.killAtSplit(s.stage.OnSplitReply)},
		{"after the split", s.killAtLine("split")},
		{"when the split is verified", s.killAtLine("verified")},
		{"when the view is up", s.killAtLine("recovered")},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.kill()
			s.ok(s.stage.StartServe(s.ctx))
			set := s.newest()
			set, err := s.stage.Wait(s.ctx, set.ID)
			s.ok(err)
			if set.State != orchestrator.StateAborted || set.Reason == "" {
				t.Errorf("set is %s (%q), want aborted with a reason", set.State, set.Reason)
			}
			t.Logf("%s: %s", set.State, set.Reason)
			s.wantNothingLeft()
			s.wantNoIOError()
			s.wantProgress()
		})
	}
	t.Run("when it is ready", func(t *testing.T) {
		set, err := s.stage.Set(s.ctx, "snapshot", "create", "--vm", "db", "--vm", "legacy", "--to", stage.ProofInitiator, "--wait")
		s.ok(err)
		s.stage.KillServe()
		s.ok(s.stage.StartServe(s.ctx))
		if again := s.newest(); again.State != orchestrator.StateReady {
			t.Fatalf("set is %s (%q), want ready as before", again.State, again.Reason)
		}
		set, err = s.stage.Set(s.ctx, "snapshot", "expose", string(set.ID), "--writable", "--to", stage.ProofInitiator)
		s.ok(err)
		s.prove(set, "")
		_, err = s.stage.Cleave(s.ctx, "snapshot", "delete", string(set.ID))
		s.ok(err)
		s.wantNothingLeft()
	})
}

// TestArrayKilled kills the data plane under load, with the VMs attached: they
// ride through it.
func TestArrayKilled(t *testing.T) {
	s := open(t, lab.Layout{Data: "700M", Canary: "16M"}, true)
	for range 5 {
		s.stage.KillArray()
		s.ok(s.stage.StartArray(s.ctx))
		s.wantProgress()
	}
	s.wantNoIOError()
	set, err := s.stage.Set(s.ctx, "snapshot", "create", "--vm", "db", "--level", "application", "--to", stage.ProofInitiator, "--wait")
	s.ok(err)
	set, err = s.stage.Set(s.ctx, "snapshot", "expose", string(set.ID), "--writable", "--to", stage.ProofInitiator)
	s.ok(err)
	s.prove(set, "")
	_, err = s.stage.Cleave(s.ctx, "snapshot", "delete", string(set.ID))
	s.ok(err)
	s.wantNothingLeft()
}

func (s *scene) newest() orchestrator.Set {
	s.Helper()
	out, err := s.stage.Cleave(s.ctx, "snapshot", "list", "--all", "-o", "name")
	s.ok(err)
	id, _, _ := strings.Cut(out, "\n")
	set, err := s.stage.Set(s.ctx, "snapshot", "show", id)
	s.ok(err)
	return set
}

// killAtLine follows a set's progress, and kills at the line of that state.
func (s *scene) killAtLine(state string) func() {
	return func() {
		s.Helper()
		c := s.stage.Command(s.ctx, "snapshot", "create", "--vm", "db", "--vm", "legacy", "--to", stage.ProofInitiator, "--wait")
		stderr, err := c.StderrPipe()
		s.ok(err)
		s.ok(c.Start())
		lines := bufio.NewScanner(stderr)
		var seen []string
		for lines.Scan() {
			seen = append(seen, lines.Text())
			if f := strings.Fields(lines.Text()); len(f) > 1 && (f[1] == state || f[0] == state) {
				s.stage.KillServe()
				for lines.Scan() { // what it says of its loss
				}
				if err := c.Wait(); err == nil {
					s.Error("snapshot create --wait exits with 0 after its control plane died")
				}
				return
			}
		}
		s.Fatalf("the set never said %q, but %q; %v", state, seen, c.Wait())
	}
}

// killAtSplit kills while the array is being asked to split.
func (s *scene) killAtSplit(on func(func())) func() {
	return func() {
		s.Helper()
		dead := make(chan struct{})
		on(func() {
			select {
			case <-dead:
			default:
				s.stage.KillServe()
				close(dead)
			}
		})
		defer on(nil)
		_, err := s.stage.Cleave(s.ctx, "snapshot", "create", "--vm", "db", "--vm", "legacy", "--to", stage.ProofInitiator, "--wait")
		if err == nil {
			s.Error("snapshot create --wait exits with 0 after its control plane died")
		}
		<-dead
	}
}
