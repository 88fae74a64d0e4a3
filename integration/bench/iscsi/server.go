package iscsi

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
	"sync"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/integration/bench"
)

const (
	initiator  = "iqn.2026-01.org.example:bench"
	chapUser   = "bench"
	chapSecret = "twelve-chars-or-more"
	peerIQN    = "iqn.2026-01.org.example:peer"
	peerCHAP   = "iqn.2026-01.org.example:peer-chap"
)

// server is a target that runs.
type server struct {
	name         string
	portal, iqn  string
	lun          int
	user, secret string
	process      *exec.Cmd
	said         *lastWords
}

// lastWords is the end of what a server has written on its standard error.
type lastWords struct {
	mu  sync.Mutex
	end []byte
}

// mostWords is how much of it is kept, in bytes.
const mostWords = 4 << 10

func (w *lastWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = append(w.end, p...)
	if n := len(w.end) - mostWords; n > 0 {
		w.end = append(w.end[:0], w.end[n:]...)
	}
	return len(p), nil
}

// explain adds to an error of a server what it said.
func (s server) explain(err error) error {
	if err == nil || s.said == nil {
		return err
	}
	s.said.mu.Lock()
	defer s.said.mu.Unlock()
	return fmt.Errorf("%s: %w; its last words: %q", s.name, err, bytes.TrimSpace(s.said.end))
}

// servers are those of the family, each started when it is first needed.
type servers struct {
	memory string
	file   string
	exe    string
	secret string // file
	ours   map[bool]*server
	peer   *server
	about  string // the peer's version
	ended  []*exec.Cmd
}

// prepare makes the file that both serve, wholly allocated.
func (s *servers) prepare() error {
	if s.file != "" {
		return nil
	}
	s.ours = map[bool]*server{}
	s.secret = filepath.Join(s.memory, "iscsi.secret")
	if err := os.WriteFile(s.secret, []byte(chapSecret), 0o600); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(s.memory, "iscsi.img"))
	if err != nil {
		return err
	}
	block := bytes.Repeat([]byte("cleave!\n"), 1<<17)
	for range fileSize / len(block) {
		if _, err := f.Write(block); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	s.file = f.Name()
	return f.Close()
}

// cleave starts `cleave lun serve`, with CHAP or without. It takes the file for
// itself, so the other one ends.
func (s *servers) cleave(ctx context.Context, chap bool) (server, error) {
	if err := s.prepare(); err != nil {
		return server{}, err
	}
	if sv := s.ours[chap]; sv != nil {
		return *sv, nil
	}
	if other := s.ours[!chap]; other != nil {
		delete(s.ours, !chap)
		other.process.Process.Kill() //nolint:errcheck // it may have ended by itself
		other.process.Wait()         //nolint:errcheck // killed
	}
	if s.exe == "" {
		exe := filepath.Join(s.memory, "cleave")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", exe, "github.com/cleave-san/cleave/plugin/cmd/cleave")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return server{}, fmt.Errorf("go build: %w: %s", err, out)
		}
		s.exe = exe
	}
	portal, err := freePortal()
	if err != nil {
		return server{}, err
	}
	sv := server{name: "cleave", portal: portal, iqn: "iqn.2026-01.org.example:ours", lun: 0}
	args := []string{"lun", "serve", s.file, "--portal", portal, "--iqn", sv.iqn}
	if chap {
		sv.user, sv.secret = chapUser, chapSecret
		args = append(args, "--chap-user", chapUser, "--chap-secret-file", s.secret)
	}
	if err := s.start(&sv, s.exe, args...); err != nil {
		return server{}, err
	}
	if err := answers(ctx, portal); err != nil {
		return server{}, sv.explain(err)
	}
	s.ours[chap] = &sv
	return sv, nil
}

// tgtd starts the peer, which serves the file under two targets, one of them
// with CHAP.
func (s *servers) tgtd(ctx context.Context) (server, string, error) {
	if s.peer != nil {
		return *s.peer, s.about, nil
	}
	program, err := bench.Tool("tgtd")
	if err != nil {
		return server{}, "", err
	}
	if err := s.prepare(); err != nil {
		return server{}, "", err
	}
	version, err := bench.Output(ctx, program, "--version")
	if err != nil {
		return server{}, "", err
	}
	portal, err := freePortal()
	if err != nil {
		return server{}, "", err
	}
	sv := server{name: "tgtd", portal: portal, iqn: peerIQN, lun: 1}
	control := strconv.Itoa(10000 + os.Getpid()%20000)
	if err := s.start(&sv, program, "-f", "-C", control, "--iscsi", "portal="+portal); err != nil {
		return server{}, "", err
	}
	if err := answers(ctx, portal); err != nil {
		return server{}, "", sv.explain(err)
	}
	for _, line := range []string{
		"--mode target --op new --tid 1 --targetname " + peerIQN,
		"--mode logicalunit --op new --tid 1 --lun 1 --backing-store " + s.file,
		"--mode target --op bind --tid 1 --initiator-address ALL",
		"--mode target --op new --tid 2 --targetname " + peerCHAP,
		"--mode logicalunit --op new --tid 2 --lun 1 --backing-store " + s.file,
		"--mode target --op bind --tid 2 --initiator-address ALL",
		"--mode account --op new --user " + chapUser + " --password " + chapSecret,
		"--mode account --op bind --tid 2 --user " + chapUser,
	} {
		args := append([]string{"-C", control, "--lld", "iscsi"}, strings.Fields(line)...)
		if _, err := bench.Output(ctx, "tgtadm", args...); err != nil {
			return server{}, "", fmt.Errorf("tgtadm %s: %w", line, err)
		}
	}
	s.peer, s.about = &sv, strings.TrimSpace(version)
	return sv, s.about, nil
}

func (s *servers) start(sv *server, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	sv.said = &lastWords{}
	cmd.Stderr = sv.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	sv.process = cmd
	s.ended = append(s.ended, cmd)
	return nil
}

// close ends all servers. tgtd ignores SIGTERM while it has targets.
func (s *servers) close() error {
	for _, cmd := range s.ended {
		cmd.Process.Kill() //nolint:errcheck // it may have ended by itself
		cmd.Wait()         //nolint:errcheck // killed
	}
	if s.file == "" {
		return nil
	}
	return errors.Join(os.Remove(s.file), os.Remove(s.secret))
}

// cpu is the processor time that the server has used, in seconds.
func (s server) cpu() (float64, error) {
	used, err := bench.CPU(s.process.Process.Pid)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.name, err)
	}
	return used, nil
}

func freePortal() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// answers waits until somebody listens.
func answers(ctx context.Context, portal string) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", portal)
		if err == nil {
			return c.Close()
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("nobody answers: %w", err)
		}
	}
}
