//go:build lab

package iscsilab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const iqn = "iqn.2026-01.org.example.lab:disk"

// server is a `cleave lun serve` process.
type server struct {
	t      *testing.T
	cmd    *exec.Cmd
	portal string
}

// serve builds cleave and serves a sparse file.
func serve(t *testing.T, size int64) *server {
	t.Helper()
	dir := t.TempDir()
	binary, image := filepath.Join(dir, "cleave"), filepath.Join(dir, "image")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "github.com/cleave-san/cleave/plugin/cmd/cleave").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, cmd: exec.CommandContext(context.WithoutCancel(t.Context()), binary,
		"lun", "serve", image, "--portal", "127.0.0.1:0", "--iqn", iqn, "-o", "json")}
	var stderr bytes.Buffer
	s.cmd.Stderr = &stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		_, _ = io.Copy(io.Discard, out)
		if err := s.cmd.Wait(); err != nil {
			t.Errorf("the server ended with %v\n%.2000s", err, stderr.String())
		}
	})
	var said struct {
		LUNs []struct{ Portal string }
	}
	if err := json.NewDecoder(out).Decode(&said); err != nil || len(said.LUNs) != 1 {
		t.Fatalf("cleave lun serve: %v %+v", err, said)
	}
	s.portal = said.LUNs[0].Portal
	return s
}

// memory reads a line of the process's status, VmRSS or VmHWM, in bytes.
func (s *server) memory(line string) int64 {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, line+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return n << 10
		}
	}
	s.t.Fatalf("no %s in /proc", line)
	return 0
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// each is the time of one of n.
func each(d time.Duration, n int) time.Duration {
	return (d / time.Duration(n)).Round(100 * time.Nanosecond)
}
