package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// writeReport runs the suite against ours, tgtd and gotgt and writes
// CONFORMANCE.md.
func (o *options) writeReport(ctx context.Context) error {
	names, err := list(ctx)
	if err != nil {
		return err
	}
	progress := func(who string) func(string, result) {
		n := 0
		return func(string, result) {
			if n++; n%50 == 0 || n == len(names) {
				fmt.Fprintf(os.Stderr, "%s: %d of %d\n", who, n, len(names))
			}
		}
	}
	ours := runAll(ctx, names, workers, o.limit, own, progress("ours"))
	t, err := startTgtd(ctx)
	if err != nil {
		return err
	}
	theirs := runAll(ctx, names, 1, o.limit, at(t.url), progress("tgtd"))
	if err := t.stop(); err != nil {
		return err
	}
	g, err := buildGotgt(ctx)
	if err != nil {
		return err
	}
	third := runAll(ctx, names, workers, o.limit, g.site, progress("gotgt"))
	if err := g.remove(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := firstUnexcused(names, ours); err != nil {
		return err
	}
	return os.WriteFile(o.report, report(names, ours, theirs, third, t.version, toolVersion(ctx)), 0o644)
}

// toolVersion is the Debian package's, where dpkg knows it.
func toolVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", "libiscsi-bin").Output()
	if err != nil {
		return "of unknown version"
	}
	return string(out)
}

// report makes CONFORMANCE.md.
func report(names []string, ours, theirs, third map[string]result, tgtdVersion, version string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, head, version, len(names), tgtdVersion, gotgtVersion)
	fmt.Fprintf(&b, "| | Cleave | tgtd %s | gotgt %s |\n|---|---|---|---|\n", tgtdVersion, gotgtVersion)
	fmt.Fprintf(&b, "| **all %d** | **%s** | **%s** | **%s** |\n", len(names), tally(names, ours, ""), tally(names, theirs, ""), tally(names, third, ""))
	var suites []string
	for _, n := range names {
		if s, _, _ := strings.Cut(n, "."); !slices.Contains(suites, s) {
			suites = append(suites, s)
		}
	}
	for _, s := range suites {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", s, tally(names, ours, s+"."), tally(names, theirs, s+"."), tally(names, third, s+"."))
	}
	b.WriteString("\nNo test of ours crashes, hangs, or ends a connection that it should not.\n")
	for _, part := range []struct {
		title string
		of    outcome
	}{{"What fails, and why that is right", failed}, {"What is skipped, and what excuses it", skipped}} {
		fmt.Fprintf(&b, "\n## %s\n\n| tests | clause | why |\n|---|---|---|\n", part.title)
		for i := range excuses {
			if e := &excuses[i]; e.outcome == part.of {
				fmt.Fprintf(&b, "| %s | %s | %s |\n", e.title(names), e.clause, e.reason)
			}
		}
	}
	fmt.Fprintf(&b, "\n## Where tgtd fails\n\n| test | what iscsi-test-cu says |\n|---|---|\n")
	for _, n := range names {
		if r := theirs[n]; r.outcome == failed || r.outcome == hung {
			fmt.Fprintf(&b, "| %s | %s |\n", n, strings.ReplaceAll(r.why, "|", "/"))
		}
	}
	b.WriteString(tail)
	return b.Bytes()
}

// tally counts the outcomes of the tests that begin so.
func tally(names []string, results map[string]result, prefix string) string {
	n := map[outcome]int{}
	for _, name := range names {
		if strings.HasPrefix(name, prefix) {
			n[results[name].outcome]++
		}
	}
	var parts []string
	for _, o := range []struct {
		outcome
		word string
	}{{passed, "pass"}, {failed, "fail"}, {skipped, "skip"}, {hung, "hang"}} {
		if n[o.outcome] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[o.outcome], o.word))
		}
	}
	return strings.Join(parts, " ")
}

// title names an excuse's tests: a suite with how many there are, or the test.
func (e *excuse) title(names []string) string {
	var parts []string
	for _, p := range e.tests {
		suite, whole := strings.CutSuffix(p, ".")
		if !whole {
			parts = append(parts, p)
			continue
		}
		n := 0
		for _, name := range names {
			if strings.HasPrefix(name, p) {
				n++
			}
		}
		parts = append(parts, fmt.Sprintf("%s (%d)", suite, n))
	}
	return strings.Join(parts, ", ")
}

const head = `# Conformance of the iSCSI target

Written by ` + "`make conformance`" + `; don't edit it. Measured with libiscsi's suite, ` + "`iscsi-test-cu`" + ` %s (Debian package libiscsi-bin),
each of its %d tests alone, 20 s limit:

    go run ./iscsi/conformance                       # ours, in memory; 1 if something fails that is not listed here
    go run ./iscsi/conformance -url iscsi://…/…/1    # another target

A plain ` + "`go test ./iscsi/conformance`" + ` runs all of it and fails if fewer pass than before, or if anything else fails or is skipped than
what is listed here with its reason.

Ours has three LUNs of 64 MiB: thin with physical blocks of 4 KiB for most tests, the same write-protected for ` + "`ReadOnly`" + `, and one with physical
blocks of 512 bytes for ` + "`GetLBAStatus.UnmapSingle`" + ` (which asks about the block after a hole and expects the answer for the next physical block: right
only where the two are the same). tgtd %s (Debian) serves the same sizes from files, with thin_provisioning=1, and a read-only LUN for
` + "`ReadOnly`" + `. gotgt %s (through integration/foreignarray) has one LUN and one session, in a process of its own for each test; where a
test ends the process, it counts as failed.

`

const tail = `
## Where we read the standard in a way worth knowing

- A read that the initiator announced as a write transfers nothing and ends GOOD with all of it as residual overflow; a write announced as a read is
  refused, because its data would be missing (RFC 7143 section 11.4.5.1).
- COMPARE AND WRITE and WRITE SAME whose expected data length is not exactly what the CDB takes are refused (INVALID FIELD IN CDB).
- Data-Out out of sequence ends its command with ABORTED COMMAND, DATA PHASE ERROR, and leaves the connection (RFC 7143 section 7.9).
- TARGET WARM and COLD RESET reach the LUNs that the initiator sees, and COLD RESET ends its own connection only: a mask would be worth little if
  a reset went through it.
- EXTENDED COPY reaches the LUNs that the same initiator sees on the same target, by NAA designators, and may do on either end what the initiator
  itself may do there. It is over when it is answered; RECEIVE COPY STATUS then tells how it ended. A full pool is reported as such
  (DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT), any other failure of a unit as COPY ABORTED.
- PREEMPT AND ABORT is answered when none of the victim's commands is inside the device any more, copies by way of other LUNs included (SPC-4
  section 5.12.11.2.6); if a device doesn't let go of one in time, the answer is HARDWARE ERROR and the fence must not be believed.
- Persistent reservations made with APTPL=1 survive a restart of ` + "`cleave array`" + `; they are stable before the command is answered. A LUN whose
  saved reservations are damaged is not served. Without a place to keep them (` + "`cleave lun serve`" + `) PTPL_C=0 and APTPL is refused.

Section numbers are those of SPC-4 r37, SBC-3 r36 and RFC 7143. The texts of the SCSI standards were not at hand: numbers given here were found
quoted elsewhere for the same subject, and a section that is named without a number could not be checked so.
`
