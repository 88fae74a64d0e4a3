//go:build lab

package mainjob

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/integration/stage"
)

// tgtd is a target that we did not write (Debian: tgt), on a port of its own.
type tgtd struct {
	t               *testing.T
	portal, control string
	targets         int
}

func startTgtd(t *testing.T) *tgtd {
	t.Helper()
	if _, err := exec.LookPath("tgtd"); err != nil {
		t.Skip("needs tgtd (Debian: tgt)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// tgtd names its control socket by a number up to 32767.
	p := &tgtd{t: t, portal: l.Addr().String(), control: strconv.Itoa(10000 + os.Getpid()%20000)}
	l.Close() //nolint:errcheck // nothing was written
	cmd := exec.Command("tgtd", "-f", "-C", p.control, "--iscsi", "portal="+p.portal)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(t.TempDir(), "tgtd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// The kernel's signal comes when the thread ends that forked: that one stays.
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait() //nolint:errcheck // killed
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // it ignores SIGTERM while it has targets
		cmd.Process.Kill() //nolint:errcheck // it may have ended by itself
		<-ended
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := p.adm("--mode sys --op show")
		if err == nil {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // between two questions
	}
}

func (p *tgtd) adm(args string) error {
	out, err := exec.Command("tgtadm", append([]string{"-C", p.control, "--lld", "iscsi"}, strings.Fields(args)...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("tgtadm %s: %w: %s", args, err, out)
	}
	return nil
}

// present serves a file as LUN 1 of a target to the VMs.
func (p *tgtd) present(target, file string) *lab.LUN {
	p.t.Helper()
	p.targets++
	tid := strconv.Itoa(p.targets)
	for _, args := range []string{
		"--mode target --op new --tid " + tid + " --targetname " + target,
		"--mode logicalunit --op new --tid " + tid + " --lun 1 --backing-store " + file,
		"--mode target --op bind --tid " + tid + " --initiator-name " + stage.Initiator,
	} {
		if err := p.adm(args); err != nil {
			p.t.Fatal(err)
		}
	}
	return &lab.LUN{Portal: p.portal, Target: target, Number: 1, Initiator: stage.Initiator}
}
