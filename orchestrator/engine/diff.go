package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/orchestrator"
)

// maxRegions is how many regions a Diff has at most: where there are more, they
// are told more coarsely.
const maxRegions = 1 << 19

// Diff implements orchestrator.Service.
func (e *Engine) Diff(ctx context.Context, id, from orchestrator.SetID) (orchestrator.Diff, error) {
	d := orchestrator.Diff{Version: 1, From: id}
	set, err := e.ready(ctx, id)
	if err != nil {
		return d, err
	}
	var older orchestrator.Set
	if from != "" {
		d.From, d.To = from, id
		if older, err = e.ready(ctx, from); err != nil {
			return d, err
		}
	}
	for _, s := range set.Splits {
		one := orchestrator.DiskDiff{Array: s.Array, Volume: s.Volume}
		if len(s.Disks) == 0 {
			one.VM, one.Device = diskOf(set, s)
		}
		first, second := s.ID, ""
		var old *orchestrator.Split
		if from != "" {
			i := slices.IndexFunc(older.Splits, func(o orchestrator.Split) bool { return o.Array == s.Array && o.Volume == s.Volume })
			if i < 0 {
				return d, fmt.Errorf("snapshot set %s: %w: volume %s/%s is not in it, and is in %s", from, orchestrator.ErrUsage, s.Array, s.Volume, id)
			}
			old = &older.Splits[i]
			first, second = old.ID, s.ID
		}
		a := e.array(s.Array)
		if a == nil {
			return d, fmt.Errorf("snapshot set %s: split %q on array %q: %w", id, s.ID, s.Array, errArrayGone)
		}
		c, err := a.Changes(ctx, driver.VolumeID(s.Volume), driver.SnapshotID(first), driver.SnapshotID(second))
		if err != nil {
			return d, err
		}
		ends := []side{{set, s}}
		if old != nil {
			ends = append(ends, side{older, *old})
		}
		size := s.Size
		for _, x := range ends {
			size = max(size, x.split.Size)
			more, err := e.rewritten(ctx, x.set, x.split)
			if err != nil {
				return d, err
			}
			c = unite(c, more, x.split.Size)
		}
		c = coarser(c, maxRegions/len(set.Splits), size)
		one.Granularity, one.Regions = c.Granularity, regionsOf(c.Regions)
		for _, x := range c.Regions {
			one.Total += x.Len
		}
		d.Disks = append(d.Disks, one)
	}
	return d, nil
}

// side is one split of a comparison.
type side struct {
	set   orchestrator.Set
	split orchestrator.Split
}

// rewritten tells where what a set presents of a split differs, or may, from the
// split as it came off.
func (e *Engine) rewritten(ctx context.Context, set orchestrator.Set, s orchestrator.Split) ([]lun.Extent, error) {
	out := extentsOf(s.Rewritten)
	for _, l := range set.LUNs {
		if !l.Clean || l.Split != s.ID || l.Socket == "" || l.Hosted || l.NewIdentity {
			continue
		}
		more, err := e.cfg.Recoverer.Rewritten(ctx, l.Socket, l.Export, s.Size)
		if err != nil {
			return nil, fmt.Errorf("snapshot set %s: where the view %s differs from its split: %w", set.ID, l.Name, err)
		}
		out = append(out, more...)
	}
	return out, nil
}

// unite adds extents to changes, rounded to their granularity within size bytes.
func unite(c driver.Changes, more []lun.Extent, size int64) driver.Changes {
	all := slices.Clone(c.Regions)
	for _, x := range more {
		if x.Len <= 0 {
			continue
		}
		from := x.Off / c.Granularity * c.Granularity
		to := max(min((x.Off+x.Len+c.Granularity-1)/c.Granularity*c.Granularity, size), x.Off+x.Len)
		all = append(all, lun.Extent{Off: from, Len: to - from})
	}
	slices.SortFunc(all, func(a, b lun.Extent) int { return cmp.Compare(a.Off, b.Off) })
	c.Regions = nil
	for _, x := range all {
		if n := len(c.Regions); n > 0 && x.Off <= c.Regions[n-1].Off+c.Regions[n-1].Len {
			c.Regions[n-1].Len = max(c.Regions[n-1].Len, x.Off+x.Len-c.Regions[n-1].Off)
			continue
		}
		c.Regions = append(c.Regions, x)
	}
	return c
}

func regionsOf(list []lun.Extent) []orchestrator.Region {
	out := make([]orchestrator.Region, 0, len(list))
	for _, x := range list {
		out = append(out, orchestrator.Region{Offset: x.Off, Length: x.Len})
	}
	return out
}

func extentsOf(list []orchestrator.Region) []lun.Extent {
	out := make([]lun.Extent, 0, len(list))
	for _, x := range list {
		out = append(out, lun.Extent{Off: x.Offset, Len: x.Length})
	}
	return out
}

// ready returns a set whose splits are there.
func (e *Engine) ready(ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
	set, err := e.Get(ctx, id)
	if err == nil && set.State != orchestrator.StateReady {
		err = notReady(id, set.State)
	}
	return set, err
}

// diskOf names the first disk that lies on a split.
func diskOf(set orchestrator.Set, s orchestrator.Split) (vm, device string) {
	for _, m := range set.VMs {
		for _, d := range m.Disks {
			if d.Split == s.ID && d.Array == s.Array {
				return m.Name, d.Device
			}
		}
	}
	return "", ""
}

// coarser doubles the granularity until there are at most so many regions.
func coarser(c driver.Changes, most int, size int64) driver.Changes {
	for len(c.Regions) > max(most, 1) {
		c.Granularity *= 2
		out := c.Regions[:0:0]
		for _, r := range c.Regions {
			from := r.Off / c.Granularity * c.Granularity
			to := max(min((r.Off+r.Len+c.Granularity-1)/c.Granularity*c.Granularity, size), r.Off+r.Len)
			if n := len(out); n > 0 && from <= out[n-1].Off+out[n-1].Len {
				out[n-1].Len = max(to-out[n-1].Off, out[n-1].Len)
				continue
			}
			out = append(out, lun.Extent{Off: from, Len: to - from})
		}
		c.Regions = out
	}
	return c
}
