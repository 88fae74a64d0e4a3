//go:build lab

package rbdarray

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/rbd"
	"github.com/cleave-san/cleave/arrays/rbd/cephlab"
	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/initiator"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/lun"
)

// login opens a LUN of tgt's as the product does, with the credentials given.
func login(ctx context.Context, p driver.Path, c *mask.Credentials) (*initiator.Disk, error) {
	return initiator.Open(ctx, initiator.Options{
		Portals: p.Portals, Target: iscsi.Name(p.IQN), LUN: int(p.LUN), Initiator: "iqn.2026-01.org.example:reader",
		CHAP: c, Recovery: time.Second, Timeout: 5 * time.Second,
	})
}

// by is a driver that reads by one way. The path of the last LUN of tgt's is in last.
func by(t *testing.T, conf string, w rbd.Way, last *driver.Path) *rbd.Driver {
	t.Helper()
	d, err := rbd.New(rbd.Options{Conf: conf, Pools: []string{cephlab.Pool}, Through: w, Connect: func(ctx context.Context, p driver.Path) (lun.Device, error) {
		*last = p
		return login(ctx, p, &mask.Credentials{User: p.CHAP.User, Secret: []byte(p.CHAP.Secret)})
	}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestWays has a snapshot read, and its image written, by each way that works on
// this host: byte for byte, by nobody else, to a bounded end where the program
// dies, and with nothing left.
func TestWays(t *testing.T) {
	conf := cephlab.Start(t)
	for _, w := range []rbd.Way{rbd.StorageDaemon, rbd.TGT} {
		t.Run(string(w), func(t *testing.T) { testWay(t, conf, w) })
	}
}

// In the environment where TestInsideKernelNBD is to run: Ceph's configuration, and
// the ports of its daemons.
const (
	insideConf  = "CLEAVE_RBD_CONF"
	insidePorts = "CLEAVE_RBD_PORTS"
)

// TestKernelNBD is TestWays for rbd-nbd, in a VM whose kernel has network block
// devices.
func TestKernelNBD(t *testing.T) {
	conf := cephlab.Start(t)
	var osds struct {
		OSDs []struct {
			Address string `json:"public_addr"`
		} `json:"osds"`
	}
	if err := json.Unmarshal([]byte(ceph(t, "ceph", conf, "osd", "dump", "--format=json")), &osds); err != nil || len(osds.OSDs) != 1 {
		t.Fatal(osds, err)
	}
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	ports := port.FindAllStringSubmatch(string(text)+osds.OSDs[0].Address, -1)
	if len(ports) != 2 {
		t.Fatalf("%q: want the ports of a monitor and an OSD", ports)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	m, err := lab.Boot(ctx, lab.VM{Name: "nbdhost", Kind: lab.Proof, Memory: 768, Modules: []string{"nbd"}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	out, err := m.Run(ctx, fmt.Sprintf("cd /; %s=%s %s=%s,%s %s -test.v -test.run '^TestInsideKernelNBD$' 2>&1", insideConf, conf, insidePorts, ports[0][1], ports[1][1], exe))
	t.Log(out.Stdout)
	if err != nil || !strings.Contains(out.Stdout, "--- PASS: TestInsideKernelNBD") {
		t.Error(err)
	}
}

// port is that of an address of Ceph's daemons.
var port = regexp.MustCompile(`127\.0\.0\.1:(\d+)`)

// TestInsideKernelNBD is TestKernelNBD's part in the VM, to which the host's Ceph is
// where it is to the host.
func TestInsideKernelNBD(t *testing.T) {
	conf := os.Getenv(insideConf)
	if conf == "" {
		return // TestKernelNBD runs it
	}
	for p := range strings.SplitSeq(os.Getenv(insidePorts), ",") {
		l, err := net.Listen("tcp", "127.0.0.1:"+p)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go relay(l, "10.0.2.2:"+p)
	}
	testWay(t, conf, rbd.KernelNBD)
}

// relay passes connections on until l is closed.
func relay(l net.Listener, to string) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", to)
		if err != nil {
			near.Close()
			continue
		}
		pass := func(a, b net.Conn) {
			_, _ = io.Copy(a, b)
			a.Close()
			b.Close()
		}
		go pass(near, far)
		go pass(far, near)
	}
}

func testWay(t *testing.T, conf string, w rbd.Way) {
	var last driver.Path
	d := by(t, conf, w, &last)
	volume := driver.VolumeID(cephlab.Pool + "/" + strings.ReplaceAll(string(w), "-", "_"))
	ceph(t, "rbd", conf, "create", "--size=8M", string(volume))
	before := children(t)
	image, err := d.OpenImage(t.Context(), volume)
	if err != nil {
		t.Fatal(err)
	}
	was := make([]byte, image.Size())
	_, _ = rand.Read(was[:5<<20]) // the rest is a hole
	if _, err := image.WriteAt(was[:5<<20], 0); err != nil {
		t.Fatal(err)
	}
	if err := image.Sync(); err != nil {
		t.Fatal(err)
	}
	s, err := d.Split(t.Context(), "way", volume)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt(make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := image.(io.Closer).Close(); err != nil {
		t.Error(err)
	}
	x, err := d.Open(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	is := make([]byte, x.Size())
	if _, err := x.ReadAt(is, 0); err != nil || !bytes.Equal(is, was) {
		t.Errorf("the snapshot: %v, equal %v", err, bytes.Equal(is, was))
	}
	if _, err := x.WriteAt(is[:4096], 0); err == nil {
		t.Error("the snapshot was written to")
	}
	if w == rbd.TGT {
		wantSecret(t, last)
	}
	started := newIn(t, before)
	if len(started) != 1 {
		t.Fatalf("%d processes serve one snapshot: %v", len(started), started)
	}
	if err := syscall.Kill(started[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = x.ReadAt(is[:4096], 4<<20)
	if cached := w == rbd.KernelNBD && bytes.Equal(is[:4096], was[4<<20:][:4096]); err == nil && !cached {
		t.Error("it is read without a program that serves it")
	}
	t.Logf("FIGURE read by %s that was killed: came back after %v", w, time.Since(began).Round(time.Millisecond))
	if err := x.(io.Closer).Close(); err != nil {
		t.Error(err)
	}
	again, err := d.Open(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.(io.Closer).Close(); err != nil {
		t.Error(err)
	}
	if err := d.Delete(t.Context(), s.ID); err != nil {
		t.Error(err)
	}
	if left := newIn(t, before); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "cleave-rbd-*")); len(left) > 0 { // the pattern is good
		t.Errorf("%v are left", left)
	}
}

// wantSecret fails if a LUN lets in who has not its secret.
func wantSecret(t *testing.T, p driver.Path) {
	t.Helper()
	for who, c := range map[string]*mask.Credentials{
		"nobody":    nil,
		"a guesser": {User: p.CHAP.User, Secret: []byte("not-the-secret-1")},
	} {
		x, err := login(t.Context(), p, c)
		if !errors.Is(err, initiator.ErrAuth) {
			t.Errorf("%s: %v, want %v", who, err, initiator.ErrAuth)
		}
		if err == nil {
			_ = x.Close()
		}
	}
}

// children are the processes that this one has started and that run.
func children(t *testing.T) map[int]bool {
	t.Helper()
	pids := map[int]bool{}
	lists, _ := filepath.Glob("/proc/self/task/*/children") // the pattern is good
	for _, l := range lists {
		text, err := os.ReadFile(l)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids[pid] = true
			}
		}
	}
	return pids
}

func newIn(t *testing.T, before map[int]bool) (pids []int) {
	t.Helper()
	for pid := range children(t) {
		if !before[pid] {
			pids = append(pids, pid)
		}
	}
	return pids
}
