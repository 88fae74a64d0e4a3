package cli

import (
	"strings"
	"testing"

	"github.com/cleave-san/cleave/orchestrator"
)

// TestPlannedCalls: what a run would do beside what every run does.
func TestPlannedCalls(t *testing.T) {
	plain := orchestrator.DiskResult{Device: "vda"}
	full := orchestrator.DiskResult{Device: "vdb", FullCopy: true}
	hosted := orchestrator.DiskResult{Device: "vdc", Host: &orchestrator.HostPlace{Mount: "/srv"}}
	s := orchestrator.Set{VMs: []orchestrator.VMResult{{Name: "db", Disks: []orchestrator.DiskResult{plain, full, hosted, hosted}}}}
	said := strings.Join(plannedCalls(s), "\n")
	for text, n := range map[string]int{"copy the volume under disk vdb of VM db in full": 1, "disk vda": 0, "flush what this host has mounted at /srv\n": 1} {
		if got := strings.Count(said, text); got != n {
			t.Errorf("%q is said %d times, want %d:\n%s", text, got, n, said)
		}
	}
}
