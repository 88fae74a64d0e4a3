package recovery

import (
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/store/btrfs"
	"github.com/cleave-san/cleave/lun/store/vss"
)

// keptEdits are the changes of Btrfs volumes: those of one are one.
type keptEdits map[*open.Keeper]*btrfs.Edit

// show has the disks show a snapshot that its volume keeps inside itself. Those of
// Btrfs are shown after patch.
func (e keptEdits) show(c chosen, bases []*merged) (Recovered, error) {
	if c.kept.Subvolume == nil {
		return c.showShadow(bases)
	}
	v, k := c.kept, c.kept.Keeper
	if e[k] == nil {
		e[k] = k.Btrfs.Edit(k.Subvolumes)
	}
	if err := e[k].Revert(v.Subvolume); err != nil {
		return Recovered{}, fmt.Errorf("recover %s from %s: %w", c.volume(), c.name(), err)
	}
	return Recovered{Volume: c.volume(), VolumeUUID: v.Subvolume.ParentUUID, Snapshot: c.name(), SnapshotUUID: v.UUID}, nil
}

// patch has the disks show the changes.
func (e keptEdits) patch(bases []*merged) error {
	for k, edit := range e {
		patches, err := edit.Patches()
		if err != nil {
			return err
		}
		for _, p := range patches {
			bases[k.Disk].patch(k.Off+p.Off, p.Data)
		}
	}
	return nil
}

func (c chosen) showShadow(bases []*merged) (Recovered, error) {
	v, k := c.kept, c.kept.Keeper
	r := Recovered{Volume: c.volume(), VolumeUUID: k.Shadows.ID, Snapshot: c.name(), SnapshotUUID: v.UUID}
	s, err := k.Shadows.Open(v.Shadow)
	if err != nil {
		return Recovered{}, fmt.Errorf("recover %s from %s: %w", c.volume(), c.name(), err)
	}
	r.Exceptions, r.Preserved = int(s.Blocks), s.Blocks*vss.Block
	for _, other := range k.Shadows.Copies {
		if other != v.Shadow {
			r.Discarded = append(r.Discarded, fmt.Sprintf("%s/vss%d", c.volume(), other.Number))
		}
	}
	m := bases[k.Disk]
	m.redirects = append(m.redirects, toShadow(m.base, k.Off, s))
	// The diff areas are those of the volume as it is, and none of its blocks is
	// where their lists think it is: without a catalog Windows takes them as
	// left over.
	m.patch(k.Off+vss.CatalogField, make([]byte, 8))
	return r, nil
}

// judgeKept says what a snapshot is worth that its volume keeps inside itself, and
// how many blocks it has of its own.
func judgeKept(v *open.Volume) (State, int64, error) {
	if v.Subvolume != nil {
		if v.Subvolume.Err != nil {
			return Unreadable, 0, v.Subvolume.Err
		}
		return Valid, 0, nil
	}
	vol := v.Keeper.Shadows
	n, err := vol.Count(v.Shadow)
	for _, younger := range vol.Copies[v.Shadow.Number:] {
		if younger.Err != nil && err == nil {
			err = fmt.Errorf("%s %w: %d: %w", v.Name, vss.ErrChain, younger.Number, younger.Err)
		}
	}
	if err != nil {
		return Unreadable, 0, err
	}
	return Valid, n, nil
}

func inspectKeeper(c *open.Contents, k *open.Keeper) KeeperReport {
	if k.Btrfs != nil {
		return inspectBtrfs(c, k)
	}
	out := KeeperReport{Volume: c.KeeperName(k), UUID: k.Shadows.ID, Kind: "vss", Version: k.Shadows.Version, Size: k.Len}
	for _, v := range c.Kept(k) {
		s := SnapshotReport{Volume: v.Name, UUID: v.UUID, Origin: out.Volume, Kind: out.Kind, Created: v.Created, ChunkSize: vss.Block, Set: v.Shadow.Set, Machine: v.Shadow.Machine}
		state, n, err := judgeKept(v)
		if s.State = state; err != nil {
			s.Reason = err.Error()
		}
		s.Exceptions, s.Preserved = int(n), n*vss.Block
		out.Snapshots = append(out.Snapshots, s)
	}
	return out
}

func inspectBtrfs(c *open.Contents, k *open.Keeper) KeeperReport {
	out := KeeperReport{Volume: c.KeeperName(k), UUID: k.Btrfs.UUID(), Kind: "btrfs", Label: k.Btrfs.Label(), Size: k.Btrfs.Size()}
	for _, v := range c.Kept(k) {
		s := v.Subvolume
		r := SubvolumeReport{Volume: v.Name, ID: s.ID, UUID: s.UUID, ParentUUID: s.ParentUUID, Path: s.Path, Generation: s.Generation,
			Created: s.Created, ReadOnly: s.ReadOnly, Default: s.Default, State: Valid}
		if pick, ok := keptBy(c, v); ok {
			r.Origin = pick.of
		}
		if s.Err != nil {
			r.State, r.Reason = Unreadable, s.Err.Error()
		}
		out.Subvolumes = append(out.Subvolumes, r)
	}
	return out
}

// verifyKept is verify of a snapshot that its volume keeps inside itself.
func verifyKept(c *open.Contents, vol *open.Volume, v Verdict) Verdict {
	v.VolumeName = c.KeeperName(vol.Keeper)
	id := ""
	if vol.Subvolume != nil {
		if pick, ok := keptBy(c, vol); ok {
			id, v.VolumeName = vol.Subvolume.ParentUUID, pick.of
		}
	} else {
		id = vol.Keeper.Shadows.ID
	}
	if !sameGUID(id, v.Volume) {
		v.Reason = fmt.Sprintf("%s is a snapshot of %s (%s), not of %s", vol.Name, v.VolumeName, id, v.Volume)
		return v
	}
	state, n, err := judgeKept(vol)
	if v.State = state; err != nil {
		v.Reason = fmt.Sprintf("%s: %v", vol.Name, err)
		return v
	}
	v.OK, v.Exceptions, v.Preserved = true, int(n), n*vss.Block
	return v
}

func sameGUID(a, b string) bool {
	bare := func(s string) string { return strings.ReplaceAll(strings.Trim(s, "{}"), "-", "") }
	return strings.EqualFold(bare(a), bare(b))
}

// toShadow redirects a volume at off of base to its shadow copy, which lies in the
// same volume.
func toShadow(base lun.Device, off int64, s *vss.Snapshot) redirected {
	return redirected{off, s.Size(), func(rel int64) (lun.Device, int64, int64) {
		p, err := s.Locate(rel)
		switch {
		case err != nil:
			return failing{err, s.Size()}, rel, s.Size() - rel
		case p.Zero:
			return zeroes(s.Size()), rel, p.Run
		case p.At == rel:
			return nil, 0, p.Run
		}
		return base, off + p.At, p.Run
	}}
}

// zeroes is a read-only device of that many of them.
type zeroes int64

func (z zeroes) Size() int64                           { return int64(z) }
func (z zeroes) Sync() error                           { return nil }
func (z zeroes) WriteAt([]byte, int64) (int, error)    { return 0, lun.ErrReadOnly }
func (z zeroes) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

func (z zeroes) Extents(off, n int64, fn func(lun.Extent) error) error {
	return fn(lun.Extent{Off: off, Len: n, Hole: true})
}

// failing can't be read, for a reason.
type failing struct {
	err  error
	size int64
}

func (f failing) Size() int64                        { return f.size }
func (f failing) Sync() error                        { return nil }
func (f failing) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (f failing) ReadAt([]byte, int64) (int, error)  { return 0, f.err }
