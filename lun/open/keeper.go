package open

import (
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/redo"
	"github.com/cleave-san/cleave/lun/store/btrfs"
	"github.com/cleave-san/cleave/lun/store/vss"
)

// Keeper is a volume that keeps snapshots of itself inside itself: either shadow
// copies or a Btrfs.
type Keeper struct {
	Name     string // as a volume
	Disk     int    // in Contents.Disks
	Off, Len int64  // where it lies on that, in bytes
	Device   lun.Device

	Shadows *vss.Volume

	Btrfs      *btrfs.FS
	Subvolumes []*btrfs.Subvolume
}

// probeKeeper looks for shadow copies and Btrfs in a volume.
func (c *Contents) probeKeeper(d *Disk, name string, off, n int64) error {
	k := &Keeper{Name: name, Disk: d.number, Off: off, Len: n, Device: &section{d.Device, off, n}}
	err := k.probe()
	switch {
	case errors.Is(err, lun.ErrNotFormat):
		return nil
	case err != nil:
		if err = fmt.Errorf("%s: %w", name, err); c.damaged(d, err) {
			return nil
		}
		return err
	}
	if k.Btrfs != nil && k.Btrfs.Warning != nil {
		c.Warnings = append(c.Warnings, fmt.Errorf("%s, %s: %w", d.Name, name, k.Btrfs.Warning))
	}
	if k.Btrfs != nil || len(k.Shadows.Copies) > 0 {
		c.Keepers = append(c.Keepers, k)
	}
	return nil
}

// guards are the sectors of a volume that keeps snapshots by which one can be told
// that is half written; see package redo.
var guards = []int64{vss.Guard, btrfs.Guard}

// Guard is that of this volume, a byte of its disk.
func (k *Keeper) Guard() int64 {
	if k.Btrfs != nil {
		return k.Off + btrfs.Guard
	}
	return k.Off + vss.Guard
}

func (k *Keeper) probe() (err error) {
	for _, at := range guards {
		if err := redo.Check(k.Device, at); err != nil {
			return err
		}
	}
	if k.Shadows, err = vss.Read(k.Device); !errors.Is(err, lun.ErrNotFormat) {
		return err
	}
	if k.Btrfs, err = btrfs.Open(k.Device); err != nil {
		return err
	}
	k.Subvolumes, err = k.Btrfs.Subvolumes()
	return err
}

// KeeperName is the volume name of what keeps snapshots.
func (c *Contents) KeeperName(k *Keeper) string { return c.prefix(k.Disk) + k.Name }

// Kept are the snapshots that a volume keeps of itself, as volumes; of Btrfs all
// subvolumes but the top level.
func (c *Contents) Kept(k *Keeper) []*Volume {
	alike := 0
	for _, other := range c.Keepers {
		if (other.Btrfs != nil) == (k.Btrfs != nil) {
			alike++
		}
	}
	var out []*Volume
	add := func(v *Volume) {
		v.long, v.Keeper = c.KeeperName(k)+"/"+v.Name, k
		if alike > 1 {
			v.Name = v.long
		}
		out = append(out, v)
	}
	if k.Btrfs == nil {
		for _, s := range k.Shadows.Copies {
			add(&Volume{Name: fmt.Sprintf("vss%d", s.Number), UUID: s.ID, Kind: KindShadow, Size: s.Size, Created: s.Created, Shadow: s,
				open: func() (lun.Device, error) { return k.Shadows.Open(s) }})
		}
		return out
	}
	for _, s := range k.Subvolumes {
		if s.ID != btrfs.TopLevel {
			add(&Volume{Name: "subvol:" + s.Path, UUID: s.UUID, Kind: KindSubvolume, Size: k.Len, Created: s.Created, Subvolume: s,
				open: func() (lun.Device, error) { return k.with(s) }})
		}
	}
	return out
}

// with is the volume as it is when a subvolume is mounted by default: a snapshot in
// the place of its origin, where that can be.
func (k *Keeper) with(s *btrfs.Subvolume) (lun.Device, error) {
	e := k.Btrfs.Edit(k.Subvolumes)
	err := error(btrfs.ErrNoRevert)
	if o := btrfs.OriginOf(s, k.Subvolumes); o != nil {
		err = e.Revert(s)
	}
	if errors.Is(err, btrfs.ErrNoRevert) {
		e = k.Btrfs.Edit(k.Subvolumes)
		err = nil
	}
	if err != nil {
		return nil, err
	}
	if err := e.MakeDefault(s); err != nil {
		return nil, err
	}
	patches, err := e.Patches()
	if err != nil {
		return nil, err
	}
	return &patched{k.Device, patches}, nil
}

// patched is a device of which some bytes are others, read-only.
type patched struct {
	lun.Device
	patches []btrfs.Patch
}

func (p *patched) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (p *patched) Sync() error                        { return nil }

func (p *patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.Device.ReadAt(b, off)
	for _, q := range p.patches {
		from, to := max(q.Off, off), min(q.Off+int64(len(q.Data)), off+int64(n))
		if from < to {
			copy(b[from-off:to-off], q.Data[from-q.Off:])
		}
	}
	return n, err
}
