package open

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/qcow2"
	"github.com/cleave-san/cleave/lun/vdisk/vhd"
	"github.com/cleave-san/cleave/lun/vdisk/vhdx"
	"github.com/cleave-san/cleave/lun/vdisk/vmdk"
)

// containers are tried in this order. VHD comes last: a fixed one is known only
// by its last sector, and any other file may end as it likes.
var containers = []struct {
	name string
	open vdisk.OpenFunc
}{
	{"qcow2", qcow2.Open},
	{"vhdx", vhdx.Open},
	{"vmdk", vmdk.Open},
	{"vhd", vhd.Open},
}

// ErrOtherFile says that a container needs a further file and it was not opened.
// Compared with errors.Is.
var ErrOtherFile = vdisk.ErrOtherFile

// Container opens the virtual disk in dev, or returns nil if it is raw. A
// *lun.FormatError says that there is one and that it can't be read.
// o.Formats is set here.
func Container(dev lun.Device, o vdisk.Options) (vdisk.Disk, error) {
	o.Formats = map[string]vdisk.OpenFunc{"vpc": vhd.Open} // QEMU's word for it
	for _, c := range containers {
		o.Formats[c.name] = c.open
	}
	for _, c := range containers {
		d, err := c.open(dev, o)
		if errors.Is(err, lun.ErrNotFormat) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return d, nil
	}
	return nil, nil
}

// maxSnapshots is how many internal snapshots of one container are volumes.
const maxSnapshots = 256

// enter replaces the disk's device by the content of its container.
func (c *Contents) enter(d *Disk) error {
	d.Info = vdisk.Info{Format: "raw", Size: d.Device.Size()}
	if !d.Containers {
		return nil
	}
	v, err := Container(d.Device, vdisk.Options{Resolver: d.Files, ReadOnly: !d.Writable, Snapshot: d.Snapshot})
	switch {
	case errors.Is(err, vdisk.ErrNoSnapshot):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case err != nil:
		return err
	case d.Format != "" && (v == nil || v.Info().Format != d.Format):
		got := "raw"
		if v != nil {
			got = v.Info().Format
			c.opened = append(c.opened, v)
		}
		return &lun.FormatError{Format: d.Format, Field: "signature", Value: got, Reason: "it is of another format than its hypervisor says"}
	case v == nil && d.Snapshot != "":
		return fmt.Errorf("%w: %w as %.80q: the disk is raw", ErrNotFound, vdisk.ErrNoSnapshot, d.Snapshot)
	case v == nil:
		return nil
	}
	c.opened = append(c.opened, v)
	d.file, d.Device, d.Info, d.Container = d.Device, v, v.Info(), v.Info().Format
	for _, w := range d.Info.Warnings {
		c.Warnings = append(c.Warnings, fmt.Errorf("%s: %w", d.Name, w))
	}
	if n := len(d.Info.Snapshots); n > maxSnapshots {
		c.Warnings = append(c.Warnings, fmt.Errorf("%s: the container has %d internal snapshots: only %d are shown", d.Name, n, maxSnapshots))
	}
	return nil
}

// Snapshots are the volumes that the container of disk i keeps of itself.
func (c *Contents) Snapshots(i int) []*Volume {
	d := c.Disks[i]
	var out []*Volume
	list := d.Info.Snapshots[:min(len(d.Info.Snapshots), maxSnapshots)]
	names := make(map[string]int)
	for _, s := range list {
		names[s.Name]++
	}
	for _, s := range list {
		called := s.Name
		if s.Name == "" || names[s.Name] > 1 {
			called = s.ID
		}
		v := &Volume{Name: c.prefix(i) + "snapshot:" + called, Kind: KindContainer, Size: s.Size}
		if s.Unix != 0 {
			v.Created = time.Unix(s.Unix, 0).UTC()
		}
		v.open = func() (lun.Device, error) { return c.openSnapshot(d, called) }
		out = append(out, v)
	}
	return out
}

// openSnapshot opens the container once more, as it was at a snapshot.
func (c *Contents) openSnapshot(d *Disk, name string) (lun.Device, error) {
	v, err := Container(d.file, vdisk.Options{Resolver: d.Files, ReadOnly: true, Snapshot: name})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened = append(c.opened, v)
	return v, nil
}

// Close closes the containers that were opened, and the further files that they
// needed. The sources stay open.
func (c *Contents) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, v := range slices.Backward(c.opened) {
		errs = append(errs, v.Close())
	}
	c.opened = nil
	return errors.Join(errs...)
}
