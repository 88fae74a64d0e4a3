// Command labvm boots one lab VM by hand and ends it on Ctrl-C.
//
//	go run ./integration/lab/cmd/labvm db --disk /tmp/db.img
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "labvm:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return errors.New("usage: labvm db|legacy|proof [--disk FILE|iscsi://PORTAL/IQN/LUN]… [--size 1G] [--wal 128M] [--canary 8M]")
	}
	v := lab.VM{Kind: lab.Kind(args[0]), Forward: []int{5432}}
	size := int64(1 << 30)
	f := flag.NewFlagSet("labvm "+args[0], flag.ContinueOnError)
	f.StringVar(&v.Name, "name", "", "the VM's name")
	f.StringVar(&v.Dir, "dir", "", "directory for sockets and logs, kept")
	f.StringVar(&v.Accel, "accel", "", "kvm or tcg")
	f.StringVar(&v.Layout.Data, "data", "", "size of vgdata/pgdata")
	f.StringVar(&v.Layout.WAL, "wal", "", "size of vgdata/pgwal")
	f.StringVar(&v.Layout.Canary, "canary", "", "size of vgdata/canary")
	f.IntVar(&v.Memory, "memory", 0, "MiB")
	bus := f.String("bus", "", "virtio-blk, scsi-hd or scsi-block, for the disks after it")
	f.Func("size", "size of a disk file that does not exist, GiB", func(s string) error {
		n, err := strconv.ParseInt(strings.TrimSuffix(s, "G"), 10, 32)
		size = n << 30
		return err
	})
	f.Func("disk", "raw file (made if missing) or iscsi://PORTAL/IQN/LUN", func(s string) error {
		d, err := disk(s, size)
		d.Bus = lab.Bus(*bus)
		v.Disks = append(v.Disks, d)
		return err
	})
	f.Func("module", "kernel module to load beside the usual ones", func(s string) error {
		v.Modules = append(v.Modules, s)
		return nil
	})
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	m, err := lab.Boot(ctx, v)
	if err != nil {
		return err
	}
	defer m.Close()
	fmt.Printf("VM %s is up (%s, %.1f s, QEMU %d)\nqmp      %s\nagent    %s\nconsole  %s\nrecord   %s\nsql      psql -h 127.0.0.1 -p %s -U postgres\n",
		m.Name(), m.Accel(), m.BootTime().Seconds(), m.PID(), m.QMPSocket(), m.AgentSocket(), m.ConsoleLog(), m.Record(),
		strings.TrimPrefix(m.Addr(5432), "127.0.0.1:"))
	fmt.Println("each line of standard input is a shell script for the guest; Ctrl-C shuts the VM down")
	go shell(ctx, m)
	select {
	case <-ctx.Done():
	case <-m.Done():
		return errors.New("the VM ended by itself")
	}
	down, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return m.Shutdown(down)
}

func shell(ctx context.Context, m *lab.Machine) {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		out, err := m.Run(ctx, in.Text())
		fmt.Print(out.Stdout, out.Stderr)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

func disk(s string, size int64) (lab.Disk, error) {
	if !strings.HasPrefix(s, "iscsi://") {
		if _, err := os.Stat(s); errors.Is(err, os.ErrNotExist) {
			if err := os.WriteFile(s, nil, 0o644); err != nil {
				return lab.Disk{}, err
			}
			if err := os.Truncate(s, size); err != nil {
				return lab.Disk{}, err
			}
		}
		return lab.Disk{File: s}, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return lab.Disk{}, err
	}
	iqn, lun, ok := strings.Cut(strings.Trim(u.Path, "/"), "/")
	n, err := strconv.Atoi(lun)
	if !ok || err != nil {
		return lab.Disk{}, fmt.Errorf("%s: want iscsi://PORTAL/IQN/LUN", s)
	}
	return lab.Disk{LUN: &lab.LUN{Portal: u.Host, Target: iqn, Number: n, Initiator: "iqn.2016-04.org.example:labvm"}}, nil
}
