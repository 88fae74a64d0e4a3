package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// exposed is what a .lun says. The process that serves it holds a lock on that file
// for as long as it lives, so that nobody mistakes another process for it.
type exposed struct {
	Port     int    `json:"port"`
	IQN      string `json:"iqn"`
	Writable bool   `json:"writable"`
	pid      int
}

// expose serves a snapshot by a process of gotgt's, or lets it go on. gotgt knows
// neither masks nor read-only LUNs: whoever is in its network namespace sees it, and
// what is exposed for reading is a copy that is thrown away.
func (s store) expose(id string, writable bool) (any, error) {
	x, err := s.find(id)
	if err != nil {
		return nil, err
	}
	if writable && inUse(s.file(id, ".raw")) {
		return nil, fail("busy", "%s is open", id)
	}
	lun, err := s.exposed(id)
	if errors.Is(err, os.ErrNotExist) {
		lun = exposed{IQN: "iqn.2016-04.org.example:foreign:" + x.Tag + "." + x.Volume}
		lun.Port, err = s.freePort()
	}
	if err != nil {
		return nil, err
	}
	alive := inUse(s.file(id, ".lun"))
	if alive && (lun.Writable || !writable) {
		return lun.path(), nil
	}
	if alive { // it becomes writable: the same LUN, of another file
		if err := s.stop(id); err != nil {
			return nil, err
		}
	}
	lun.Writable = lun.Writable || writable
	if lun.Writable && x.State != "Skewed" {
		x.State = "Skewed"
		if err := s.write(x); err != nil {
			return nil, err
		}
	}
	return lun.path(), s.start(id, lun)
}

func (l exposed) path() path {
	return path{Portals: []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(l.Port))}, IQN: l.IQN, Writable: l.Writable}
}

// A .lun is what was asked for, written at once whatever length it has, and after it
// the number of the process that serves it, written by that process itself.
const factsLen = 512

// exposed reads a .lun. One that was never written whole is none.
func (s store) exposed(id string) (l exposed, err error) {
	b, err := os.ReadFile(s.file(id, ".lun"))
	if err != nil {
		return l, err
	}
	if len(b) < factsLen {
		return l, os.ErrNotExist
	}
	if err := json.Unmarshal(b[:factsLen], &l); err != nil {
		return l, err
	}
	l.pid, _ = strconv.Atoi(strings.TrimSpace(string(b[factsLen:]))) // not there yet: 0
	return l, nil
}

// serving writes the number of this process into the .lun that it was started with.
// The descriptor stays open, and with it the lock: no os.File may come to own it.
func serving() error {
	_, err := unix.Pwrite(3, fmt.Appendf(nil, "%-16d", os.Getpid()), factsLen)
	return err
}

// freePort is the first that no LUN has.
func (s store) freePort() (int, error) {
	all, err := filepath.Glob(s.file("*", ".lun"))
	if err != nil {
		return 0, err
	}
	taken := map[int]bool{}
	for _, f := range all {
		id := filepath.Base(f)
		l, err := s.exposed(id[:len(id)-len(".lun")])
		if err == nil {
			taken[l.Port] = true
		}
	}
	for p := s.port; ; p++ {
		if !taken[p] {
			return p, nil
		}
	}
}

// start begins to serve, and returns when it can be logged in to.
func (s store) start(id string, lun exposed) error {
	file := s.file(id, ".raw")
	if !lun.Writable {
		file = s.file(id, ".view")
		if err := clone(file, s.file(id, ".raw")); err != nil {
			return err
		}
	}
	lock, err := os.OpenFile(s.file(id, ".lun"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	facts, err := json.Marshal(lun)
	if err == nil {
		_, err = lock.WriteAt(fmt.Appendf(nil, "%-*s%-16s", factsLen, facts, ""), 0)
	}
	if err != nil {
		return err
	}
	// The lock is the child's as well, and a session of its own lets it outlive us.
	c := exec.Command("/proc/self/exe", "--lun", "--serve", file, "--iqn", lun.IQN, "--port", strconv.Itoa(lun.Port))
	c.ExtraFiles = []*os.File{lock}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return err
	}
	go func() { _ = c.Wait() }() // in a kept process no zombie is left
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return listens(ctx, lun.Port)
}

// stop ends the process of a LUN, if it lives.
func (s store) stop(id string) error {
	file := s.file(id, ".lun")
	for end := time.Now().Add(10 * time.Second); inUse(file); time.Sleep(10 * time.Millisecond) {
		lun, err := s.exposed(id)
		switch {
		case err != nil:
			return err
		case time.Now().After(end):
			return fmt.Errorf("process %d of %s does not end", lun.pid, id)
		case lun.pid > 1:
			if err := syscall.Kill(lun.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
	}
	return gone(os.Remove(s.file(id, ".view")))
}

// unexpose takes a LUN away.
func (s store) unexpose(id string) error {
	if _, err := s.find(id); err != nil {
		return err
	}
	if err := s.stop(id); err != nil {
		return err
	}
	return gone(os.Remove(s.file(id, ".lun")))
}
