package embedded

import (
	"testing"

	"pgregory.net/rapid"
)

// However many regions change, few are told, in order and apart, and they cover
// all that changed, no coarser than it takes.
func TestRegionsAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const unit = 4
		units := rapid.SliceOfN(rapid.Bool(), 1, 400).Draw(t, "changed")
		size := int64(len(units)*unit) - rapid.Int64Range(0, unit-1).Draw(t, "short of a region")
		r := regions{most: rapid.IntRange(1, 20).Draw(t, "most"), grain: unit}
		exact := 0
		for i := 0; i < len(units); i++ {
			if !units[i] {
				continue
			}
			first := i
			for i < len(units) && units[i] {
				i++
			}
			r.add(int64(first*unit), min(int64(i*unit), size), size)
			exact++
		}
		if len(r.list) > r.most {
			t.Fatalf("%d regions, at most %d", len(r.list), r.most)
		}
		if exact <= r.most && r.grain != unit {
			t.Errorf("granularity %d, though there are but %d regions", r.grain, exact)
		}
		covered := make([]bool, size)
		end := int64(-1)
		for _, e := range r.list {
			if e.Off <= end || e.Len <= 0 || e.Off+e.Len > size || e.Off%r.grain != 0 || (e.Len%r.grain != 0 && e.Off+e.Len != size) {
				t.Fatalf("%+v at granularity %d of %d bytes", r.list, r.grain, size)
			}
			end = e.Off + e.Len
			for i := e.Off; i < end; i++ {
				covered[i] = true
			}
		}
		for i := range size {
			if units[i/unit] && !covered[i] {
				t.Fatalf("byte %d changed and is not told: %+v", i, r.list)
			}
		}
	})
}
