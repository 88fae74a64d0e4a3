package recovery

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/store/btrfs"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// ErrNoSnapshot says that there is nothing to recover: no volume on the devices
// has an in-guest snapshot. Compared with errors.Is.
var ErrNoSnapshot = errors.New("no volume has a snapshot to recover")

// ErrChoice says that it must be said which snapshots to recover. Compared with
// errors.Is; the text lists what there is.
var ErrChoice = errors.New("choose one snapshot per volume by its UUID")

// chosen is a snapshot to recover: one of LVM, or one that its volume keeps inside
// itself.
type chosen struct {
	group *lvm2.Group
	snap  *lvm2.Snapshot

	kept *open.Volume
	of   string // the volume that keeps it
}

func (c chosen) volume() string {
	if c.kept != nil {
		return c.of
	}
	return c.group.Name + "/" + c.snap.Origin.Name
}

func (c chosen) name() string {
	if c.kept != nil {
		return c.kept.Name
	}
	return c.group.Name + "/" + c.snap.COW.Name
}

// keptBy is a choice of what a volume keeps: false if that is no snapshot.
func keptBy(c *open.Contents, v *open.Volume) (chosen, bool) {
	of := c.KeeperName(v.Keeper)
	if v.Subvolume != nil {
		o := btrfs.OriginOf(v.Subvolume, v.Keeper.Subvolumes)
		if o == nil {
			return chosen{}, false
		}
		of += "/subvol:" + o.Path
	}
	return chosen{kept: v, of: of}, true
}

// choose resolves names to snapshots. Without names, every volume that has
// exactly one snapshot is recovered to it; a second one is an error even if
// only one of them is valid, since the valid one may be the wrong one.
func choose(c *open.Contents, names []string) ([]chosen, error) {
	if len(names) > 0 {
		return chooseNamed(c, names)
	}
	var out []chosen
	for _, g := range c.Groups {
		for _, lv := range g.LVs {
			snaps := g.SnapshotsOf(lv)
			switch len(snaps) {
			case 0:
			case 1:
				out = append(out, chosen{group: g, snap: snaps[0]})
			default:
				return nil, fmt.Errorf("%s/%s has %d snapshots (%s): %w", g.Name, lv.Name, len(snaps), listed(g, snaps), ErrChoice)
			}
		}
	}
	for _, k := range c.Keepers {
		snaps := make(map[string][]*open.Volume)
		for _, v := range c.Kept(k) {
			if pick, ok := keptBy(c, v); ok {
				if snaps[pick.of] = append(snaps[pick.of], v); len(snaps[pick.of]) == 1 {
					out = append(out, pick)
				}
			}
		}
		for of, kept := range snaps {
			if len(kept) > 1 {
				return nil, fmt.Errorf("%s has %d snapshots (%s): %w", of, len(kept), listedKept(kept), ErrChoice)
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.Join(slices.Concat([]error{ErrNoSnapshot}, c.Damage, c.Encrypted)...)
	}
	return out, chain(out)
}

// chain refuses to put a volume back to a snapshot that is itself put back to
// one of its own: only a thin snapshot can be both.
func chain(picks []chosen) error {
	for _, p := range picks {
		for _, q := range picks {
			if p.kept == nil && q.kept == nil && p.snap.COW == q.snap.Origin {
				return fmt.Errorf("%s is a snapshot of %s and has a snapshot itself, %s: %w", p.name(), p.volume(), q.name(), ErrChoice)
			}
		}
	}
	return nil
}

func chooseNamed(c *open.Contents, names []string) ([]chosen, error) {
	var out []chosen
	taken := make(map[any]string) // by the volume
	for _, name := range names {
		v, err := c.Volume(name)
		if err != nil {
			return nil, err
		}
		var of any
		pick := chosen{group: v.Group, snap: v.Snapshot}
		switch {
		case v.Snapshot != nil:
			of = v.Snapshot.Origin
		case v.Keeper != nil:
			var ok bool
			if pick, ok = keptBy(c, v); !ok {
				return nil, fmt.Errorf("%s is no snapshot of a subvolume that is there: %w", v.Name, ErrChoice)
			}
			of = pick.of
		default:
			return nil, fmt.Errorf("%s is a %s and no snapshot: %w", v.Name, v.Kind, ErrChoice)
		}
		if other := taken[of]; other != "" {
			return nil, fmt.Errorf("%s and %s are snapshots of one volume: %w", other, v.Name, ErrChoice)
		}
		taken[of] = v.Name
		out = append(out, pick)
	}
	return out, chain(out)
}

func listed(g *lvm2.Group, snaps []*lvm2.Snapshot) string {
	var parts []string
	for _, s := range snaps {
		part := fmt.Sprintf("%s %s", s.COW.Name, s.COW.UUID)
		if !s.COW.Created.IsZero() {
			part += s.COW.Created.Format(" of 2006-01-02T15:04:05Z")
		}
		if verdict, _, _ := judge(g, s); verdict != Valid {
			part += ", " + string(verdict)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

func listedKept(kept []*open.Volume) string {
	var parts []string
	for _, v := range kept {
		part := v.Name + " " + v.UUID
		if !v.Created.IsZero() {
			part += v.Created.Format(" of 2006-01-02T15:04:05Z")
		}
		if v.Shadow != nil && v.Shadow.Err != nil {
			part += ", " + string(Unreadable)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}
