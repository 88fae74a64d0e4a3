package assemble

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/arrays/cinder"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/rbd"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
)

// lendCommand is the hidden command of a lender: a process that reads a snapshot
// over the network for a recovered view, which outlives the control plane. It
// takes a loan on its standard input, answers with a line once it serves it as NBD
// on descriptor 3, and ends when that is closed at the other end.
const lendCommand = "lend"

// loan says what is read: a volume that Cinder has attached, or a snapshot of Ceph.
type loan struct {
	Array      ArrayConfig
	Connection cinder.Connection
	CHAPSecret string            // of Connection, which does not show it
	Snapshot   driver.SnapshotID // of type rbd
}

func (l loan) open(ctx context.Context) (lun.Device, error) {
	if l.Array.Type != typeRBD {
		return connect(ctx, l.Array, l.Connection)
	}
	d, err := openRBD(l.Array)
	if err != nil {
		return nil, err
	}
	return d.Open(ctx, l.Snapshot)
}

// lent is a device that a lender can open as well.
type lent struct {
	lun.Device
	loan loan
}

var _ lun.Lender = lent{}

// lend opens what a loan is about.
func lend(ctx context.Context, l loan) (lun.Device, error) {
	d, err := l.open(ctx)
	if err != nil {
		return nil, err
	}
	return lent{d, l}, nil
}

// Close closes the device of this process.
func (l lent) Close() error {
	if c, ok := l.Device.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Blocks implements lun.Blocker.
func (l lent) Blocks() (logical, physical int) {
	if b, ok := l.Device.(lun.Blocker); ok {
		return b.Blocks()
	}
	return 512, 512
}

// Extents implements lun.Mapper.
func (l lent) Extents(off, n int64, fn func(lun.Extent) error) error {
	if m, ok := l.Device.(lun.Mapper); ok {
		return m.Extents(off, n, fn)
	}
	if n == 0 {
		return nil
	}
	return fn(lun.Extent{Off: off, Len: n})
}

// lendLimit bounds how long a lender may take until it serves.
const lendLimit = 2 * time.Minute

// Lend implements lun.Lender.
func (l lent) Lend(ctx context.Context, conn *os.File) (_ int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("a process to read it for a recovered view: %w", err)
		}
	}()
	if l.loan.Connection.CHAP != nil {
		l.loan.CHAPSecret = string(l.loan.Connection.CHAP.Secret)
	}
	terms, err := json.Marshal(l.loan)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, lendLimit)
	defer cancel()
	cmd := exec.Command("/proc/self/exe", lendCommand)
	cmd.Stdin = strings.NewReader(string(terms) + "\n")
	cmd.ExtraFiles = []*os.File{conn}
	cmd.Env, cmd.Dir = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	says, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(io.LimitReader(says, 4096)).ReadString('\n')
	gone := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it ends with its reader
		close(gone)
	}()
	switch line = strings.TrimSpace(line); {
	case stop() && err == nil && line == "ok":
		return cmd.Process.Pid, nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case line != "":
		err = errors.New(line)
	default:
		err = fmt.Errorf("it ended: %w", err)
	}
	_ = cmd.Process.Kill() // it may have ended
	<-gone
	return 0, err
}

// lendMain is the lender's side.
func lendMain(in io.Reader, out, errs io.Writer) int {
	ctx := context.Background()
	d, conn, err := takeLoan(ctx, in)
	if err != nil {
		fmt.Fprintln(out, strings.ReplaceAll(err.Error(), "\n", " "))
		return 1
	}
	defer func() {
		if c, ok := d.(io.Closer); ok {
			_ = c.Close() // nothing was written
		}
	}()
	server, err := nbd.NewServer(nbd.ServerOptions{}, nbd.Export{Device: d, ReadOnly: true})
	if err != nil {
		fmt.Fprintln(out, err)
		return 1
	}
	fmt.Fprintln(out, "ok")
	_ = server.ServeConn(ctx, conn) // its end is the reader's
	return 0
}

// takeLoan opens what the standard input says, and takes descriptor 3.
func takeLoan(ctx context.Context, in io.Reader) (lun.Device, net.Conn, error) {
	var l loan
	if err := json.NewDecoder(io.LimitReader(in, 1<<20)).Decode(&l); err != nil {
		return nil, nil, fmt.Errorf("this is not for people: %w", err)
	}
	if l.Connection.CHAP != nil {
		l.Connection.CHAP.Secret = driver.Secret(l.CHAPSecret)
	}
	f := os.NewFile(3, "reader")
	conn, err := net.FileConn(f)
	_ = f.Close() // conn has its own
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lendLimit)
	defer cancel()
	d, err := l.open(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return d, conn, nil
}

// lentRBD opens snapshots so that they can be lent.
type lentRBD struct {
	*rbd.Driver
	config ArrayConfig
}

// Open implements driver.Opener.
func (d lentRBD) Open(ctx context.Context, s driver.SnapshotID) (lun.Device, error) {
	x, err := d.Driver.Open(ctx, s)
	if err != nil {
		return nil, err
	}
	return lent{x, loan{Array: d.config, Snapshot: s}}, nil
}
