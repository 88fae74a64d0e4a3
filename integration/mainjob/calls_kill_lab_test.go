//go:build lab

package mainjob

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/stage"
	"github.com/cleave-san/cleave/integration/toxiproxy"
	"github.com/cleave-san/cleave/orchestrator"
)

// TestKilledBetweenCallsOfForeignArray kills the control plane before and after each
// call that a set makes to an array behind a program: before, the program never
// hears of it; after, it has acted and nobody knows.
func TestKilledBetweenCallsOfForeignArray(t *testing.T) {
	f := newForeign(t)
	if _, err := program(); err != nil { // where modules can be fetched
		t.Fatal(err)
	}
	if !alone(t) {
		return
	}
	f.open(t)
	var c calls
	f.relayed(t, &c)
	s := openOn(t, f, storyLayout, false)
	s.killedBetween(&c, "resolve", "prepare", "split", "open", "lookup", "delete")
}

// TestKilledBetweenCallsOfCinder is the same with Cinder's requests.
func TestKilledBetweenCallsOfCinder(t *testing.T) {
	s, c, _ := cutCinder(t)
	s.killedBetween(c, cinderCalls...)
}

// cinderCalls are what a set changes in Cinder, from its snapshot to its end.
var cinderCalls = []string{
	"POST snapshots", "POST volumes", "POST volumes/ID/metadata", "POST attachments", "POST attachments/ID/action",
	"DELETE attachments/ID", "DELETE volumes/ID", "DELETE snapshots/ID",
}

// TestRepliesOfCinderCut has toxiproxy cut the connection when Cinder has acted and
// before it is heard: the set is made all the same, or aborted.
func TestRepliesOfCinderCut(t *testing.T) {
	s, c, cut := cutCinder(t)
	for _, call := range cinderCalls {
		t.Run(call, func(t *testing.T) {
			s := s.in(t)
			var once sync.Once
			cuts := 0
			c.each(func(what string) bool {
				if what == "after "+call {
					once.Do(func() { cuts++; cut() })
				}
				return true
			})
			defer c.each(nil)
			set, err := s.stage.Set(s.ctx, "snapshot", "create", "--vm", "db", "--level", "application", "--to", stage.ProofInitiator, "--wait")
			t.Logf("%s: %s; %v", set.State, set.Reason, err)
			s.settles()
			if cuts != 1 {
				t.Errorf("%q was cut %d times", call, cuts)
			}
		})
	}
}

// cutCinder sets a scene on Cinder behind toxiproxy. cut ends all connections.
func cutCinder(t *testing.T) (_ *scene, _ *calls, cut func()) {
	t.Helper()
	proxy := toxiproxy.Start(t)
	storage := newCinderOnCeph(t)
	c := new(calls)
	storage.endpoint = "http://" + proxy.Proxy("cinder", c.hearHTTP(t, storage.Endpoint)) + "/v3"
	return openOn(t, storage, storyLayout, false), c, func() {
		proxy.Enable("cinder", false)
		proxy.Enable("cinder", true)
	}
}

// killedBetween makes a set for each call, and kills the control plane before it
// and after it.
func (s *scene) killedBetween(c *calls, names ...string) {
	s.Helper()
	for _, call := range names {
		for _, when := range []string{"before ", "after "} {
			s.Run(when+call, func(t *testing.T) {
				s := s.in(t)
				var once sync.Once
				heard, dead := make(chan struct{}), make(chan struct{})
				c.each(func(what string) (passes bool) {
					passes = true
					if what == when+call {
						once.Do(func() {
							close(heard)
							s.stage.KillServe()
							close(dead)
							passes = false // who asked is no more
						})
					}
					return passes
				})
				defer c.each(nil)
				began := time.Now()
				set, err := s.stage.Set(s.ctx, "snapshot", "create", "--vm", "db", "--level", "application", "--to", stage.ProofInitiator, "--wait")
				if err == nil { // the call is one of those that end a set
					_, err = s.stage.Cleave(s.ctx, "snapshot", "delete", string(set.ID))
				}
				select {
				case <-heard:
					<-dead
				default:
					t.Fatalf("there was no such call; %v; %q", err, c.seen())
				}
				if err == nil {
					t.Error("the command exits with 0 after its control plane died")
				}
				s.ok(s.stage.StartServe(s.ctx))
				s.settles()
				t.Logf("after %s", time.Since(began).Round(time.Second))
			})
		}
	}
}

// in is the scene for a part of its test.
func (s *scene) in(t *testing.T) *scene {
	x := *s
	x.T = t
	return &x
}

// settles waits until the newest set is final, or ready and then deleted, and wants
// nothing left of it.
func (s *scene) settles() {
	s.Helper()
	out, err := s.stage.Cleave(s.ctx, "snapshot", "list", "--all", "-o", "name")
	s.ok(err)
	if id, _, _ := strings.Cut(out, "\n"); id != "" { // or killed before it was one
		set, err := s.stage.Wait(s.ctx, orchestrator.SetID(id))
		s.ok(err)
		s.Logf("it ends %s: %s", set.State, set.Reason)
		if set.State == orchestrator.StateReady {
			_, err := s.stage.Cleave(s.ctx, "snapshot", "delete", id)
			s.ok(err)
		}
	}
	s.wantNothingLeft()
	s.wantNoIOError()
	s.wantProgress()
}
