package assemble

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain lets the test program be started as a worker, as the real one is.
func TestMain(m *testing.M) {
	if code, hidden := Hidden(os.Args[1:], os.Stdin, os.Stdout, os.Stderr); hidden {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}
