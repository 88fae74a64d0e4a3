package rbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Way is by what images are read on this host: the program that does it.
type Way string

// The ways, the best first. Neither of the first two shows a guest's partitions
// and file systems to the host's kernel, and only the first tells holes from data.
const (
	StorageDaemon Way = "qemu-storage-daemon"
	TGT           Way = "tgt"
	KernelNBD     Way = "rbd-nbd"
)

type way struct {
	name Way
	// lacks says what this host has not, that it needs.
	lacks func(*Driver) error
	// serve opens a source; end ends the program.
	serve func(*Driver, context.Context, source) (x lun.Device, end func(), err error)
}

var ways = []way{
	{StorageDaemon, (*Driver).lacksDaemon, (*Driver).serveDaemon},
	{TGT, (*Driver).lacksTGT, (*Driver).serveTGT},
	{KernelNBD, (*Driver).lacksKernelNBD, (*Driver).serveKernelNBD},
}

// errPerhaps is of what can't be seen to be there, and may be all the same.
var errPerhaps = errors.New("it may be built in")

// source is what is served.
type source struct {
	image
	snapshot string // empty: the image itself
	readOnly bool
}

// spec is how Ceph's own tools name it.
func (s source) spec() string {
	if s.snapshot == "" {
		return s.image.String()
	}
	return s.image.String() + "@" + s.snapshot
}

// way is the one that is configured, or the first for which this host has all.
func (d *Driver) way() (*way, error) {
	var perhaps *way
	var why []string
	for i := range ways {
		w := &ways[i]
		if d.o.Through != "" && d.o.Through != w.name {
			continue
		}
		err := w.lacks(d)
		if err == nil {
			return w, nil
		}
		if errors.Is(err, errPerhaps) && perhaps == nil {
			perhaps = w
		}
		why = append(why, fmt.Sprintf("%s: %v", w.name, err))
	}
	if perhaps != nil {
		return perhaps, nil
	}
	return nil, driver.Errorf(driver.NotSupported, "this host can't read images of Ceph: %s", strings.Join(why, "; "))
}

// serve opens an image or one of its snapshots, in the way that this host has.
func (d *Driver) serve(ctx context.Context, s source) (*device, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	w, err := d.way()
	if err != nil {
		return nil, err
	}
	x, end, err := w.serve(d, ctx, s)
	if err != nil {
		return nil, driver.Errorf(d.Kind(err), "serving %s: %w", s.spec(), err)
	}
	return &device{Device: x, end: end}, nil
}

// lacksFile is for a program or module that has to be there.
func lacksFile(path, pkg string) error {
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("there is no %s (Debian: %s)", path, pkg)
	}
	return nil
}

func (d *Driver) lacksDaemon() error {
	if err := lacksFile(d.o.Daemon, "qemu-system-common"); err != nil {
		return err
	}
	for _, pattern := range []string{"/usr/lib*/*/qemu/block-rbd.so", "/usr/lib*/qemu*/block-rbd.so"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 { // the patterns are good
			return nil
		}
	}
	return fmt.Errorf("its RBD module was not found (Debian: qemu-block-extra): %w", errPerhaps)
}

func (d *Driver) lacksTGT() error {
	if d.o.Connect == nil {
		return errors.New("there is no initiator to read it by")
	}
	return cmp.Or(lacksFile(tgtd, "tgt"), lacksFile(tgtadm, "tgt"), lacksFile(tgtModule, "tgt-rbd"))
}

func (d *Driver) lacksKernelNBD() error {
	if err := lacksFile(rbdNBD, "rbd-nbd"); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("it is for root alone")
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	modules := "/lib/modules/" + unix.ByteSliceToString(u.Release[:]) + "/kernel/drivers/block/nbd.ko"
	if found, _ := filepath.Glob(modules + "*"); len(found) > 0 {
		return nil
	}
	if _, err := os.Stat("/sys/module/nbd"); err != nil {
		return errors.New("this kernel has no network block devices (module nbd)")
	}
	return nil
}
