package engine

import (
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
		one.VM, one.Device = diskOf(set, s)
		first, second := s.ID, ""
		if from != "" {
			i := slices.IndexFunc(older.Splits, func(o orchestrator.Split) bool { return o.Array == s.Array && o.Volume == s.Volume })
			if i < 0 {
				return d, fmt.Errorf("snapshot set %s: %w: volume %s/%s is not in it, and is in %s", from, orchestrator.ErrUsage, s.Array, s.Volume, id)
			}
			first, second = older.Splits[i].ID, s.ID
		}
		a := e.array(s.Array)
		if a == nil {
			return d, fmt.Errorf("snapshot set %s: split %q on array %q: %w", id, s.ID, s.Array, errArrayGone)
		}
		c, err := a.Changes(ctx, driver.VolumeID(s.Volume), driver.SnapshotID(first), driver.SnapshotID(second))
		if err != nil {
			return d, err
		}
		c = coarser(c, maxRegions/len(set.Splits), s.Size)
		one.Granularity, one.Regions = c.Granularity, make([]orchestrator.Region, 0, len(c.Regions))
		for _, x := range c.Regions {
			one.Total += x.Len
			one.Regions = append(one.Regions, orchestrator.Region{Offset: x.Off, Length: x.Len})
		}
		d.Disks = append(d.Disks, one)
	}
	return d, nil
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
