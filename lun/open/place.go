package open

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// Place is where a virtual disk lies on devices of a host: in a file of the
// host's file system, or as a volume of the host's volume group.
type Place struct {
	// Name is what messages call the disk.
	Name string `json:"name"`
	// On are the devices, by their index among those of the host.
	On []int `json:"on"`
	// Volume is what of these holds the disk, as Contents.Volume knows it: "disk",
	// "p1", "vg/lv", a UUID.
	Volume string `json:"volume"`
	// Path is the disk's file in the volume's file system, from its root; "" means
	// the volume itself.
	Path string `json:"path,omitempty"`
	// Format is that by which the guest's hypervisor writes: "raw" or as in
	// vdisk.Info. It is never guessed, for a guest could write the first bytes of
	// another one.
	Format string `json:"format"`
}

// Host is the devices of a host on which virtual disks lie. It opens what of the
// host's is needed to reach them: each volume group and file system once. It is
// for one goroutine.
type Host struct {
	devices  []Source
	contents map[string]*Contents // by Place.On
	systems  map[string]fs.FS     // by Place.On and Place.Volume
}

// NewHost opens nothing yet. With Source.Writable in a device, what lies on it may
// be written where a file has blocks of its own.
func NewHost(devices ...Source) *Host {
	return &Host{devices: devices, contents: make(map[string]*Contents), systems: make(map[string]fs.FS)}
}

// Disks finds virtual disks, in the order of places; see Disk.
func (h *Host) Disks(ctx context.Context, places []Place) ([]Source, error) {
	var disks []Source
	for _, p := range places {
		s, err := h.Disk(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
		disks = append(disks, s)
	}
	return disks, nil
}

// Close closes what was opened of the host's, after the disks have been used. The
// devices stay open.
func (h *Host) Close() error {
	var errs []error
	for _, c := range h.contents {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Disk finds a virtual disk, as a source for Probe. The host's file systems are
// read as a mount would show them after the replay of their logs. The further
// files of a container are those of its own folder and nothing else.
func (h *Host) Disk(ctx context.Context, p Place) (Source, error) {
	c, err := h.on(ctx, p.On)
	if err != nil {
		return Source{}, err
	}
	v, err := c.Volume(p.Volume)
	if err != nil {
		return Source{}, err
	}
	writable := !slices.ContainsFunc(p.On, func(i int) bool { return !h.devices[i].Writable })
	s := Source{Name: p.Name, Writable: writable}
	if p.Format != "raw" {
		s.Containers, s.Format = true, p.Format
	}
	dev, err := v.Open()
	if err != nil {
		return Source{}, err
	}
	var under lun.Device
	if writable {
		under = c.beneath(v)
	}
	if p.Path == "" {
		s.Device = &hostedVolume{dev, under}
		return s, nil
	}
	f, err := h.system(p, dev)
	if err != nil {
		return Source{}, err
	}
	r, err := fs.Find(f, p.Path)
	if err != nil {
		return Source{}, err
	}
	if s.Device, err = openHosted(f, r, under); err != nil {
		return Source{}, fmt.Errorf("%q: %w", p.Path, err)
	}
	dir, err := fs.Find(f, path.Dir("/"+p.Path))
	if err != nil {
		return Source{}, err
	}
	s.Files = folder(f, dir, under)
	return s, nil
}

func (h *Host) on(ctx context.Context, on []int) (*Contents, error) {
	key := fmt.Sprint(on)
	if c := h.contents[key]; c != nil {
		return c, nil
	}
	var sources []Source
	for _, i := range on {
		if i < 0 || i >= len(h.devices) {
			return nil, fmt.Errorf("device %d of the host is not there", i)
		}
		s := h.devices[i]
		s.Containers, s.Format, s.Snapshot = false, "", ""
		sources = append(sources, s)
	}
	c, err := Probe(ctx, sources...)
	if err != nil {
		return nil, err
	}
	h.contents[key] = c
	return c, nil
}

// system opens the file system of a volume.
func (h *Host) system(p Place, dev lun.Device) (fs.FS, error) {
	key := fmt.Sprint(p.On, p.Volume)
	if f := h.systems[key]; f != nil {
		return f, nil
	}
	f, err := FileSystem(dev)
	if err != nil {
		return nil, fmt.Errorf("the host's volume %s: %w", p.Volume, err)
	}
	h.systems[key] = f
	return f, nil
}

// beneath is a whole disk or a partition for writing; nil for volumes that are
// not written here.
func (c *Contents) beneath(v *Volume) lun.Device {
	for i, d := range c.Disks {
		if v.Kind == KindDisk && v.Name == c.DiskName(i) {
			return d.Device
		}
		if v.Kind != KindPartition || d.Table == nil {
			continue
		}
		for _, p := range d.Table.Partitions {
			if v.Name == c.PartitionName(i, p.Number) {
				return &part{section{dev: d.Device, off: p.Off, n: p.Len}}
			}
		}
	}
	return nil
}

// folder resolves names to the regular files of a directory. Links are not
// followed.
func folder(f fs.FS, dir fs.Ref, under lun.Device) vdisk.Resolver {
	return vdisk.ResolverFunc(func(name string, readOnly bool) (lun.Device, error) {
		if err := vdisk.Plain(name); err != nil {
			return nil, err
		}
		r, err := f.Lookup(dir, name)
		if err != nil {
			return nil, err
		}
		if readOnly {
			return openHosted(f, r, nil)
		}
		return openHosted(f, r, under)
	})
}
