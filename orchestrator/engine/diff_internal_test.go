package engine

import (
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
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
