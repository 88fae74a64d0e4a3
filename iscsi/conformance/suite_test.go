package main

import (
	"os/exec"
	"testing"
	"time"
)

// families have to pass without exception: what every host uses. libiscsi has no
// suite for REPORT LUNS and WRITE(6): those are tested beside package target.
var families = []string{"Read6.", "Read10.", "Read12.", "Read16.", "Write10.", "Write12.", "Write16.",
	"Inquiry.", "ReadCapacity10.", "ReadCapacity16.", "TestUnitReady.", "Mandatory."}

// TestFamilies runs libiscsi's tests of the commands that every host uses, each
// alone.
func TestFamilies(t *testing.T) {
	if _, err := exec.LookPath(tool); err != nil {
		t.Skip(tool + " is not installed (Debian package libiscsi-bin)")
	}
	p, err := serve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.srv.Close()
	names, err := list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		n := 0
		for _, name := range names {
			if !matches(name, f) {
				continue
			}
			n++
			if r := runOne(t.Context(), name, p.url(lunFor(name)), 20*time.Second); r.outcome != passed {
				t.Errorf("%s: %s %s\n%s", name, r.outcome, r.why, r.output)
			}
		}
		if n == 0 {
			t.Errorf("no test of the family %s", f)
		}
	}
}
