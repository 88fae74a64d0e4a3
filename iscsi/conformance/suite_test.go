package main

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// floor is how many of libiscsi's tests pass. It may be raised, not lowered.
const floor = 201

// TestConformance runs the whole suite, each test alone with a limit of 20 s:
// none hangs, none fails or is skipped that is not on the list of excuses, and no
// fewer pass than before.
func TestConformance(t *testing.T) {
	if _, err := exec.LookPath(tool); err != nil {
		t.Skip(tool + " is not installed (Debian package libiscsi-bin)")
	}
	names, err := list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	results := runAll(t.Context(), names, workers, 20*time.Second, own, nil)
	for _, n := range names {
		if err := unexcused(n, results[n]); err != nil {
			t.Errorf("%v\n%s", err, results[n].output)
		}
	}
	if n := count(results)[passed]; n < floor {
		t.Errorf("%d tests pass, %d did before", n, floor)
	}
}

// TestReport makes a report of invented results.
func TestReport(t *testing.T) {
	names := []string{"Read10.Simple", "Read10.Flags", "Sanitize.Overwrite", "iSCSITMF.LUNResetSimpleAsync"}
	ours := map[string]result{names[0]: {outcome: passed}, names[1]: {outcome: passed},
		names[2]: {outcome: skipped}, names[3]: {outcome: failed}}
	theirs := map[string]result{names[0]: {outcome: passed}, names[1]: {outcome: failed, why: "no DPO"},
		names[2]: {outcome: skipped}, names[3]: {outcome: hung}}
	got := string(report(names, ours, theirs, theirs, "9.9", "1.19.0"))
	for _, want := range []string{
		"| **all 4** | **2 pass 1 fail 1 skip** | **1 pass 1 fail 1 skip 1 hang** | **1 pass 1 fail 1 skip 1 hang**",
		"| Read10 | 2 pass | 1 pass 1 fail | 1 pass 1 fail |",
		"| iSCSITMF.LUNResetSimpleAsync | SAM-5",
		"| Sanitize (1) | SBC-3",
		"tgtd 9.9",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if err := unexcused("Read10.Flags", theirs["Read10.Flags"]); err == nil {
		t.Error("a failure that nothing excuses is excused")
	}
	if err := unexcused("Sanitize.Overwrite", result{outcome: failed}); err == nil {
		t.Error("a skip's excuse covers a failure")
	}
}
