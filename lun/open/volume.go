package open

import (
	"fmt"
	"strings"
	"time"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/extents"
	"github.com/cleave-san/cleave/lun/store/btrfs"
	"github.com/cleave-san/cleave/lun/store/dmsnap"
	"github.com/cleave-san/cleave/lun/store/lvm2"
	"github.com/cleave-san/cleave/lun/store/vss"
)

// Kind is what a volume is.
type Kind string

const (
	KindDisk      Kind = "disk"
	KindPartition Kind = "partition"
	KindLogical   Kind = "logical volume"
	KindSnapshot  Kind = "snapshot"
	KindContainer Kind = "snapshot of the container"
	KindShadow    Kind = "shadow copy"
	KindSubvolume Kind = "subvolume"
)

// Volume is something that has content of its own and a name.
type Volume struct {
	Name, UUID string
	Kind       Kind
	Size       int64
	Created    time.Time      // zero where it isn't known
	Group      *lvm2.Group    // logical volumes and snapshots
	LV         *lvm2.LV       // logical volumes; of a thick snapshot, its store
	Snapshot   *lvm2.Snapshot // snapshots
	Keeper     *Keeper        // of shadow copies and subvolumes
	Shadow     *vss.Copy      // shadow copies
	Subvolume  *btrfs.Subvolume

	long string // the name with that of its keeper
	open func() (lun.Device, error)
}

// hasUUID compares with dashes or without, as LVM and GPT write them. LVM's
// UUIDs differ by case, GUIDs don't.
func (v *Volume) hasUUID(s string) bool {
	bare := strings.ReplaceAll(s, "-", "")
	switch {
	case bare == "":
		return false
	case v.Kind == KindShadow:
		return bareGUID(v.UUID) == bareGUID(s) || bareGUID(v.Shadow.Store) == bareGUID(s)
	case v.Kind == KindPartition, v.Kind == KindSubvolume:
		return strings.EqualFold(strings.ReplaceAll(v.UUID, "-", ""), bare)
	case v.Kind == KindSnapshot && strings.ReplaceAll(v.Snapshot.Record.UUID, "-", "") == bare:
		return true
	}
	return strings.ReplaceAll(v.UUID, "-", "") == bare
}

// bareGUID is how GUIDs compare: Windows writes them in braces, too.
func bareGUID(s string) string {
	return strings.ToLower(strings.ReplaceAll(strings.Trim(s, "{}"), "-", ""))
}

// Open returns the volume's content as a read-only device that lives until
// Contents.Close. What can't be read (an overflowed snapshot, a volume on a
// missing disk, a type not known) is an error with the reason.
func (v *Volume) Open() (lun.Device, error) {
	d, err := v.open()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.Name, err)
	}
	return d, nil
}

// Volumes lists all volumes: disks with their containers' snapshots, partitions, then logical volumes and
// snapshots as LVM shows them (hidden parts of others are not listed), then
// shadow copies and subvolumes.
func (c *Contents) Volumes() []*Volume {
	var out []*Volume
	for i, d := range c.Disks {
		out = append(out, &Volume{Name: c.DiskName(i), Kind: KindDisk, Size: d.Device.Size(),
			open: func() (lun.Device, error) { return d.Device, d.damage }})
		out = append(out, c.Snapshots(i)...)
		if d.Table == nil {
			continue
		}
		for _, p := range d.Table.Partitions {
			out = append(out, &Volume{Name: c.PartitionName(i, p.Number), UUID: p.UUID, Kind: KindPartition, Size: p.Len,
				open: func() (lun.Device, error) { return &section{d.Device, p.Off, p.Len}, nil }})
		}
	}
	for _, g := range c.Groups {
		out = append(out, groupVolumes(g)...)
	}
	for _, k := range c.Keepers {
		out = append(out, c.Kept(k)...)
	}
	return out
}

func groupVolumes(g *lvm2.Group) []*Volume {
	stores := make(map[*lvm2.LV]*lvm2.Snapshot)
	for _, s := range g.Snapshots {
		stores[s.COW] = s
	}
	var out []*Volume
	for _, lv := range g.LVs {
		v := &Volume{Name: g.Name + "/" + lv.Name, UUID: lv.UUID, Kind: KindLogical, Size: lv.Size, Created: lv.Created, Group: g, LV: lv}
		switch s := stores[lv]; {
		case s != nil:
			v.Kind, v.Snapshot, v.Size = KindSnapshot, s, s.Size()
			v.open = func() (lun.Device, error) { return openSnapshot(g, s) }
		case lv.Role == "snapshot", !lv.Visible:
			continue
		default:
			v.open = func() (lun.Device, error) { return g.Open(lv) }
		}
		out = append(out, v)
	}
	return out
}

// Store opens the exception store of a thick snapshot.
func Store(g *lvm2.Group, s *lvm2.Snapshot) (*dmsnap.Store, error) {
	if s.Thin {
		return nil, fmt.Errorf("%s/%s is a thin snapshot and has no store", g.Name, s.COW.Name)
	}
	cow, err := g.Open(s.COW)
	if err != nil {
		return nil, err
	}
	return dmsnap.Open(cow, s.Origin.Size)
}

func openSnapshot(g *lvm2.Group, s *lvm2.Snapshot) (lun.Device, error) {
	if s.Thin {
		return g.Open(s.COW)
	}
	store, err := Store(g, s)
	if err != nil {
		return nil, err
	}
	origin, err := g.Open(s.Origin)
	if err != nil {
		return nil, err
	}
	return store.Device(origin)
}

// Volume finds a volume by name or UUID. A name that several volumes have (two
// volume groups of one name) is an error that asks for the UUID.
func (c *Contents) Volume(name string) (*Volume, error) {
	var found []*Volume
	for _, v := range c.Volumes() {
		if v.Name == name || v.long == name || v.hasUUID(name) {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, c.notFound(name)
	}
	msg := ""
	for _, v := range found {
		msg += " " + v.UUID
	}
	return nil, fmt.Errorf("%w called %s alone: choose one of these by UUID:%s", ErrNotFound, name, msg)
}

func (c *Contents) notFound(name string) error {
	err := fmt.Errorf("%w as %.80q: there are %s", ErrNotFound, name, c.known())
	for _, d := range c.Damage { // it may be in what could not be read
		err = fmt.Errorf("%w (and damage: %w)", err, d)
	}
	for _, e := range c.Encrypted {
		err = fmt.Errorf("%w (%w)", err, e)
	}
	return err
}

// section is a run of a device, read-only.
type section struct {
	dev    lun.Device
	off, n int64
}

func (s *section) Size() int64                        { return s.n }
func (s *section) Sync() error                        { return nil }
func (s *section) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (s *section) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), s.n); err != nil {
		return 0, err
	}
	return s.dev.ReadAt(p, s.off+off)
}

func (s *section) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, s.n); err != nil {
		return err
	}
	return extents.As(s.dev, s.off+off, n, off, fn)
}
