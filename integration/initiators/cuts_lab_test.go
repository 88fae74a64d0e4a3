//go:build lab

package initiators

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/integration/toxiproxy"
)

// cutsFor is how long connections are cut at random: CLEAVE_CUTS, as "1h", or
// ten minutes.
func cutsFor(t *testing.T) time.Duration {
	t.Helper()
	v := os.Getenv("CLEAVE_CUTS")
	if v == "" {
		return 10 * time.Minute
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("CLEAVE_CUTS: %v", err)
	}
	return d
}

// TestRandomCuts has fio write and verify through the kernel's initiator and
// through QEMU's, while toxiproxy cuts their connections: at once, in the middle
// of a transfer, by a reset, or after a silence. No byte may be wrong, and no
// error may reach either.
func TestRandomCuts(t *testing.T) {
	ctx, s := newArray(t, 1)
	tp := toxiproxy.Start(t)
	portal := tp.Proxy("cut", s.Portals()[0])
	if _, err := s.Disk(ctx, "kernel", "96MiB"); err != nil {
		t.Fatal(err)
	}
	lun, err := s.Disk(ctx, "qemu", "96MiB")
	if err != nil {
		t.Fatal(err)
	}
	lun.Portal = portal
	// QEMU's session is of an initiator of its own: the same name with the same
	// ISID would reinstate the other's.
	h := newHost(ctx, t, s, lab.Disk{LUN: &lun, Bus: lab.VirtioBlk})
	h.run("pkill multipathd; sed -i 's/:hypervisor/:proof/' /etc/iscsi/initiatorname.iscsi")
	h.cleave("volume", "expose", "kernel", "--to", "iqn.2026-01.org.example:proof")
	h.run("pkill iscsid; sleep 1; iscsid")
	h.login(portal, 600)
	disk := strings.TrimSpace(h.run("ls /sys/class/iscsi_session/*/device/target*/*/block | tail -n 1"))
	long := cutsFor(t)
	loads := []*fio{
		h.startFio("kernel", "/dev/"+disk, disk),
		h.startFio("qemu", "/dev/vda", "vda"),
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	cuts := 0
	for end := time.Now().Add(long); time.Now().Before(end); cuts++ {
		switch rnd.IntN(4) {
		case 0:
			tp.Enable("cut", false)
		case 1: // in the middle of whatever is being sent
			tp.Toxic("cut", "limit_data", map[string]any{"bytes": 1 + rnd.IntN(1<<20)})
		case 2:
			tp.Toxic("cut", "reset_peer", map[string]any{"timeout": rnd.IntN(300)})
		case 3: // silence: nothing arrives, and nobody says so
			tp.Toxic("cut", "timeout", map[string]any{"timeout": 0})
		}
		time.Sleep(time.Duration(200+rnd.IntN(5000)) * time.Millisecond)
		tp.Reset()
		time.Sleep(time.Duration(500+rnd.IntN(6000)) * time.Millisecond)
		if cuts%8 == 7 {
			for _, l := range loads {
				l.goesOn()
			}
		}
	}
	for _, l := range loads {
		l.goesOn()
	}
	for _, l := range loads {
		l.ends()
	}
	t.Logf("FIGURE cuts: %d in %v", cuts, long)
	h.run("iscsiadm -m node -u")
	if err := h.try("! dmesg | grep -E 'I/O error|BUG|Oops'"); err != nil {
		t.Error(err)
	}
}

// TestDataPlaneKilled ends the data plane with SIGKILL while QEMU's initiator and
// libiscsi's own program are reading and writing: both ride through.
func TestDataPlaneKilled(t *testing.T) {
	ctx, s := newArray(t, 1)
	lun, err := s.Disk(ctx, "qemu", "96MiB")
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(ctx, t, s, lab.Disk{LUN: &lun, Bus: lab.VirtioBlk})
	load := h.startFio("qemu", "/dev/vda", "vda")
	perf := startPerf(ctx, t, h)
	for range 5 {
		load.goesOn()
		s.KillArray()
		if err := s.StartArray(ctx); err != nil {
			t.Fatal(err)
		}
		perf.goesOn()
	}
	load.goesOn()
	load.ends()
	if err := h.try("! dmesg | grep -E 'I/O error|BUG|Oops'"); err != nil {
		t.Error(err)
	}
}

// perf is libiscsi's iscsi-perf, reading at random.
type perf struct {
	*host
	out string // file that its output goes to
}

func startPerf(ctx context.Context, t *testing.T, h *host) *perf {
	t.Helper()
	const initiator = "iqn.2026-01.org.example:perf"
	lun, err := h.stage.Disk(ctx, "perf", "96MiB")
	if err != nil {
		t.Fatal(err)
	}
	user, secret := h.stage.Account()
	h.cleave("initiator", "add", initiator, "--chap-user", user, "--chap-secret-file", filepath.Join(h.stage.Dir(), "chap.secret"))
	h.cleave("volume", "expose", "perf", "--to", initiator)
	p := &perf{h, filepath.Join(h.stage.Dir(), "perf.out")}
	out, err := os.Create(p.out)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	// Its own end is not waited for: after a lost connection its count of
	// commands in flight is wrong, and it waits for it to become zero.
	cmd := exec.CommandContext(ctx, "iscsi-perf", "-i", initiator, "-t", "100000", "-m", "8", "-b", "8", "-r",
		fmt.Sprintf("iscsi://%s/%s/%d", lun.Portal, lun.Target, lun.Number))
	cmd.Env = append(os.Environ(), "LIBISCSI_CHAP_USERNAME="+user, "LIBISCSI_CHAP_PASSWORD="+secret)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended by itself
		cmd.Wait()         //nolint:errcheck // killed
	})
	t.Log("PEER libiscsi's iscsi-perf")
	return p
}

var busy = regexp.MustCompile(`iops current [1-9][0-9]+ `)

// goesOn wants it to have read more within a second, from now on.
func (p *perf) goesOn() {
	p.Helper()
	begun, err := os.ReadFile(p.out)
	if err != nil {
		p.Fatal(err)
	}
	eventually(p.T, time.Minute, "iscsi-perf goes on", func() error {
		b, err := os.ReadFile(p.out)
		if err != nil {
			return err
		}
		if more := b[len(begun):]; !busy.Match(more) {
			return fmt.Errorf("it says %.200q", more)
		}
		return nil
	})
}
