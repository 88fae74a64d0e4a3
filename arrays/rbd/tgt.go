package rbd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

const (
	tgtd      = "/usr/sbin/tgtd"
	tgtadm    = "/usr/sbin/tgtadm"
	tgtModule = "/usr/lib/tgt/backing-store/bs_rbd.so"
	tgtPrefix = "iqn.2026-01.io.github.cleave-san:rbd."
)

// serveTGT starts a tgtd of its own, which presents the image as a LUN on this
// host's loopback: to who has a secret that is made up for it, in this process.
func (d *Driver) serveTGT(ctx context.Context, s source) (lun.Device, func(), error) {
	if s.namespace != "" {
		return nil, nil, driver.Errorf(driver.NotSupported, "tgt knows no namespaces of Ceph's")
	}
	var options []string
	for _, x := range []struct{ option, value string }{{"conf=", d.o.Conf}, {"id=", d.o.User}} {
		if strings.ContainsAny(x.value, ",;") {
			return nil, nil, driver.Errorf(driver.NotSupported, "tgt can't be told %q: it has one of , ;", x.value)
		}
		if x.value != "" {
			options = append(options, x.option+x.value)
		}
	}
	dir, err := os.MkdirTemp("", "cleave-rbd-") // for this user alone
	if err != nil {
		return nil, nil, err
	}
	t := &tgt{socket: filepath.Join(dir, "ipc")}
	c, portal, err := t.start()
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, nil, err
	}
	end := func() {
		t.end(c)
		_ = os.RemoveAll(dir)
	}
	path := driver.Path{
		Portals: []string{portal}, IQN: tgtPrefix + strings.ToLower(rand.Text()), LUN: 1, Writable: !s.readOnly,
		CHAP: &driver.CHAP{User: "cleave", Secret: driver.Secret(rand.Text())},
	}
	var x lun.Device
	err = c.until(ctx, func() error { return t.adm(ctx, "sys", "show") })
	if err == nil {
		err = t.present(ctx, path, s.spec(), strings.Join(options, ";"), s.readOnly)
	}
	if err == nil {
		x, err = d.o.Connect(ctx, path)
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	return x, end, nil
}

// tgt is a tgtd with a control socket of its own.
type tgt struct{ socket string }

func (t *tgt) env() []string { return []string{"TGT_IPC_SOCKET=" + t.socket} }

// start starts it on a port that is free now. Should somebody else have that a
// moment later, it ends, or who answers there does not know the secret.
func (t *tgt) start() (*child, string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	portal := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, "", err
	}
	c, err := start(t.env(), nil, tgtd, "-f", "--iscsi", "portal="+portal)
	return c, portal, err
}

// present makes the LUN and lets initiators come to it last.
func (t *tgt) present(ctx context.Context, p driver.Path, spec, options string, readOnly bool) error {
	unit := []string{"logicalunit", "new", "--tid=1", "--lun=1", "--bstype=rbd", "--backing-store=" + spec}
	if options != "" {
		unit = append(unit, "--bsopts="+options)
	}
	steps := [][]string{{"target", "new", "--tid=1", "--targetname=" + p.IQN}, unit}
	if readOnly {
		steps = append(steps, []string{"logicalunit", "update", "--tid=1", "--lun=1", "--params=readonly=1"})
	}
	for _, s := range steps {
		if err := t.adm(ctx, s...); err != nil {
			return err
		}
	}
	if err := t.account(ctx, *p.CHAP); err != nil {
		return err
	}
	if err := t.adm(ctx, "account", "bind", "--tid=1", "--user="+p.CHAP.User); err != nil {
		return err
	}
	return t.adm(ctx, "target", "bind", "--tid=1", "--initiator-address=127.0.0.1")
}

// end lets go of the image and ends tgtd, which heeds no signal but the last one.
func (t *tgt) end(c *child) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	select {
	case <-c.gone: // and tgtadm would wait for it
		return
	default:
	}
	if t.adm(ctx, "target", "delete", "--force", "--tid=1") != nil || t.adm(ctx, "sys", "delete") != nil {
		_ = c.cmd.Process.Kill() // it never got as far, or is stuck
	}
	c.ended()
}

// adm runs tgtadm on a mode and an operation.
func (t *tgt) adm(ctx context.Context, args ...string) error {
	mode, op := args[0], args[1]
	cmd := exec.CommandContext(ctx, tgtadm, append([]string{"--lld=iscsi", "--mode=" + mode, "--op=" + op}, args[2:]...)...)
	cmd.Env = append(t.env(), environment...)
	var says tail
	cmd.Stderr = &says
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return driver.Errorf(driver.Unreachable, "tgtadm %s %s: %s%w", mode, op, said(says), err)
	}
	if err != nil {
		return fmt.Errorf("tgtadm %s %s: %w", mode, op, err)
	}
	return nil
}
