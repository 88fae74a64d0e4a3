// Package open asks what devices hold: partition tables, volume groups that may
// span several of them, and the snapshots inside. It is the one place that
// knows all formats; a new format is named here once.
//
//	c, err := open.Probe(ctx, open.Source{Name: "disk.img", Device: dev})
//	v, err := c.Volume("vg/lv")  // or a UUID
//	v.Device.ReadAt(...)
//
// Probing reads headers, metadata text and nothing else; snapshot tables are
// read when a snapshot is opened. Nothing is written, mounted or activated.
//
// Names of volumes: "disk" is the content of the virtual disk, "p1" its first
// partition, "vg/lv" a logical volume or snapshot, "snapshot:NAME" the virtual
// disk as its container keeps it in an internal snapshot, "vss1" the oldest shadow
// copy that Windows keeps in a volume, "subvol:PATH" a subvolume or snapshot of
// Btrfs, which as a device is the volume with it as what is mounted. Where several devices were
// given, disks and partitions are numbered: "1:disk", "2:p1"; where several volumes
// have shadow copies or Btrfs, those have their volume's name before theirs: "p2/vss1".
//
// What is probed may belong to a stranger: errors of damaged input are
// *lun.FormatError, and probing is bounded in memory and time by the packages
// below. Contents may be used by several goroutines.
//
// A file that is a virtual disk may name further files. Source.Files says what
// of that is opened; vdisk.Folder is for the files beside it.
package open

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/partition"
	"github.com/cleave-san/cleave/lun/store/lvm2"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// Source is a device to probe and what to call it in messages.
type Source struct {
	Name   string
	Device lun.Device

	// Containers has the device looked at as a file that may be a virtual disk
	// (qcow2, VHDX, VMDK, VHD), whose content is then probed. It is off for the
	// disks of guests, which could write the first bytes of a container
	// themselves.
	Containers bool
	// Format is the one format that the container must be of, as in Info.Format;
	// "" is any. It is for whoever knows by what format a guest writes to it.
	Format string
	// Files opens the further files of a container: parents, extents, an
	// external data file. nil opens none.
	Files vdisk.Resolver
	// Snapshot has the container opened as it was at one of its internal
	// snapshots, by name or ID. That there is none is ErrNotFound.
	Snapshot string
	// Writable has the container opened for writes in place, with its extents
	// and its external data file; see Disk.CheckWritable. Parents are never written.
	Writable bool
}

// Disk is one source and what was found directly on it.
type Disk struct {
	Source
	Container string           // "raw", "qcow2", "vhdx", "vmdk", "vhd", whose content Device is; or "damaged", with no content
	Info      vdisk.Info       // of the container
	Table     *partition.Table // nil: not partitioned
	PVs       []*lvm2.PV

	number int        // in Contents.Disks
	file   lun.Device // the container itself
	damage error      // why it can't be read
}

// Unreadable says why the disk has no content; nil if it has.
func (d *Disk) Unreadable() error { return d.damage }

// Contents is what the sources hold together.
type Contents struct {
	Disks  []*Disk
	Groups []*lvm2.Group
	// Keepers are volumes that keep snapshots of themselves inside themselves.
	Keepers []*Keeper
	// Damage is what carries a signature and can't be read. The rest was
	// probed all the same.
	Damage []error
	// Warnings are about what is read all the same.
	Warnings []error
	// Encrypted is what can't be looked into without a key; it is in Warnings
	// as well.
	Encrypted []error

	held int // bytes of metadata text read so far

	mu     sync.Mutex
	opened []vdisk.Disk // to be closed
}

// maxHeld bounds the metadata text of all PVs together. A group of a hundred
// PVs with two full areas of 1 MiB each has 200 MiB.
const maxHeld = 256 << 20

// ErrNotFound says that no volume has the name or UUID. Compared with
// errors.Is.
var ErrNotFound = errors.New("no such volume")

// Probe looks into the sources; the caller closes the Contents. The error is only for devices that can't be
// read, sources that make no sense together, and ctx; damaged content is in
// Contents.Damage.
func Probe(ctx context.Context, sources ...Source) (_ *Contents, err error) {
	if len(sources) == 0 {
		return nil, errors.New("no device was given")
	}
	c := &Contents{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	var pvs []*lvm2.PV
	for i, s := range sources {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d := &Disk{Source: s, Container: "raw", number: i}
		err := c.enter(d)
		if err == nil {
			err = c.probeDisk(d)
		} else if c.damaged(d, err) {
			d.Container, d.damage, err = "damaged", err, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		c.Disks = append(c.Disks, d)
		pvs = append(pvs, d.PVs...)
	}
	groups, damage := lvm2.Assemble(pvs)
	c.Groups = groups
	c.Damage = append(c.Damage, damage...)
	return c, nil
}

// probeDisk reads the partition table and looks for PVs in every partition, or
// on the whole disk where there is none.
func (c *Contents) probeDisk(d *Disk) error {
	t, err := partition.Read(d.Device)
	switch {
	case err == nil:
		d.Table = t
	case errors.Is(err, lun.ErrNotFormat):
	case c.damaged(d, err):
		return nil
	default:
		return err
	}
	if t == nil || len(t.Partitions) == 0 {
		return c.probeVolume(d, "disk", 0, d.Device.Size())
	}
	for _, p := range t.Partitions {
		if err := c.probeVolume(d, fmt.Sprintf("p%d", p.Number), p.Off, p.Len); err != nil {
			return err
		}
	}
	return nil
}

// probeVolume looks for what keeps snapshots in a partition, or in the disk: a
// physical volume, or a file system.
func (c *Contents) probeVolume(d *Disk, name string, off, n int64) error {
	pv, err := lvm2.ReadPV(d.Device, off, n)
	switch {
	case err == nil:
		for _, m := range pv.MDAs {
			c.held += len(m.Text)
		}
		if c.held > maxHeld {
			return fmt.Errorf("the physical volumes up to byte %d have more than %d bytes of metadata: give fewer disks at once", off, maxHeld)
		}
		d.PVs = append(d.PVs, pv)
	case errors.Is(err, lun.ErrNotFormat):
		if err := c.probeLUKS(d, name, off, n); err != nil {
			return err
		}
		return c.probeKeeper(d, name, off, n)
	case c.damaged(d, err):
	default:
		return err
	}
	return nil
}

func (c *Contents) probeLUKS(d *Disk, name string, off, n int64) error {
	err := Encrypted(d.Device, off, n)
	var fe *lun.FormatError
	if !errors.As(err, &fe) {
		return err
	}
	err = fmt.Errorf("%s, %s: %w", d.Name, name, err)
	c.Encrypted, c.Warnings = append(c.Encrypted, err), append(c.Warnings, err)
	return nil
}

// damaged files err as damage if it is a *lun.FormatError.
func (c *Contents) damaged(d *Disk, err error) bool {
	var fe *lun.FormatError
	if !errors.As(err, &fe) {
		return false
	}
	c.Damage = append(c.Damage, fmt.Errorf("%s: %w", d.Name, err))
	return true
}

// DiskName is the volume name of disk i: "disk", or "2:disk" among several.
func (c *Contents) DiskName(i int) string { return c.prefix(i) + "disk" }

// PartitionName is the volume name of partition n of disk i.
func (c *Contents) PartitionName(i, n int) string { return fmt.Sprintf("%sp%d", c.prefix(i), n) }

func (c *Contents) prefix(i int) string {
	if len(c.Disks) < 2 {
		return ""
	}
	return fmt.Sprintf("%d:", i+1)
}

// known lists volume names for an error message.
func (c *Contents) known() string {
	var names []string
	for _, v := range c.Volumes() {
		if len(names) == 12 {
			names = append(names, "…")
			break
		}
		names = append(names, v.Name)
	}
	return strings.Join(names, ", ")
}
