package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cancelAfter ends a context once it has seen n lines.
type cancelAfter struct {
	bytes.Buffer
	n      int
	cancel func()
}

func (c *cancelAfter) Write(b []byte) (int, error) {
	c.n--
	if c.n == 0 {
		c.cancel()
	}
	return c.Buffer.Write(b)
}

func TestInsert(t *testing.T) {
	socket := startPostgres(t)
	var k int
	for round := range 2 { // the second goes on where the first ended
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		record := &cancelAfter{n: 20, cancel: cancel}
		if err := (inserter{socket: socket, record: record, now: time.Now}).run(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		for line := range strings.Lines(record.String()) {
			var n int
			var began, committed int64
			if _, err := fmt.Sscan(line, &n, &began, &committed); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			k++
			if n != k || began > committed {
				t.Fatalf("round %d: line %q, want number %d", round, line, k)
			}
		}
	}
	db, err := dialPostgres(context.Background(), socket, "postgres", "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer db.close()
	rows, err := db.query("SELECT count(*), max(k), NULL FROM numbers")
	if err != nil || len(rows) != 1 || strings.Join(rows[0], " ") != fmt.Sprintf("%d %d ", k, k) {
		t.Errorf("rows %q, %v; want %d", rows, err, k)
	}
	if _, err := db.query("SELECT nothing"); err == nil || !strings.Contains(err.Error(), `column "nothing" does not exist`) {
		t.Errorf("a wrong statement: %v", err)
	}
	if _, err := db.query("SELECT 1"); err != nil {
		t.Errorf("after a wrong statement: %v", err)
	}
}

// startPostgres starts a real server, a cluster of its own, and returns its socket.
func startPostgres(t *testing.T) string {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		t.Skip("needs PostgreSQL (Debian: postgresql)")
	}
	bin := bins[len(bins)-1]
	dir, err := os.MkdirTemp("", "guestload-") // short: a socket lies in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var as *syscall.SysProcAttr
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	do := func(program string, args ...string) {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, program), args...)
		cmd.Dir, cmd.SysProcAttr = dir, as
		if out, err := cmd.Output(); err != nil {
			t.Fatalf("%s: %v: %s", program, err, out)
		}
	}
	data := filepath.Join(dir, "data")
	do("initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--no-instructions")
	do("pg_ctl", "-D", data, "-w", "-s", "-l", filepath.Join(dir, "log"), "-o", "-k "+dir+" -c listen_addresses=", "start")
	t.Cleanup(func() { do("pg_ctl", "-D", data, "-w", "-s", "-m", "immediate", "stop") })
	return filepath.Join(dir, ".s.PGSQL.5432")
}
