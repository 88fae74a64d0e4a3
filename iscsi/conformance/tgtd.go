package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tgtd is a running tgtd with a writable LUN 1 and a read-only LUN 2.
type tgtd struct {
	version string
	portal  string
	control string
	cmd     *exec.Cmd
	dir     string
}

// startTgtd runs tgtd in the foreground on a port of loopback. It serves thin LUNs
// of the size of ours, in files on a tmpfs where there is one.
func startTgtd(ctx context.Context) (t *tgtd, err error) {
	t = &tgtd{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("tgtd: %w (Debian package tgt)", err), t.stop())
		}
	}()
	out, err := exec.CommandContext(ctx, "tgtd", "--version").Output()
	if err != nil {
		return t, err
	}
	t.version = strings.TrimSpace(string(out))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return t, err
	}
	t.portal = l.Addr().String()
	if err := l.Close(); err != nil {
		return t, err
	}
	base := ""
	if _, err := os.Stat("/dev/shm"); err == nil {
		base = "/dev/shm"
	}
	if t.dir, err = os.MkdirTemp(base, "cleave-tgtd-"); err != nil {
		return t, err
	}
	// tgtd names its control socket by a number up to 32767.
	t.control = strconv.Itoa(1 + os.Getpid()%32767)
	t.cmd = exec.CommandContext(ctx, "tgtd", "-f", "-C", t.control, "--iscsi", "portal="+t.portal)
	if err := t.cmd.Start(); err != nil {
		return t, err
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err = t.admin(ctx, "target", "new", "-T", iqn); err == nil {
			break
		}
		if time.Now().After(end) {
			return t, err
		}
	}
	for lun := 1; lun <= 2; lun++ {
		file := filepath.Join(t.dir, strconv.Itoa(lun))
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return t, err
		}
		if err := os.Truncate(file, lunSize); err != nil {
			return t, err
		}
		number := strconv.Itoa(lun)
		if err := t.admin(ctx, "logicalunit", "new", "--lun", number, "-b", file); err != nil {
			return t, err
		}
		if err := t.admin(ctx, "logicalunit", "update", "--lun", number, "--params",
			fmt.Sprintf("thin_provisioning=1,readonly=%d", lun-1)); err != nil {
			return t, err
		}
	}
	return t, t.admin(ctx, "target", "bind", "-I", "ALL")
}

func (t *tgtd) admin(ctx context.Context, mode, op string, args ...string) error {
	args = append([]string{"-C", t.control, "--lld", "iscsi", "--mode", mode, "--op", op, "--tid", "1"}, args...)
	if out, err := exec.CommandContext(ctx, "tgtadm", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("tgtadm %s %s: %w: %.200s", mode, op, err, out)
	}
	return nil
}

func (t *tgtd) url(test string) string {
	lun := 1
	if lunFor(test) == readOnlyLUN {
		lun = 2
	}
	return fmt.Sprintf("iscsi://%s/%s/%d", t.portal, iqn, lun)
}

// stop kills tgtd, which ignores SIGTERM while it has targets.
func (t *tgtd) stop() error {
	if t.cmd != nil && t.cmd.Process != nil {
		_ = t.cmd.Process.Kill()
		_ = t.cmd.Wait() // says that it was killed
	}
	if t.dir == "" {
		return nil
	}
	return os.RemoveAll(t.dir)
}
