package worker

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/recovery/worker/sandbox"
)

// TestConfined: what no worker does is refused to one that tries.
func TestConfined(t *testing.T) {
	c, err := Confined(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v; refused: %q; missing: %q", c, c.Refused, c.Missing)
	if !c.Seccomp {
		t.Fatalf("no seccomp: %q", c.Missing)
	}
	if len(c.Allowed) > 0 || len(c.Refused) != len(attempts) {
		t.Errorf("allowed: %q", c.Allowed)
	}
}

// TestAttempts: they succeed where nothing keeps one from them, so that their
// refusal means something.
func TestAttempts(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "unconfined")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Yama, for one, lets nobody trace a parent (ptrace(2)).
	said := strings.Replace(string(out), `"trace another process"`, "", 1)
	if !strings.HasSuffix(said, "refused []\n") {
		t.Errorf("refused without confinement: %s", out)
	}
}

// unconfined tries all without confinement.
func unconfined() {
	var c Confinement
	c.try()
	fmt.Printf("refused %q\n", c.Refused)
}

// TestLandlockAlone: without the filter of system calls, too, no file is
// reached, but for the program's own.
func TestLandlockAlone(t *testing.T) {
	out, err := exec.Command("/proc/self/exe", "landlocked").CombinedOutput()
	if strings.Contains(string(out), sandbox.ErrUnsupported.Error()) {
		t.Skipf("the kernel has no Landlock: %s", out)
	}
	if err != nil || string(out) != "as it should be\n" {
		t.Errorf("%v: %s", err, out)
	}
}

func landlocked() error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, err := sandbox.Files(); err != nil {
		return err
	}
	for _, path := range []string{"/etc/passwd", "/", "/proc/self/environ", "/dev/null", "/etc"} {
		if err := closing(unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)); !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := closing(unix.Open("/tmp/cleave-landlocked", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)); !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("a new file: %w", err)
	}
	if err := unix.Exec("/bin/true", []string{"true"}, nil); !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("another program: %w", err)
	}
	return closing(unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0))
}

func landlockedMain() int {
	if err := landlocked(); err != nil {
		fmt.Println(err)
		return 1
	}
	_, _ = os.Stdout.WriteString("as it should be\n")
	return 0
}
