package classify

import (
	"testing"

	"github.com/cleave-san/cleave/orchestrator"
)

// db is a VM on which everything is as it should be; each row of the table
// spoils one thing.
func db() Facts {
	return Facts{
		VM: orchestrator.VM{
			Name: "db", Writer: "qemu", Power: orchestrator.Running,
			Disks: []orchestrator.Disk{{Device: "vda", Format: "raw", Cache: "none", IQN: "iqn.2026-01.org.example:a", LUN: 1}},
			Guest: orchestrator.Guest{
				Requester: "qemu-ga 7.2.0", CanSnapshot: true,
				Volumes: []orchestrator.GuestVolume{{Name: "vg/data", UUID: "D"}, {Name: "vg/wal", UUID: "W"}},
				Writers: []orchestrator.GuestWriter{{App: "postgresql", Version: "15", Running: true, Volumes: []string{"vg/data", "vg/wal"}}},
			},
		},
		Disks: []Disk{{Array: "a", Volume: "v1"}},
	}
}

func TestPlan(t *testing.T) {
	for _, row := range []struct {
		name   string
		spoil  func(*Facts)
		class  orchestrator.Class
		how    orchestrator.How
		best   orchestrator.Level
		reason string
	}{
		// The 2x2 of claim 1: only a guest requester and an application writer
		// together make it an application-consistent online backup.
		{"requester and writer", func(*Facts) {}, orchestrator.NoDowntime, orchestrator.ByGuest, orchestrator.LevelApplication,
			"guest requester qemu-ga 7.2.0, application writers postgresql 15"},
		{"requester, no writer", func(f *Facts) { f.VM.Guest.Writers = nil }, orchestrator.NoDowntime, orchestrator.ByGuest, orchestrator.LevelFilesystem,
			"guest requester qemu-ga 7.2.0; no application writer runs"},
		{"writer, no requester", func(f *Facts) { f.VM.Guest.Requester, f.VM.Guest.CanSnapshot = "", false }, orchestrator.SomeDowntime, orchestrator.ByPause, orchestrator.LevelCrash,
			"no guest requester answers"},
		{"neither", func(f *Facts) { f.VM.Guest = orchestrator.Guest{Silence: "no agent channel is configured"} }, orchestrator.SomeDowntime, orchestrator.ByPause, orchestrator.LevelCrash,
			"no guest requester answers: no agent channel is configured"},

		// Silent and "not configured" are told apart (E13).
		{"answers that it can't", func(f *Facts) { f.VM.Guest.CanSnapshot, f.VM.Guest.Cannot = false, "guest-exec is disabled" }, orchestrator.SomeDowntime, orchestrator.ByPause, orchestrator.LevelCrash,
			"guest requester qemu-ga 7.2.0 can't make snapshots: guest-exec is disabled"},
		{"no volume can be snapshot", func(f *Facts) {
			f.VM.Guest.Volumes = []orchestrator.GuestVolume{{Name: "vda1", Cannot: "not a logical volume"}}
		},
			orchestrator.SomeDowntime, orchestrator.ByPause, orchestrator.LevelCrash, "guest requester qemu-ga 7.2.0 has no volume that it could snapshot"},
		{"one volume can't be snapshot", func(f *Facts) { f.VM.Guest.Volumes[1].Cannot = "its group is full" }, orchestrator.NoDowntime, orchestrator.ByGuest, orchestrator.LevelCrash,
			"guest volume vg/wal can't be snapshot: its group is full"},
		{"writer can't take part", func(f *Facts) { f.VM.Guest.Writers[0].Cannot = "no superuser login" }, orchestrator.NoDowntime, orchestrator.ByGuest, orchestrator.LevelFilesystem,
			"application writer postgresql can't take part: no superuser login"},
		{"writer's data elsewhere", func(f *Facts) { f.VM.Guest.Writers[0].Volumes = []string{"/nfs"} }, orchestrator.NoDowntime, orchestrator.ByGuest, orchestrator.LevelFilesystem,
			"application writer postgresql keeps data on /nfs, which has no snapshot"},
		{"writer not running", func(f *Facts) { f.VM.Guest.Writers[0].Running = false }, orchestrator.NoDowntime, orchestrator.ByGuest, orchestrator.LevelFilesystem,
			"guest requester qemu-ga 7.2.0; no application writer runs"},

		// Saved or switched off (claim 6).
		{"off", func(f *Facts) { f.VM.Power = orchestrator.Off }, orchestrator.NoDowntime, orchestrator.ByItself, orchestrator.LevelCrash,
			"the VM is off and stays so; its disks are copied as they are"},
		{"paused by somebody else", func(f *Facts) { f.VM.Power = orchestrator.Paused }, orchestrator.NoDowntime, orchestrator.ByItself, orchestrator.LevelCrash,
			"the VM is paused and stays so; its disks are copied as they are"},

		// Not possible.
		{"hypervisor silent", func(f *Facts) { f.VM.Power = orchestrator.PowerUnknown }, orchestrator.NotPossible, "", orchestrator.LevelNone,
			"its hypervisor does not say whether it runs"},
		{"writer has a problem", func(f *Facts) { f.VM.Problem = "QMP socket /run/db.qmp: connection refused" }, orchestrator.NotPossible, "", orchestrator.LevelNone,
			"QMP socket /run/db.qmp: connection refused"},
		{"unsafe cache", func(f *Facts) { f.VM.Disks[0].Cache = "unsafe" }, orchestrator.NotPossible, "", orchestrator.LevelNone,
			"disk vda: cache mode is unsafe: what the guest flushes does not reach the volume"},
		{"on no array", func(f *Facts) { f.Disks[0] = Disk{Problem: `no array answers for "/dev/sdz"`} }, orchestrator.NotPossible, "", orchestrator.LevelNone,
			`disk vda: no array answers for "/dev/sdz"`},
		{"nothing resolved", func(f *Facts) { f.Disks = nil }, orchestrator.NotPossible, "", orchestrator.LevelNone,
			"disk vda: nothing is known of where it lies"},
		{"container", func(f *Facts) { f.VM.Disks[0].Format = "qcow2" }, orchestrator.NotPossible, "", orchestrator.LevelNone,
			"disk vda: format qcow2 on the volume itself is not recovered; raw is, and any in a file of a host's volume"},
		{"backing file", func(f *Facts) { f.VM.Disks[0].Backing = "/srv/base" }, orchestrator.NotPossible, "", orchestrator.LevelNone,
			`disk vda: it has a backing file ("/srv/base"), so what it holds does not lie in one place`},
		{"backing file on a host's volume", func(f *Facts) {
			f.VM.Disks[0].Format, f.VM.Disks[0].Backing, f.Disks[0].Hosted = "qcow2", "/srv/base", true
		}, orchestrator.NotPossible, "", orchestrator.LevelNone,
			`disk vda: it has a backing file ("/srv/base"), so what it holds does not lie in one place`},
		{"unread container on a host's volume", func(f *Facts) { f.VM.Disks[0].Format, f.Disks[0].Hosted = "qed", true }, orchestrator.NotPossible, "", orchestrator.LevelNone,
			"disk vda: format qed is not read"},
		{"no disk", func(f *Facts) { f.VM.Disks, f.Disks = nil, nil }, orchestrator.NotPossible, "", orchestrator.LevelNone,
			"it has no disk of its own"},
		{"only a CD", func(f *Facts) { f.VM.Disks[0].ReadOnly = true }, orchestrator.NotPossible, "", orchestrator.LevelNone,
			"it has no disk of its own"},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := db()
			row.spoil(&f)
			v := Plan(f)
			if v.Class != row.class || v.How != row.how || v.Best != row.best || v.Reason != row.reason {
				t.Errorf("Plan = %s, %s, best %s: %q\nwant   %s, %s, best %s: %q", v.Class, v.How, v.Best, v.Reason, row.class, row.how, row.best, row.reason)
			}
		})
	}
}
