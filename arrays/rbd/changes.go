package rbd

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

func decode(raw []byte) (map[string]string, error) {
	var all map[string]string
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, driver.Errorf(driver.Unreachable, "rbd image-meta list: what it prints is not the JSON that was expected")
	}
	return all, nil
}

// granularity of changes: OSDs tell overlaps by their blocks, of 4 KiB, or 64 KiB
// where they were made long ago on hard disks (bluestore_min_alloc_size).
const granularity = 64 << 10

// point is where a comparison begins or ends: a snapshot, or what the image holds
// now, which is after all of them.
func (d *Driver) point(ctx context.Context, i image, id driver.SnapshotID) (name string, order uint64, err error) {
	if id == "" {
		return "", 1<<64 - 1, nil
	}
	s, err := parseSnap(id)
	if err == nil && s.image != i {
		err = driver.Errorf(driver.NotFound, "snapshot %s is not one of %s", id, i)
	}
	if err != nil {
		return "", 0, err
	}
	l, err := d.find(ctx, s)
	if err == nil && l.isMember() {
		err = driver.Errorf(driver.NotSupported, "snapshot %s was made with others of a group, and rbd diff knows snapshots by the names that these don't have", id)
	}
	return s.name, l.ID, err
}

// Changes implements driver.ChangeTracker. An image with the feature fast-diff
// answers at once, any other after each of its objects was asked.
func (d *Driver) Changes(ctx context.Context, v driver.VolumeID, from, to driver.SnapshotID) (driver.Changes, error) {
	c := driver.Changes{Granularity: granularity}
	i, x, err := d.volume(ctx, v)
	if err != nil {
		return c, err
	}
	first, a, err := d.point(ctx, i, from)
	if err != nil {
		return c, err
	}
	last, b, err := d.point(ctx, i, to)
	if err != nil || a == b {
		return c, err
	}
	if a > b { // what differs, differs in both directions
		first, last = last, first
	}
	args := append([]string{"diff", "--from-snap=" + first}, i.args()...)
	if last != "" {
		args = append(args, "--snap="+last)
	}
	var said []struct {
		Offset int64 `json:"offset"`
		Length int64 `json:"length"`
	}
	if err := d.ask(ctx, &said, args...); err != nil {
		return c, err
	}
	size := x.Size
	for _, s := range []driver.SnapshotID{from, to} { // one may be of before the image shrank
		if s == "" {
			continue
		}
		at, err := parseSnap(s)
		if err != nil {
			return c, err
		}
		l, err := d.find(ctx, at)
		if err != nil {
			return c, err
		}
		size = max(size, l.Size)
	}
	for _, r := range said {
		if r.Offset < 0 || r.Length <= 0 || r.Offset > size || r.Length > size-r.Offset {
			return c, driver.Errorf(driver.Unreachable, "rbd diff: it says that %d bytes at %d changed, of %d", r.Length, r.Offset, size)
		}
		c.Regions = append(c.Regions, lun.Extent{Off: r.Offset, Len: r.Length})
	}
	slices.SortFunc(c.Regions, func(a, b lun.Extent) int { return int(max(-1, min(1, a.Off-b.Off))) })
	c.Regions = joined(c.Regions)
	return c, nil
}

// joined makes one of regions that touch or overlap.
func joined(rs []lun.Extent) []lun.Extent {
	var out []lun.Extent
	for _, r := range rs {
		if n := len(out) - 1; n >= 0 && r.Off <= out[n].Off+out[n].Len {
			out[n].Len = max(out[n].Len, r.Off+r.Len-out[n].Off)
			continue
		}
		out = append(out, r)
	}
	return out
}
