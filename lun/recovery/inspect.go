package recovery

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// Report is all that is on some devices, as lun inspect prints it. Its JSON is
// stable: fields are added, never changed, while Version is 1. Sizes are bytes.
type Report struct {
	Version int           `json:"version"`
	Disks   []DiskReport  `json:"disks"`
	Groups  []GroupReport `json:"volumeGroups"`
	// Keepers are volumes that keep snapshots of themselves inside themselves.
	Keepers  []KeeperReport `json:"snapshotVolumes,omitempty"`
	Findings []Finding      `json:"findings"` // damage and what was passed over; empty is good
}

// DiskReport is one source.
type DiskReport struct {
	Source     string            `json:"source"`
	Volume     string            `json:"volume"` // its name for sha256 and recover
	Container  string            `json:"container"`
	Variant    string            `json:"variant,omitempty"` // in the container's own words
	Size       int64             `json:"size"`
	Parents    []ParentReport    `json:"parents,omitempty"` // the nearest first
	Files      []string          `json:"files,omitempty"`   // further ones that hold its data, as the container names them
	Kept       []KeptReport      `json:"containerSnapshots,omitempty"`
	Scheme     string            `json:"scheme,omitempty"` // "gpt", "mbr", "" where not partitioned
	Sector     int               `json:"sector,omitempty"`
	FileSystem string            `json:"fileSystem,omitempty"` // by its signature: "ext4", "ntfs", …; of the others as well
	Partitions []PartitionReport `json:"partitions,omitempty"`
	PVs        []PVReport        `json:"physicalVolumes,omitempty"`
}

// ParentReport is a virtual disk on which another one is based.
type ParentReport struct {
	File      string `json:"file"` // as its child names it
	Container string `json:"container"`
	Size      int64  `json:"size"`
}

// KeptReport is a snapshot that a container keeps inside itself.
type KeptReport struct {
	Volume  string    `json:"volume"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created,omitzero"` // by its maker's clock
}

// PartitionReport is one partition.
type PartitionReport struct {
	Volume string `json:"volume"`
	Number int    `json:"number"`
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	Type   string `json:"type"`
	Label  string `json:"label,omitempty"`
	UUID   string `json:"uuid,omitempty"`

	FileSystem string `json:"fileSystem,omitempty"`
}

// PVReport is an LVM2 physical volume.
type PVReport struct {
	UUID   string `json:"uuid"`
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	Group  string `json:"volumeGroup,omitempty"`
	Areas  int    `json:"metadataAreas"`
}

// GroupReport is an LVM2 volume group.
type GroupReport struct {
	Name       string         `json:"name"`
	UUID       string         `json:"uuid"`
	Seqno      int64          `json:"seqno"`
	ExtentSize int64          `json:"extentSize"`
	Missing    []string       `json:"missing,omitempty"` // UUIDs of PVs on none of the sources
	Volumes    []VolumeReport `json:"volumes"`
}

// VolumeReport is a logical volume with its snapshots.
type VolumeReport struct {
	Volume    string           `json:"volume"`
	UUID      string           `json:"uuid"`
	Size      int64            `json:"size"`
	Type      string           `json:"type"` // "linear", "striped", or LVM's name of what isn't read
	Origin    string           `json:"origin,omitempty"`
	Created   time.Time        `json:"created,omitzero"` // by the guest's clock
	Readable  bool             `json:"readable"`
	Reason    string           `json:"reason,omitempty"`    // why not
	Encrypted bool             `json:"encrypted,omitempty"` // LUKS: what is in it can't be looked into
	Snapshots []SnapshotReport `json:"snapshots,omitempty"`

	FileSystem string `json:"fileSystem,omitempty"`
}

// KeeperReport is a volume with its shadow copies or subvolumes.
type KeeperReport struct {
	Volume     string            `json:"volume"`
	UUID       string            `json:"uuid"`
	Kind       string            `json:"kind"` // "vss" or "btrfs"
	Version    uint32            `json:"formatVersion,omitempty"`
	Size       int64             `json:"size"`
	Label      string            `json:"label,omitempty"`
	Snapshots  []SnapshotReport  `json:"snapshots,omitempty"`
	Subvolumes []SubvolumeReport `json:"subvolumes,omitempty"` // of Btrfs
}

// SubvolumeReport is a subvolume of Btrfs, or a snapshot of one.
type SubvolumeReport struct {
	Volume     string    `json:"volume"`
	ID         uint64    `json:"id"`
	UUID       string    `json:"uuid,omitempty"`
	ParentUUID string    `json:"parentUuid,omitempty"` // of what it is a snapshot of
	Origin     string    `json:"origin,omitempty"`     // the same as a volume, where it is there
	Path       string    `json:"path"`
	Generation uint64    `json:"generation"`
	Created    time.Time `json:"created,omitzero"` // by the guest's clock
	ReadOnly   bool      `json:"readOnly,omitempty"`
	Default    bool      `json:"default,omitempty"` // mounted where no other is asked for
	State      State     `json:"state"`
	Reason     string    `json:"reason,omitempty"`
}

// SnapshotReport is an in-guest snapshot.
type SnapshotReport struct {
	Volume      string    `json:"volume"`
	UUID        string    `json:"uuid"`
	Origin      string    `json:"origin"`
	Kind        string    `json:"kind"`              // "lvm-thick", "lvm-thin" or "vss"
	Set         string    `json:"set,omitempty"`     // of a shadow copy, the GUID of its set
	Machine     string    `json:"machine,omitempty"` // that made it
	Created     time.Time `json:"created,omitzero"`
	State       State     `json:"state"`
	Reason      string    `json:"reason,omitempty"`
	ChunkSize   int64     `json:"chunkSize"`
	StoreSize   int64     `json:"storeSize"`         // of a thin one, its own size
	Exceptions  int       `json:"exceptions"`        // of a thin one, blocks that it has, shared ones included
	Preserved   int64     `json:"preservedBytes"`    // what they hold
	UsedPercent float64   `json:"usedPercent"`       // as lvs shows it
	Merging     bool      `json:"merging,omitempty"` // lvconvert --merge has begun; the content is the same
}

// Finding is one line for the operator, with its place where it has one.
type Finding struct {
	Text   string `json:"text"`
	Format string `json:"format,omitempty"`
	Offset *int64 `json:"offset,omitempty"`
	Field  string `json:"field,omitempty"`
}

func finding(err error) Finding {
	f := Finding{Text: err.Error()}
	var fe *lun.FormatError
	if errors.As(err, &fe) {
		f.Format, f.Field = fe.Format, fe.Field
		if fe.Offset >= 0 {
			f.Offset = &fe.Offset
		}
	}
	return f
}

// Inspect describes the contents. It opens every snapshot's table to judge it;
// the error is only ctx's.
func Inspect(ctx context.Context, c *open.Contents) (*Report, error) {
	r := &Report{Version: 1, Disks: []DiskReport{}, Groups: []GroupReport{}, Findings: []Finding{}}
	owner := make(map[*lvm2.PV]string)
	for _, g := range c.Groups {
		for _, p := range g.PVs {
			if p.PV != nil {
				owner[p.PV] = g.Name
			}
		}
	}
	for _, err := range c.Damage {
		r.Findings = append(r.Findings, finding(err))
	}
	for _, err := range c.Warnings {
		r.Findings = append(r.Findings, finding(err))
	}
	for i, d := range c.Disks {
		r.Disks = append(r.Disks, inspectDisk(c, i, d, owner))
		if d.Table != nil {
			for _, err := range d.Table.Damage {
				r.Findings = append(r.Findings, finding(err))
			}
		}
	}
	for _, g := range c.Groups {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		gr := inspectGroup(g)
		r.Groups = append(r.Groups, gr)
		for _, err := range g.Damage {
			r.Findings = append(r.Findings, finding(err))
		}
		for _, p := range g.Missing() {
			r.Findings = append(r.Findings, finding(g.MissingError(g.Name, p)))
		}
		r.Findings = append(r.Findings, volumeFindings(g)...)
		for _, v := range gr.Volumes {
			for _, s := range v.Snapshots {
				if s.State != Valid {
					r.Findings = append(r.Findings, Finding{Text: s.Volume + ": " + s.Reason})
				}
			}
		}
	}
	for _, k := range c.Keepers {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		kr := inspectKeeper(c, k)
		r.Keepers = append(r.Keepers, kr)
		for _, s := range kr.Snapshots {
			if s.State != Valid {
				r.Findings = append(r.Findings, Finding{Text: s.Volume + ": " + s.Reason})
			}
		}
		for _, s := range kr.Subvolumes {
			if s.State != Valid {
				r.Findings = append(r.Findings, Finding{Text: s.Volume + ": " + s.Reason})
			}
		}
	}
	return r, nil
}

func inspectDisk(c *open.Contents, i int, d *open.Disk, owner map[*lvm2.PV]string) DiskReport {
	out := DiskReport{Source: d.Name, Volume: c.DiskName(i), Container: d.Container, Variant: d.Info.Variant, Size: d.Device.Size(), Files: d.Info.Files}
	for _, p := range d.Info.Parents {
		out.Parents = append(out.Parents, ParentReport{File: p.Name, Container: p.Format, Size: p.Size})
	}
	for _, v := range c.Snapshots(i) {
		out.Kept = append(out.Kept, KeptReport{Volume: v.Name, Size: v.Size, Created: v.Created})
	}
	if d.Table != nil {
		out.Scheme, out.Sector = string(d.Table.Scheme), d.Table.Sector
		for _, p := range d.Table.Partitions {
			name := c.PartitionName(i, p.Number)
			out.Partitions = append(out.Partitions, PartitionReport{Volume: name, Number: p.Number,
				Offset: p.Off, Size: p.Len, Type: p.Type, Label: p.Name, UUID: p.UUID, FileSystem: signature(c, name)})
		}
	}
	out.FileSystem = signature(c, out.Volume)
	for _, p := range d.PVs {
		out.PVs = append(out.PVs, PVReport{UUID: p.UUID, Offset: p.Off, Size: p.Len, Group: owner[p], Areas: len(p.MDAs)})
	}
	return out
}

// signature names what a volume holds, "" where that is not known.
func signature(c *open.Contents, volume string) string {
	v, err := c.Volume(volume)
	if err != nil {
		return ""
	}
	d, err := v.Open()
	if err != nil {
		return "" // its report says why
	}
	name, _ := open.Signature(d)
	return name
}

func inspectGroup(g *lvm2.Group) GroupReport {
	out := GroupReport{Name: g.Name, UUID: g.UUID, Seqno: g.Seqno, ExtentSize: g.ExtentSize, Volumes: []VolumeReport{}}
	for _, p := range g.Missing() {
		out.Missing = append(out.Missing, p.UUID)
	}
	for _, lv := range g.LVs {
		if !lv.Visible || lv.Role == "snapshot" {
			continue
		}
		v := VolumeReport{Volume: g.Name + "/" + lv.Name, UUID: lv.UUID, Size: lv.Size, Type: layout(lv), Created: lv.Created, Readable: true}
		if o := lv.ThinOrigin(); o != "" {
			v.Origin = g.Name + "/" + o
		}
		if d, err := g.Open(lv); err != nil {
			v.Readable, v.Reason = false, err.Error()
		} else {
			v.Encrypted = open.Encrypted(d, 0, d.Size()) != nil
			v.FileSystem, _ = open.Signature(d) // what can't be read says so elsewhere
		}
		for _, s := range g.SnapshotsOf(lv) {
			v.Snapshots = append(v.Snapshots, inspectSnapshot(g, s))
		}
		out.Volumes = append(out.Volumes, v)
	}
	return out
}

// volumeFindings is what an operator should know of the volumes of a group
// beside what their reports say: thin pools that have something wrong with them,
// and encrypted volumes.
func volumeFindings(g *lvm2.Group) []Finding {
	var out []Finding
	for _, lv := range g.LVs {
		switch {
		case lv.Role == "thin-pool":
			p, err := g.Pool(lv)
			if err == nil {
				err = p.Warning
			}
			if err != nil {
				out = append(out, finding(err))
			}
		case lv.Visible && lv.Role != "snapshot":
			d, err := g.Open(lv)
			if err != nil {
				continue // its report says why
			}
			if err := open.Encrypted(d, 0, d.Size()); err != nil {
				out = append(out, finding(fmt.Errorf("%s/%s: %w", g.Name, lv.Name, err)))
			}
		}
	}
	return out
}

// layout is the volume's type as lvs calls it.
func layout(lv *lvm2.LV) string {
	if lv.Role != "" {
		return lv.Role
	}
	for _, s := range lv.Segments {
		if len(s.Stripes) > 1 {
			return "striped"
		}
	}
	return "linear"
}

func inspectSnapshot(g *lvm2.Group, s *lvm2.Snapshot) SnapshotReport {
	out := SnapshotReport{Volume: g.Name + "/" + s.COW.Name, UUID: s.COW.UUID, Origin: g.Name + "/" + s.Origin.Name, Kind: "lvm-thick",
		Created: s.COW.Created, ChunkSize: s.Chunk, StoreSize: s.COW.Size, Merging: s.Merging}
	if s.Thin {
		out.Kind = "lvm-thin"
	}
	state, kept, err := judge(g, s)
	out.State = state
	if err != nil {
		out.Reason = err.Error()
		return out
	}
	if kept.chunk > 0 {
		out.ChunkSize = kept.chunk
	}
	out.Exceptions, out.Preserved = kept.exceptions, kept.preserved
	if kept.size > 0 {
		out.UsedPercent = math.Floor(float64(kept.used)*10000/float64(kept.size)) / 100
	}
	return out
}
