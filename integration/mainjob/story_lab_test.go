//go:build lab

package mainjob

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/cinderarray/lvmtgt"
	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/integration/stage"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/initiator"
	"github.com/cleave-san/cleave/orchestrator"
)

// storyLayout is the disk of the stories: PostgreSQL and a write-order canary.
var storyLayout = lab.Layout{Data: "700M", Canary: "16M"}

// TestStoryOnForeignArray is the main job with the VM's disk on an array that Cleave
// knows by a program only.
func TestStoryOnForeignArray(t *testing.T) {
	f := newForeign(t)
	if _, err := program(); err != nil { // where modules can be fetched
		t.Fatal(err)
	}
	if !alone(t) {
		return
	}
	f.open(t)
	s := openOn(t, f, storyLayout, false)
	set := s.story()
	// Read as it came off, by the array's own target.
	set, err := s.stage.Set(s.ctx, "snapshot", "expose", string(set.ID), "--dirty", "--to", stage.ProofInitiator)
	s.ok(err)
	s.readSplit(set)
	s.ends(set)
}

// TestStoryOnCinderRBD is the main job with the VM's disk on a volume of OpenStack
// Cinder that is an image of Ceph's.
func TestStoryOnCinderRBD(t *testing.T) {
	c := newCinderOnCeph(t)
	s := openOn(t, c, storyLayout, false)
	s.ends(s.story())
}

// TestStoryOnCinderLVM is the main job with the VM's disk on a volume of OpenStack
// Cinder that is a logical volume behind iSCSI and CHAP.
func TestStoryOnCinderLVM(t *testing.T) {
	c := &cinderOnLVM{Storage: lvmtgt.Start(t, "thin")}
	s := openOn(t, c, storyLayout, false)
	s.ends(s.story())
}

// story takes a set of db, loses the control plane, and proves what is in the set.
func (s *scene) story() orchestrator.Set {
	s.Helper()
	began := time.Now()
	set, err := s.stage.Set(s.ctx, "snapshot", "create", "--vm", "db", "--level", "application", "--to", stage.ProofInitiator, "--wait")
	s.ok(err)
	db := vm(set, "db")
	if set.State != orchestrator.StateReady || db.Reached != orchestrator.LevelApplication {
		s.Fatalf("set is %s (%s); db reached %s (%s)", set.State, set.Reason, db.Reached, db.Why)
	}
	s.Logf("FIGURE set ready after: %s, on array %s by %s", time.Since(began).Round(100*time.Millisecond), set.Splits[0].Array, set.Splits[0].Method)
	s.stage.KillServe() // its view and who reads for that go on
	s.ok(s.stage.StartServe(s.ctx))
	set, err = s.stage.Set(s.ctx, "snapshot", "expose", string(set.ID), "--writable", "--to", stage.ProofInitiator)
	s.ok(err)
	s.prove(set, "")
	return set
}

// ends deletes a set and wants nothing left, and the guest as if nothing had been.
func (s *scene) ends(set orchestrator.Set) {
	s.Helper()
	_, err := s.stage.Cleave(s.ctx, "snapshot", "delete", string(set.ID))
	s.ok(err)
	set, err = s.stage.Set(s.ctx, "snapshot", "show", string(set.ID))
	s.ok(err)
	if set.State != orchestrator.StateReleased {
		s.Errorf("set is %s (%s)", set.State, set.Reason)
	}
	s.wantNothingLeft()
	s.wantNoIOError()
	s.wantProgress()
}

// readSplit logs in to a split's own LUN by our initiator, and wants to find LVM's
// label on it, which the guest wrote.
func (s *scene) readSplit(set orchestrator.Set) {
	s.Helper()
	i := slices.IndexFunc(set.LUNs, func(l orchestrator.LUN) bool { return !l.Clean })
	l := set.LUNs[i]
	target, err := iscsi.ParseName(l.IQN)
	s.ok(err)
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	d, err := initiator.Open(ctx, initiator.Options{Portals: l.Portals, Target: target, LUN: int(l.LUN), Initiator: stage.ProofInitiator, Recovery: 10 * time.Second})
	s.ok(err)
	defer func() { s.check(d.Close()) }()
	got := make([]byte, 4096)
	_, err = d.ReadAt(got, 0)
	s.ok(err)
	if d.Size() != 2<<30 || !bytes.Contains(got, []byte("LABELONE")) {
		s.Errorf("%s has %d bytes, and no label of LVM's", l.Name, d.Size())
	}
}
