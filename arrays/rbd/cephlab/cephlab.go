// Package cephlab starts a small Ceph for tests: one monitor, one manager and one
// OSD on a sparse file, on ports of 127.0.0.1, with cephx. It needs
// root (Ceph's tools take ownership of what they make) and is for tests only.
package cephlab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Pool is the pool that is there.
const Pool = "rbd"

// Users besides admin, with capabilities for the pool.
const (
	User   = "cleave"   // those that docs/provider-rbd.md has
	Reader = "reader"   // those to read
	Nobody = "stranger" // those of another pool
)

// users are the daemons' and ours, with their capabilities for mon, osd and mgr.
var users = [][4]string{
	{"mon.", "allow *", "", ""},
	{"mgr.x", "allow profile mgr", "allow *", "allow *"},
	{"osd.0", "allow profile osd", "allow *", "allow profile osd"},
	{"client.admin", "allow *", "allow *", "allow *"},
	{"client." + User, "profile rbd", "profile rbd pool=" + Pool, "profile rbd pool=" + Pool},
	{"client." + Reader, "profile rbd-read-only", "profile rbd-read-only pool=" + Pool, ""},
	{"client." + Nobody, "profile rbd", "profile rbd pool=other", ""},
}

// users makes the keyring, which has everybody's key: what keeps users apart here
// is their capabilities. The monitor takes it over as its own list of users.
func (c cluster) users() {
	ring := filepath.Join(c.dir, "keyring")
	for i, u := range users {
		args := []string{ring, "--gen-key", "-n", u[0]}
		if i == 0 {
			args = append(args, "--create-keyring")
		}
		for j, of := range []string{"mon", "osd", "mgr"} {
			if caps := u[j+1]; caps != "" {
				args = append(args, "--cap", of, caps)
			}
		}
		c.run("ceph-authtool", args...)
	}
}

const conf = `[global]
fsid = 5c1a7a70-0c3e-4f1a-9b56-9a6b7ad8d3c1
mon_host = v1:%[1]s
ms_bind_msgr2 = false
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
public_addr = 127.0.0.1
admin_socket = %[2]s/$name.$pid.asok
run_dir = %[2]s
log_file = %[2]s/$name.log
mon_cluster_log_file = %[2]s/cluster.log
mon_data = %[2]s/mon
mgr_data = %[2]s/mgr
osd_data = %[2]s/osd
keyring = %[2]s/keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
bluestore_block_size = 8589934592
bluestore_block_create = true
osd_memory_target = 939524096
`

// Start starts a Ceph, which runs until the test ends, and returns the path of its
// ceph.conf. A host without Ceph skips the test.
func Start(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("no Ceph is tested: it needs root")
	}
	for _, p := range []string{"ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "rbd", "monmaptool"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("no Ceph is tested: %v (`make lab` installs it)", err)
		}
	}
	began := time.Now()
	dir, err := os.MkdirTemp("", "cephlab-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mon := l.Addr().String()
	l.Close()
	c := cluster{t: t, dir: dir, conf: filepath.Join(dir, "ceph.conf")}
	for _, d := range []string{"mon", "mgr", "osd"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(c.conf, []byte(fmt.Sprintf(conf, mon, dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.users()
	monmap := filepath.Join(dir, "monmap")
	c.run("monmaptool", "--create", "--fsid", "5c1a7a70-0c3e-4f1a-9b56-9a6b7ad8d3c1", "--addv", "a", "[v1:"+mon+"]", monmap)
	c.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", filepath.Join(dir, "keyring"), "-c", c.conf)
	c.start("ceph-mon", "-f", "-i", "a", "-c", c.conf)
	c.until("ceph", "mon", "dump")
	c.start("ceph-mgr", "-f", "-i", "x", "-c", c.conf)
	const osd = "2491e102-b64a-4108-b2e5-29997e16000a"
	c.until("ceph", "osd", "new", osd)
	c.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, "-c", c.conf)
	c.start("ceph-osd", "-f", "-i", "0", "-c", c.conf)
	c.run("ceph", "-c", c.conf, "osd", "set-require-min-compat-client", "mimic")
	c.run("ceph", "-c", c.conf, "osd", "pool", "create", Pool, "8")
	c.run("rbd", "-c", c.conf, "pool", "init", Pool)
	out, err := exec.Command("ceph", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("PEER %s, ready after %v", strings.TrimSpace(string(out)), time.Since(began).Round(100*time.Millisecond))
	return c.conf
}

type cluster struct {
	t         testing.TB
	dir, conf string
}

// late bounds each command.
const late = time.Minute

func (c cluster) try(program string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), late)
	defer cancel()
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return nil
}

func (c cluster) run(program string, args ...string) {
	c.t.Helper()
	if err := c.try(program, args...); err != nil {
		c.t.Fatal(err)
	}
}

// until runs a command of ceph's until it succeeds.
func (c cluster) until(program string, args ...string) {
	c.t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(late); ; <-tick.C {
		err := c.try(program, append([]string{"-c", c.conf}, args...)...)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			c.t.Fatal(err)
		}
	}
}

// start starts a daemon that ends with the test. It stays in the foreground.
func (c cluster) start(program string, args ...string) {
	c.t.Helper()
	cmd := exec.Command(program, args...)
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// Deaf is a ceph.conf like conf, whose monitor takes connections and says nothing.
func Deaf(t testing.TB, conf string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "mon_host") {
			lines[i] = "mon_host = v1:" + l.Addr().String()
		}
	}
	path := filepath.Join(t.TempDir(), "ceph.conf")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
