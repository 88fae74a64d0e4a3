package engine

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/orchestrator"
)

// What is told more coarsely covers all that it did, in order, within the disk.
func TestCoarser(t *testing.T) {
	const unit, size = 64 << 10, 1000*64<<10 + 512
	c := driver.Changes{Granularity: unit}
	for off := int64(0); off < size; off += 3 * unit {
		c.Regions = append(c.Regions, lun.Extent{Off: off, Len: min(unit, size-off)})
	}
	for _, most := range []int{1, 10, 100, len(c.Regions)} {
		got := coarser(c, most, size)
		if len(got.Regions) > most {
			t.Errorf("%d regions where %d are allowed", len(got.Regions), most)
		}
		i, end := 0, int64(0)
		for _, r := range got.Regions {
			if r.Off < end || r.Len <= 0 || r.Off+r.Len > size {
				t.Fatalf("region %+v after one that ends at %d", r, end)
			}
			for end = r.Off + r.Len; i < len(c.Regions) && c.Regions[i].Off >= r.Off && c.Regions[i].Off+c.Regions[i].Len <= end; i++ {
			}
		}
		if i < len(c.Regions) {
			t.Errorf("at most %d: region %+v is not covered", most, c.Regions[i])
		}
	}
	if len(c.Regions) != 334 {
		t.Errorf("what was given has become %d regions", len(c.Regions))
	}
}

// However much was rewritten, and however often: few regions are told, in order
// and apart, and they cover all of it.
func TestUniteRegions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const sectors = 40000
		size := int64(sectors*sector) - rapid.Int64Range(0, sector-1).Draw(t, "short of a sector")
		covered := make([]bool, sectors)
		var told []orchestrator.Region
		for range rapid.IntRange(1, 3).Draw(t, "attempts") {
			step := rapid.IntRange(2, 9).Draw(t, "step")
			var list []lun.Extent
			for i := rapid.IntRange(0, 9).Draw(t, "first"); i < sectors; i += step {
				off := int64(i) * sector
				list = append(list, lun.Extent{Off: off, Len: min(sector, size-off)})
				covered[i] = true
			}
			told = uniteRegions(told, list, size)
		}
		if len(told) > maxRewritten {
			t.Fatalf("%d regions", len(told))
		}
		end := int64(-1)
		for _, r := range told {
			if r.Offset <= end || r.Length <= 0 || r.Offset+r.Length > size {
				t.Fatalf("region %+v after one that ends at %d, of %d", r, end, size)
			}
			end = r.Offset + r.Length
			for i := r.Offset / sector; i*sector < end; i++ {
				covered[i] = false
			}
		}
		for i, left := range covered {
			if left {
				t.Fatalf("sector %d was rewritten and is not told", i)
			}
		}
	})
}
