//go:build lab

package mainjob

import (
	"bufio"
	"flag"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// aloneKey says in the environment of a test that it is the second run.
const aloneKey = "CLEAVE_LAB_ALONE"

// alone reports whether the test runs in a network namespace of its own, where an
// array that listens on every address can be reached by nobody else. Where it does
// not, it is run in one, and the caller has nothing left to do.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(aloneKey) != "" {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(1) // nobody waits for us any more
		}()
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("a network namespace takes root")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := "^" + t.Name() + "$"
	if _, rest, ok := strings.Cut(flag.Lookup("test.run").Value.String(), "/"); ok {
		run += "/" + rest
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "-n", "sh", "-c", `ip link set lo up && exec "$@"`, "sh", self, "-test.v", "-test.timeout=0", "-test.run="+run)
	cmd.Env = append(os.Environ(), aloneKey+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe() // which closes however we end
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		// Without what would be taken for the outcome of this run.
		if l := strings.TrimSpace(lines.Text()); !strings.HasPrefix(l, "=== ") && !strings.HasPrefix(l, "--- ") && l != "PASS" && l != "FAIL" {
			t.Log(l)
		} else if strings.HasPrefix(l, "--- ") {
			t.Log(strings.TrimPrefix(l, "--- "))
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("in a network namespace of its own: %v", err)
	}
	return false
}
