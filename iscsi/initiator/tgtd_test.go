package initiator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/lun"
)

// tgtd is a target that we did not write (Debian: tgt), with LUN 1 of 16 MiB.
type tgtd struct {
	t               *testing.T
	portal, control string
	image           string
	cmd             *exec.Cmd
	chap            *mask.Credentials
}

func newTgtd(t *testing.T, chap *mask.Credentials) *tgtd {
	t.Helper()
	if _, err := exec.LookPath("tgtd"); err != nil {
		t.Skip("needs tgtd (Debian package tgt)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &tgtd{t: t, portal: l.Addr().String(), image: filepath.Join(t.TempDir(), "image"), chap: chap}
	l.Close()
	// tgtd names its control socket by a number up to 32767.
	g.control = strconv.Itoa(10000 + (os.Getpid()*7+l.Addr().(*net.TCPAddr).Port)%20000)
	g.file(g.image)
	t.Cleanup(g.kill)
	g.start("serial-1")
	return g
}

func (g *tgtd) file(path string) {
	g.t.Helper()
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 16<<20)); err != nil {
		g.t.Fatal(err)
	}
}

// kill is kill -9: it ignores SIGTERM while it has targets.
func (g *tgtd) kill() {
	if g.cmd != nil {
		_ = g.cmd.Process.Kill()
		_ = g.cmd.Wait() // says that it was killed
		g.cmd = nil
	}
}

func (g *tgtd) start(serial string) {
	g.t.Helper()
	g.cmd = exec.Command("tgtd", "-f", "-C", g.control, "--iscsi", "portal="+g.portal)
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); g.try("sys", "show") != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatal("tgtd does not answer")
		}
	}
	g.do("target", "new", "-T", string(testTarget))
	g.lun(g.image, serial)
	if c := g.chap; c != nil {
		g.do("account", "new", "--user", c.User, "--password", string(c.Secret))
		g.do("account", "bind", "--tid", "1", "--user", c.User)
		if c.MutualUser != "" {
			g.do("account", "new", "--user", c.MutualUser, "--password", string(c.MutualSecret))
			g.do("account", "bind", "--tid", "1", "--user", c.MutualUser, "--outgoing")
		}
	}
	for _, digest := range []string{"HeaderDigest", "DataDigest"} {
		g.do("target", "update", "--tid", "1", "-n", digest, "-v", "CRC32C,None")
	}
	// Else every reconnection waits the 2 s of its default.
	g.do("target", "update", "--tid", "1", "-n", "DefaultTime2Wait", "-v", "0")
	g.do("target", "bind", "--tid", "1", "-I", "ALL")
}

func (g *tgtd) lun(image, serial string) {
	g.t.Helper()
	g.do("logicalunit", "new", "--tid", "1", "--lun", "1", "-b", image)
	g.do("logicalunit", "update", "--tid", "1", "--lun", "1", "--params", "thin_provisioning=1,scsi_sn="+serial+",scsi_id="+serial)
}

func (g *tgtd) try(mode, op string, args ...string) error {
	args = append([]string{"-C", g.control, "--lld", "iscsi", "--mode", mode, "--op", op}, args...)
	if mode == "target" && op == "new" {
		args = append(args, "--tid", "1")
	}
	if out, err := exec.Command("tgtadm", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("tgtadm %s %s: %w: %s", mode, op, err, out)
	}
	return nil
}

func (g *tgtd) do(mode, op string, args ...string) {
	g.t.Helper()
	if err := g.try(mode, op, args...); err != nil {
		g.t.Fatal(err)
	}
}

func (g *tgtd) options() Options {
	return Options{Portals: []string{g.portal}, Target: testTarget, LUN: 1, Initiator: alice, CHAP: g.chap, Recovery: 20 * time.Second}
}

func TestTgtd(t *testing.T) {
	g := newTgtd(t, nil)
	for _, digests := range []Digest{DigestOnDemand, DigestRequired} {
		o := g.options()
		o.HeaderDigest, o.DataDigest = digests, digests
		d := open(t, o)
		if !strings.Contains(d.ID(), "serial-1") || d.Size() != 16<<20 {
			t.Errorf("%s, %d bytes", d.ID(), d.Size())
		}
		p := pattern(3<<20+512, byte(digests))
		mustWrite(t, d, 1<<20, p)
		if err := d.Sync(); err != nil {
			t.Error(err)
		}
		there, err := os.ReadFile(g.image)
		if err != nil || !bytes.Equal(there[1<<20:][:len(p)], p) {
			t.Fatalf("other bytes are in the file (%v)", err)
		}
		mustRead(t, d, 1<<20, p)
		if err := d.Trim(2<<20, 1<<20); err != nil {
			t.Error(err)
		}
		mustRead(t, d, 2<<20, make([]byte, 1<<20))
		if err := d.WriteZeroes(1<<20+100, 5000); err != nil {
			t.Error(err)
		}
		mustRead(t, d, 1<<20+100, make([]byte, 5000))
		mustRead(t, d, 1<<20, p[:100])
		n := int64(0)
		if err := d.Extents(0, d.Size(), func(e lun.Extent) error { n += e.Len; return nil }); err != nil || n != d.Size() {
			t.Errorf("extents: %d bytes, %v", n, err)
		}
	}
	if got, err := Discover(context.Background(), g.options()); err != nil || len(got) != 1 || got[0].Target != testTarget {
		t.Errorf("%+v %v", got, err)
	}
	if luns, err := LUNs(context.Background(), g.options()); err != nil || fmt.Sprint(luns) != "[0 1]" {
		t.Errorf("%v %v", luns, err)
	}
	o := g.options()
	o.LUN = 0
	if _, err := Open(context.Background(), o); err == nil || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("its controller was opened: %v", err)
	}
}

func TestTgtdCHAP(t *testing.T) {
	g := newTgtd(t, mutual())
	d := open(t, g.options())
	mustRead(t, d, 0, make([]byte, 512))
	o := g.options()
	o.CHAP = &mask.Credentials{User: "alice", Secret: []byte("wrong-secret-1")}
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrAuth) {
		t.Errorf("wrong secret: %v", err)
	}
	o.CHAP = mutual()
	o.CHAP.MutualSecret = []byte("wrong-secret-2")
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrAuth) {
		t.Errorf("wrong target: %v", err)
	}
}

// Cut in the middle of a write, killed and started anew, exchanged behind its
// number, taken away: what each does to requests on tgtd's LUN.
func TestTgtdTroubles(t *testing.T) {
	g := newTgtd(t, nil)
	r := newRelay(t, g.portal)
	o := g.options()
	o.Portals = []string{r.addr}
	d := open(t, o)
	p := pattern(256<<10, 11)
	r.cutAfter(20) // in the middle of the first R2T
	mustWrite(t, d, 0, p)
	if err := d.Sync(); err != nil {
		t.Errorf("nothing was acknowledged before the cut: %v", err)
	}
	r.cutAfter(100 << 10)
	mustRead(t, d, 0, p)

	mustWrite(t, d, 8<<20, p)
	g.kill()
	g.start("serial-1")
	mustRead(t, d, 0, p)
	if err := d.Sync(); !errors.Is(err, ErrCacheLost) {
		t.Errorf("sync after a restart: %v", err)
	}

	// In the session.
	other := filepath.Join(t.TempDir(), "other")
	g.file(other)
	g.do("logicalunit", "delete", "--tid", "1", "--lun", "1")
	if _, err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrNoLUN) {
		t.Errorf("taken away: %v", err)
	}
	g.lun(other, "serial-2")
	if _, err := d.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrIdentity) {
		t.Errorf("exchanged: %v", err)
	}
	if _, err := d.WriteAt(p[:512], 0); !errors.Is(err, ErrIdentity) {
		t.Errorf("exchanged: %v", err)
	}
	there, err := os.ReadFile(other)
	if err != nil || !bytes.Equal(there, make([]byte, 16<<20)) {
		t.Errorf("the wrong LUN was written to (%v)", err)
	}
}
