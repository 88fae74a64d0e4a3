// Package cephlab starts a small Ceph for tests: one monitor, one manager and one
// OSD on a sparse file, on ports of 127.0.0.1, without authentication. It needs
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

const conf = `[global]
fsid = 5c1a7a70-0c3e-4f1a-9b56-9a6b7ad8d3c1
mon_host = v1:%[1]s
ms_bind_msgr2 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
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
			t.Skipf("no Ceph is tested: %v (Debian: ceph-mon ceph-mgr ceph-osd ceph-common)", err)
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
	for name, text := range map[string]string{"ceph.conf": fmt.Sprintf(conf, mon, dir), "keyring": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	monmap := filepath.Join(dir, "monmap")
	c.run("monmaptool", "--create", "--fsid", "5c1a7a70-0c3e-4f1a-9b56-9a6b7ad8d3c1", "--addv", "a", "[v1:"+mon+"]", monmap)
	c.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "-c", c.conf)
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
