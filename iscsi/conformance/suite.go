package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"
)

const tool = "iscsi-test-cu"

// outcome is how a test ended.
type outcome string

const (
	passed  outcome = "pass"
	failed  outcome = "FAIL"
	skipped outcome = "skip"
	hung    outcome = "HUNG"
)

type result struct {
	outcome outcome
	why     string // the line that says so
	output  string
}

// list returns the names of all tests, as Suite.Test.
func list(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, tool, "--list").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w (Debian package libiscsi-bin)", tool, err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		parts := strings.Split(strings.TrimSpace(line), ".")
		if len(parts) == 3 && parts[0] == "ALL" {
			names = append(names, parts[1]+"."+parts[2])
		}
	}
	if len(names) == 0 {
		return nil, errors.New("iscsi-test-cu lists no tests")
	}
	return names, nil
}

func matches(name, prefix string) bool {
	return strings.HasPrefix(strings.ToLower(name), strings.ToLower(prefix))
}

// The LUNs of our peer.
const (
	plainLUN    = iota // logical blocks of 512 bytes, physical ones of 4096
	readOnlyLUN        // the same, write protected
	smallLUN           // physical blocks of 512 bytes too
)

// lunFor says which LUN a test wants.
func lunFor(name string) int {
	switch {
	case strings.HasPrefix(name, "ReadOnly."):
		return readOnlyLUN
	case name == "GetLBAStatus.UnmapSingle":
		// It asks for the block after the hole and expects the answer for
		// the next physical one: right where the two are the same.
		return smallLUN
	}
	return plainLUN
}

var (
	failure   = regexp.MustCompile(`(?m)^\s*(?:\[FAILED\].*|.*\.\.\.FAILED.*)$`)
	assertion = regexp.MustCompile(`(?m)^\s*1\. .*?(\S+\.c:\d+\s.*?)(?:\[FAILED\].*)?$`)
	skip      = regexp.MustCompile(`\[SKIPPED\].*`)
	summary   = regexp.MustCompile(`(?m)^\s*tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)`)
)

// runOne runs one test.
func runOne(ctx context.Context, name string, p place, limit time.Duration) result {
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	args := slices.Concat(p.within, []string{tool, "--dataloss", "--normal", "--test=ALL." + name}, p.urls)
	cmd := exec.CommandContext(tctx, args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	r := result{output: out.String()}
	s := summary.FindStringSubmatch(r.output)
	switch {
	case tctx.Err() != nil:
		r.outcome, r.why = hung, fmt.Sprintf("not done after %v", limit)
	case s == nil:
		r.outcome, r.why = failed, fmt.Sprintf("no summary: %v: %.120s", err, lastLine(r.output))
	case s[4] != "0" || s[2] == "0":
		r.outcome, r.why = failed, strings.TrimSpace(failure.FindString(r.output))
		if m := assertion.FindStringSubmatch(r.output); m != nil && (r.why == "" || strings.Contains(r.why, m[1])) {
			r.why = strings.TrimSpace(m[1]) // it has said nothing else
		}
	case skip.MatchString(r.output):
		r.outcome, r.why = skipped, skip.FindString(r.output)
	default:
		r.outcome = passed
	}
	return r
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
