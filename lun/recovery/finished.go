package recovery

import (
	"errors"
	"strings"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// completed is a recovery in place that came to its end, as the metadata says.
type completed struct {
	group        *lvm2.Group
	origin, snap string
	uuid         string // of the snapshot
}

// completedIn reads the description of a group's last change.
func completedIn(g *lvm2.Group) []completed {
	list, ok := strings.CutPrefix(g.Description, sayRecovered)
	if !ok {
		return nil
	}
	var out []completed
	for one := range strings.SplitSeq(list, ", ") {
		f := strings.Fields(one)
		if len(f) == 4 && f[1] == "from" && g.LV(f[0]) != nil {
			out = append(out, completed{g, f[0], f[2], f[3]})
		}
	}
	return out
}

// finished tells the snapshots that are still to be recovered from those that
// an earlier run has brought back and removed. Without names, only if there is
// no snapshot any more.
func finished(c *open.Contents, names []string) (left []string, done []completed) {
	var all []completed
	for _, g := range c.Groups {
		all = append(all, completedIn(g)...)
	}
	if len(names) == 0 {
		if _, err := choose(c, nil); errors.Is(err, ErrNoSnapshot) {
			return nil, all
		}
		return nil, nil
	}
	for _, name := range names {
		_, err := c.Volume(name)
		i := -1
		for k, d := range all {
			if name == d.group.Name+"/"+d.snap || sameUUID(name, d.uuid) {
				i = k
			}
		}
		if errors.Is(err, open.ErrNotFound) && i >= 0 {
			done = append(done, all[i])
			continue
		}
		left = append(left, name)
	}
	return left, done
}

// already takes a completed recovery into the answer. Which chunks it wrote is
// not known any more, so that the whole volume counts as rewritten.
func (p *InPlace) already(d completed) error {
	origin := d.group.LV(d.origin)
	var areas []lvm2.Area
	if origin.Role != "thin" { // of a thin one only metadata was written
		var err error
		if areas, err = d.group.Map(origin); err != nil {
			return err
		}
	}
	for _, a := range areas {
		p.lists[p.byPV[a.PV.PV]].add(a.Off, a.Len)
	}
	for _, gp := range d.group.PVs {
		if gp.PV == nil {
			continue
		}
		for _, m := range gp.PV.MDAs {
			p.lists[p.byPV[gp.PV]].add(m.Off, m.Size)
		}
	}
	p.Volumes = append(p.Volumes, Recovered{Volume: d.group.Name + "/" + d.origin, VolumeUUID: origin.UUID,
		Snapshot: d.group.Name + "/" + d.snap, SnapshotUUID: d.uuid})
	return nil
}
