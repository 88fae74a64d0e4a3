package mainjob

import (
	"slices"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/integration/stage"
	"github.com/cleave-san/cleave/orchestrator"
)

// TestQuickDataAndWALOnTwoVolumes: PostgreSQL with its data and its WAL on two
// logical volumes. It is held in one session over both snapshots, the backup
// label is in the set document, and the server starts on the recovered LUN with
// every commit.
func TestQuickDataAndWALOnTwoVolumes(t *testing.T) {
	s := open(t, lab.Layout{Data: "700M", WAL: "300M", Canary: "16M"}, false)
	set, err := s.stage.Set(s.ctx, "snapshot", "create", "--vm", "db", "--level", "application", "--to", stage.ProofInitiator, "--wait")
	s.ok(err)
	db := vm(set, "db")
	if set.State != orchestrator.StateReady || db.Reached != orchestrator.LevelApplication {
		t.Fatalf("set is %s (%s); db reached %s (%s)", set.State, set.Reason, db.Reached, db.Why)
	}
	label := ""
	for _, w := range db.Writers {
		if w.App == "postgresql" {
			label = w.Label
			if !slices.Contains(w.Volumes, "vgdata/pgdata") || !slices.Contains(w.Volumes, "vgdata/pgwal") {
				t.Errorf("PostgreSQL's volumes are %q", w.Volumes)
			}
		}
	}
	if !strings.Contains(label, "START WAL LOCATION") {
		t.Fatalf("the set document has no backup label, but %q", label)
	}
	set, err = s.stage.Set(s.ctx, "snapshot", "expose", string(set.ID), "--writable", "--to", stage.ProofInitiator)
	s.ok(err)
	s.prove(set, label)
	dev := s.useDevice(set)
	_, err = s.stage.Cleave(s.ctx, "snapshot", "delete", string(set.ID))
	s.ok(err)
	if attached, err := s.stage.Cleave(s.ctx, "lun", "attached", "-o", "name"); err != nil || dev != "" && strings.Contains(attached, dev) {
		s.Errorf("%s went with its set, but attached are %q, %v", dev, attached, err)
	}
	set, err = s.stage.Set(s.ctx, "snapshot", "show", string(set.ID))
	s.ok(err)
	if set.State != orchestrator.StateReleased {
		t.Errorf("set is %s", set.State)
	}
	s.wantNothingLeft()
	s.wantProgress()
}

// prove boots a VM on the recovered LUN and has PostgreSQL say what is there.
func (s *scene) prove(set orchestrator.Set, label string) {
	s.Helper()
	i := slices.IndexFunc(set.LUNs, func(l orchestrator.LUN) bool { return l.Clean })
	if i < 0 {
		s.Fatalf("set %s has no recovered LUN", set.ID)
	}
	lun := s.stage.LUN(set.LUNs[i])
	proof, err := lab.Boot(s.ctx, lab.VM{Name: "proof", Kind: lab.Proof, Disks: []lab.Disk{{LUN: &lun, Bus: lab.SCSIHD}}})
	s.ok(err)
	defer func() { s.check(proof.Close()) }()
	disk := proof.Disks()[0]
	s.ok(proof.StartCluster(s.ctx, disk, label))
	n, err := proof.Numbers(s.ctx)
	s.ok(err)
	record, err := lab.ReadRecord(s.db.Record())
	s.ok(err)
	began, ended := window(set)
	s.check(n.Check(record, began, ended))
	s.check(proof.CheckCluster(s.ctx))
	s.check(proof.StopCluster(s.ctx, disk))
	if s.canary {
		_, err := proof.CheckCanary(s.ctx, s.load, disk)
		s.check(err)
	}
	s.Logf("FIGURE commits recovered: %d", n.Count)
}
