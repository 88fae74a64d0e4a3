package open

import (
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/qcow2"
	"github.com/cleave-san/cleave/lun/vdisk/vhd"
	"github.com/cleave-san/cleave/lun/vdisk/vhdx"
)

// containers are tried in this order. VHD comes last: a fixed one is known only
// by its last sector, and any other file may end as it likes.
var containers = []struct {
	name string
	open vdisk.OpenFunc
}{
	{"qcow2", qcow2.Open},
	{"vhdx", vhdx.Open},
	{"vhd", vhd.Open},
}

// Container opens the virtual disk in dev, or returns nil if it is raw. A
// *lun.FormatError says that there is one and that it can't be read.
func Container(dev lun.Device, o vdisk.Options) (vdisk.Disk, error) {
	o.Formats = make(map[string]vdisk.OpenFunc)
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

// enter replaces the disk's device by the content of its container. Containers
// that need further files are refused: only what was given is opened, so that
// there is nothing to close, either.
func (c *Contents) enter(d *Disk) error {
	if !d.Containers {
		return nil
	}
	v, err := Container(d.Device, vdisk.Options{ReadOnly: true})
	if err != nil || v == nil {
		return err
	}
	i := v.Info()
	d.Device, d.Container = v, i.Format
	for _, w := range i.Warnings {
		c.Warnings = append(c.Warnings, fmt.Errorf("%s: %w", d.Name, w))
	}
	return nil
}
