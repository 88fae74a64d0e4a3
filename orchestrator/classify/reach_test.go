package classify

import (
	"testing"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
)

// proved is evidence that proves application consistency over two volumes; each
// row of the table takes one piece of it away.
func proved() Evidence {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f := db()
	return Evidence{
		Verdict:  Plan(f),
		Expected: f.VM.Guest.Volumes,
		Report: wire.Report{
			Started: at, Finished: at.Add(2 * time.Second), Requester: "qemu-ga 7.2.0",
			Writers: []wire.Writer{{App: "postgresql", Version: "15", State: wire.WriterStable, Session: "s", Method: "pg_backup_start",
				Components: []wire.Component{{Name: "main", Volumes: []string{"vg/data", "vg/wal"}}}}},
			Completions: []wire.Completion{
				{Volume: "vg/data", VolumeID: "D", Snapshot: "SD", Kind: "lvm-thick", Began: at, Ended: at.Add(time.Second), Session: "s"},
				{Volume: "vg/wal", VolumeID: "W", Snapshot: "SW", Kind: "lvm-thick", Began: at, Ended: at.Add(time.Second), Session: "s"},
			},
		},
		ReportedBeforeSplit: true,
		Groups:              []string{"g"},
		Found:               map[string]string{"SD": "", "SW": ""},
		SplitMethod:         "mirror-split",
	}
}

func TestReach(t *testing.T) {
	const app, fs, crash = orchestrator.LevelApplication, orchestrator.LevelFilesystem, orchestrator.LevelCrash
	for _, row := range []struct {
		name      string
		spoil     func(*Evidence)
		level     orchestrator.Level
		why       string
		data, wal orchestrator.Level
	}{
		{"all evidence", func(*Evidence) {}, app, "", app, app},
		{"two LUNs in one group", func(e *Evidence) { e.Groups = []string{"g", "g"} }, app, "", app, app},
		{"two LUNs, no order", func(e *Evidence) { e.Groups = []string{"", ""} }, crash, "guest volume vg/data: the VM's disks were not split at one instant", crash, crash},
		{"two LUNs, two groups", func(e *Evidence) { e.Groups = []string{"g", "h"} }, crash, "guest volume vg/data: the VM's disks were not split at one instant", crash, crash},
		{"snapshot overflowed", func(e *Evidence) { e.Found["SW"] = "its snapshot overflowed" }, crash, "guest volume vg/wal: its snapshot overflowed", fs, crash},
		{"snapshot not looked for", func(e *Evidence) { delete(e.Found, "SD") }, crash, "guest volume vg/data: its snapshot was not looked for in the split", crash, fs},
		{"completion missing", func(e *Evidence) { e.Report.Completions = e.Report.Completions[:1] }, crash, "guest volume vg/wal: no completion was reported", fs, crash},
		{"completion failed", func(e *Evidence) { e.Report.Completions[1].Error = "no space" }, crash, "guest volume vg/wal: the guest could not snapshot it: no space", fs, crash},
		{"no end", func(e *Evidence) { e.Report.Finished = time.Time{} }, crash, "the guest never reported the end of its step", 0, 0},
		{"undone by the guest", func(e *Evidence) { e.Report.Failed = "limit of 10s passed" }, crash, "the guest step failed: limit of 10s passed", 0, 0},
		{"report too late", func(e *Evidence) { e.ReportedBeforeSplit = false }, crash, "the guest's report came after the split was asked for", 0, 0},
		{"writer failed", func(e *Evidence) {
			e.Report.Writers[0].State, e.Report.Writers[0].Error = wire.WriterFailed, "login refused"
		}, fs,
			"application writer postgresql did not take part: login refused", fs, fs},
		{"writer silent", func(e *Evidence) { e.Report.Writers[0].State = wire.WriterUnknown }, fs, "application writer postgresql did not take part: unknown", fs, fs},
		{"writer closed", func(e *Evidence) { e.Report.Writers[0].State = wire.WriterNotRunning }, fs, "no application writer took part", fs, fs},
		{"no writer", func(e *Evidence) { e.Report.Writers = nil }, fs, "no application writer took part", fs, fs},
		{"not one session", func(e *Evidence) { e.Report.Completions[1].Session = "" }, crash,
			"guest volume vg/data: postgresql was not held in one session across its volumes", crash, crash},
		{"no session at all", func(e *Evidence) { e.Report.Writers[0].Session = "" }, crash,
			"guest volume vg/data: postgresql was not held in one session across its volumes", crash, crash},
		{"writer names no volume", func(e *Evidence) { e.Report.Writers[0].Components = nil }, fs,
			"application writer postgresql named no volume that holds its data", fs, fs},
		{"writer's volume unknown", func(e *Evidence) { e.Report.Writers[0].Components[0].Volumes = []string{"vg/else"} }, fs,
			"postgresql keeps data on vg/else, which has no snapshot", fs, fs},
		{"fell back to a pause", func(e *Evidence) {
			e.Verdict.How, e.Verdict.Reason = orchestrator.ByPause, "the agent died"
			e.Pause, e.PauseHolds = &orchestrator.Pause{For: 20 * time.Millisecond}, true
		}, crash, "the agent died", 0, 0},
		{"off", func(e *Evidence) { e.Verdict.How, e.Verdict.Reason = orchestrator.ByItself, "off" }, crash, "off", 0, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			e := proved()
			row.spoil(&e)
			r := Reach(e)
			if r.Level != row.level || r.Why != row.why {
				t.Errorf("Reach = %s: %q\nwant    %s: %q", r.Level, r.Why, row.level, row.why)
			}
			got := map[string]orchestrator.Level{}
			for _, v := range r.Volumes {
				got[v.Name] = v.Reached
			}
			if got["vg/data"] != row.data || got["vg/wal"] != row.wal {
				t.Errorf("volumes: data %s, wal %s; want %s, %s", got["vg/data"], got["vg/wal"], row.data, row.wal)
			}
		})
	}
}
