package lvm

import (
	"context"
	"fmt"
)

// Status is how a volume group is, for whoever administers it.
type Status struct {
	Volumes int // that may be split
	Free    int64
	Shared  bool
	// Snapshots are those of Cleave's that are there.
	Snapshots int
	// Problems are what the next set meets, one line each.
	Problems []string
}

// Status asks for the group, and tells what the next set would not get by with.
func (d *Driver) Status(ctx context.Context) (Status, error) {
	g, err := d.read(ctx)
	if err != nil {
		return Status{}, err
	}
	s := Status{Free: g.free, Shared: g.shared, Snapshots: len(g.snapshots(""))}
	problem := func(format string, args ...any) { s.Problems = append(s.Problems, fmt.Sprintf(format, args...)) }
	for _, v := range g.lvs {
		if !g.isVolume(v) || !v.active {
			continue
		}
		s.Volumes++
		switch {
		case v.suspended:
			problem("%s is suspended", g.path(v))
		case v.health != "":
			problem("%s is %s", g.path(v), v.health)
		case g.shared && !v.exclusive:
			problem("%s is not active exclusively here, in a shared volume group", g.path(v))
		case d.o.Method == Snapshots:
			if err := d.room(g, v); err != nil {
				problem("%v", err)
			}
		case v.is("raid1") && !g.inSync(v):
			problem("%s is in sync to %.0f%%", g.path(v), max(v.sync, 0))
		}
	}
	for _, x := range g.snapshots("") {
		if x.invalid {
			problem("snapshot %s overflowed and is invalid", g.path(x.lv))
		}
	}
	if s.Volumes == 0 {
		problem("volume group %s has no active volume", g.name)
	}
	return s, nil
}
