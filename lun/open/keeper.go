package open

import (
	"errors"
	"fmt"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/store/vss"
)

// Keeper is a volume that keeps snapshots of itself inside itself.
type Keeper struct {
	Name     string // as a volume
	Disk     int    // in Contents.Disks
	Off, Len int64  // where it lies on that, in bytes
	Device   lun.Device
	Shadows  *vss.Volume
}

// probeKeeper looks for shadow copies in a volume.
func (c *Contents) probeKeeper(d *Disk, name string, off, n int64) error {
	dev := lun.Device(&section{d.Device, off, n})
	v, err := vss.Read(dev)
	switch {
	case errors.Is(err, lun.ErrNotFormat):
		return nil
	case err != nil:
		if err = fmt.Errorf("%s: %w", name, err); c.damaged(d, err) {
			return nil
		}
		return err
	}
	if len(v.Copies) > 0 {
		c.Keepers = append(c.Keepers, &Keeper{Name: name, Disk: d.number, Off: off, Len: n, Device: dev, Shadows: v})
	}
	return nil
}

// KeeperName is the volume name of what keeps snapshots.
func (c *Contents) KeeperName(k *Keeper) string { return c.prefix(k.Disk) + k.Name }

// Kept are the snapshots that a volume keeps of itself, as volumes.
func (c *Contents) Kept(k *Keeper) []*Volume {
	var out []*Volume
	for _, s := range k.Shadows.Copies {
		short := fmt.Sprintf("vss%d", s.Number)
		v := &Volume{Name: short, long: c.KeeperName(k) + "/" + short, UUID: s.ID, Kind: KindShadow, Size: s.Size, Created: s.Created, Keeper: k, Shadow: s}
		if len(c.Keepers) > 1 {
			v.Name = v.long
		}
		v.open = func() (lun.Device, error) { return k.Shadows.Open(s) }
		out = append(out, v)
	}
	return out
}
