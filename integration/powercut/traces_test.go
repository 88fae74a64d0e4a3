//go:build lab

package powercut

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// TestOtherTraces runs the power-cut tests with traces that nobody has seen, ten
// times 10,000 cut points, or CLEAVE_POWERCUT_RUNS times.
func TestOtherTraces(t *testing.T) {
	runs := 10
	if s := os.Getenv("CLEAVE_POWERCUT_RUNS"); s != "" {
		var err error
		if runs, err = strconv.Atoi(s); err != nil || runs < 1 {
			t.Fatalf("CLEAVE_POWERCUT_RUNS: %q: want a whole number", s)
		}
	}
	bin := filepath.Join(t.TempDir(), "embedded.test")
	if out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", bin, array).CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	cuts := 0
	for range runs {
		cmd := exec.CommandContext(t.Context(), bin, "-test.run", "^TestPowerCuts$", "-test.v", "-test.timeout", "30m")
		cmd.Dir = array
		cmd.Env = append(os.Environ(), "CLEAVE_POWERCUT_SEED=0")
		out, err := cmd.CombinedOutput()
		m := regexp.MustCompile(`(\d+) cuts of \d+ traces`).FindSubmatch(out)
		if err != nil || m == nil {
			t.Fatalf("%v\n%s", err, out)
		}
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		cuts += n
	}
	t.Logf("FIGURE cut points passed: %d", cuts)
}
