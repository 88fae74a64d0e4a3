package lab

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tgtdLUN presents a file as LUN 1 of tgtd (Debian: tgt), a target that we did
// not write, on a port of its own and with CHAP.
func tgtdLUN(t *testing.T, backing string) LUN {
	t.Helper()
	if _, err := exec.LookPath("tgtd"); err != nil {
		t.Skip("needs tgtd (Debian: tgt)")
	}
	if out, err := exec.Command("tgtd", "--version").Output(); err == nil {
		t.Logf("PEER tgtd %s", strings.TrimSpace(string(out)))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	portal := l.Addr().String()
	l.Close()
	// tgtd names its control socket by a number up to 32767.
	control := strconv.Itoa(10000 + os.Getpid()%20000)
	log := filepath.Join(t.TempDir(), "tgtd.log")
	p, err := startProcess("tgtd", []string{"-f", "-C", control, "--iscsi", "portal=" + portal}, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill) // it ignores SIGTERM while it has targets
	lun := LUN{Portal: portal, Target: "iqn.2016-04.org.example:lab", Number: 1,
		Initiator: "iqn.2016-04.org.example:vm", User: "someone", Secret: "twelve-chars-or-more"}
	adm := func(args string) error {
		out, err := exec.Command("tgtadm", append([]string{"-C", control, "--lld", "iscsi"}, strings.Fields(args)...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("tgtadm %s: %w: %s", args, err, out)
		}
		return nil
	}
	for deadline := time.Now().Add(30 * time.Second); adm("--mode sys --op show") != nil; {
		select {
		case <-p.done:
			t.Fatalf("tgtd ended: %s", tail(log, 3))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("tgtd does not answer: %s", tail(log, 3))
		}
	}
	for _, args := range []string{
		"--mode target --op new --tid 1 --targetname " + lun.Target,
		"--mode logicalunit --op new --tid 1 --lun 1 --backing-store " + backing,
		"--mode account --op new --user " + lun.User + " --password " + lun.Secret,
		"--mode account --op bind --tid 1 --user " + lun.User,
		"--mode target --op bind --tid 1 --initiator-name " + lun.Initiator,
	} {
		if err := adm(args); err != nil {
			t.Fatal(err)
		}
	}
	return lun
}
