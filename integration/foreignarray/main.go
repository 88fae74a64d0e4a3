// Command foreignarray is an array that we did not write, for the lab: it serves
// files by gotgt, an iSCSI target in Go that holds one session at a time. Our
// initiator finds in it a target of other hands, and whoever writes a provider an
// example of one that serves LUNs:
//
//	foreignarray --provide DIR [--port 3260] CALL
//
// is a program as docs/provider-program.md has it. DIR/NAME.raw are its volumes, on a
// file system with reflinks; a snapshot is a reflink copy, and exposed by a process of
// gotgt's. It answers one call, or is kept.
//
//	foreignarray --volume disk.img --copies 2 --iqn iqn.2016-04.org.example:foreign --port 3260
//
// presents copies of a file, says one iscsi:// URL a copy and ends on SIGTERM, and its
// copies with it.
//
// gotgt listens on every address, so it runs only where there is no other
// interface than loopback: in a network namespace of its own (unshare -n). It is
// a module of its own, so that gotgt's dependencies are nobody else's.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/gostor/gotgt/pkg/config"
	_ "github.com/gostor/gotgt/pkg/port/iscsit" // registers the driver
	"github.com/gostor/gotgt/pkg/scsi"
	_ "github.com/gostor/gotgt/pkg/scsi/backingstore" // registers files
	"github.com/spf13/pflag"
)

// array is what is asked for.
type array struct {
	volume, iqn  string
	copies, port int
}

func main() {
	var a array
	var serve, provide string
	pflag.StringVar(&a.volume, "volume", "", "file to present copies of")
	pflag.StringVar(&a.iqn, "iqn", "iqn.2016-04.org.example:foreign", "name of the targets; a copy's number is added")
	pflag.IntVar(&a.copies, "copies", 1, "number of copies")
	pflag.IntVar(&a.port, "port", 3260, "port of the first copy; the others follow")
	pflag.StringVar(&serve, "serve", "", "file to serve by this process")
	pflag.StringVar(&provide, "provide", "", "directory of the volumes to be a provider of")
	child := pflag.Bool("lun", false, "serve what descriptor 3 is about")
	for _, name := range []string{"serve", "lun"} {
		_ = pflag.CommandLine.MarkHidden(name)
	}
	pflag.Parse()
	err := alone()
	if err == nil && *child {
		err = serving()
	}
	switch {
	case provide != "" && slices.Equal(pflag.Args(), []string{"describe"}): // answered anywhere
		err = store{provide, a.port}.serve(os.Stdin, os.Stdout)
	case err != nil:
	case provide != "":
		err = store{provide, a.port}.serve(os.Stdin, os.Stdout)
	case serve != "":
		err = gotgt(serve, a.iqn, a.port)
	default:
		err = a.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "foreignarray:", err)
		os.Exit(1)
	}
}

// alone refuses to run where others could connect.
func alone() error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			return fmt.Errorf("%s is up: gotgt would listen on it; use a network namespace of its own (unshare -n)", i.Name)
		}
	}
	return nil
}

var errOver = errors.New("nobody asked it to")

// run makes the copies and keeps a process for each until SIGTERM.
func (a array) run() (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "foreignarray-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ended := make(chan error, a.copies)
	for i := range a.copies {
		file := filepath.Join(dir, strconv.Itoa(i))
		if err := copyFile(file, a.volume); err != nil {
			return err
		}
		iqn, port := fmt.Sprintf("%s-%d", a.iqn, i), a.port+i
		c := exec.Command("/proc/self/exe", "--serve", file, "--iqn", iqn, "--port", strconv.Itoa(port))
		c.Stderr = os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			return err
		}
		over := make(chan struct{})
		go func() {
			ended <- fmt.Errorf("the process of %s ended: %w", iqn, errors.Join(c.Wait(), errOver))
			close(over)
		}()
		defer func() {
			_ = c.Process.Kill() // it may have ended by itself
			<-over
		}()
		if err := listens(ctx, port); err != nil {
			return err
		}
		fmt.Printf("iscsi://127.0.0.1:%d/%s/0\n", port, iqn)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}

func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, bufio.NewReader(src))
	return errors.Join(err, dst.Close())
}

// listens waits until a port answers.
func listens(ctx context.Context, port int) error {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return c.Close()
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return err
		}
	}
}

// gotgt serves a file until the process is killed.
func gotgt(file, iqn string, port int) error {
	device := uint64(port) // its identity is made of that
	c := &config.Config{
		Storages:     []config.BackendStorage{{DeviceID: device, Path: "file:" + file, Online: true}},
		ISCSIPortals: []config.ISCSIPortalInfo{{ID: 0, Portal: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}},
		ISCSITargets: map[string]config.ISCSITarget{
			iqn: {TPGTs: map[string][]uint64{"1": {0}}, LUNs: map[string]uint64{"0": device}},
		},
	}
	if err := scsi.InitSCSILUMap(c); err != nil {
		return err
	}
	d, err := scsi.NewTargetDriver("iscsi", scsi.NewSCSITargetService())
	if err != nil {
		return err
	}
	if err := d.NewTarget(iqn, c); err != nil {
		return err
	}
	return d.Run(port)
}
