package writertest

import (
	"testing"

	"github.com/cleave-san/cleave/orchestrator"
)

// The fake keeps the contract that it stands in for.
func TestFakePassesTheSuite(t *testing.T) {
	Run(t, func(t *testing.T) Subject {
		db := fakeDB().vms[0]
		f := NewFake("fake", db, orchestrator.VM{Name: "off", Power: orchestrator.Off},
			orchestrator.VM{Name: "legacy", Guest: orchestrator.Guest{Silence: "no agent"}})
		t.Cleanup(func() {
			if left := f.Left(); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
		return Subject{Writer: f, Running: "legacy", Off: "off", Guest: "db"}
	})
}
