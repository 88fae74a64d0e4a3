package localdev

import (
	"slices"

	"github.com/cleave-san/cleave/lun"
)

// Regions are told in whole grains, and no more of them than maxRegions: then the
// closest become one.
const (
	grain      = 64 << 10
	maxRegions = 4096
)

// regions are what was written, in order, apart from each other.
type regions struct{ list []lun.Extent }

// add makes [off, off+n) a part of them.
func (r *regions) add(off, n int64) {
	if n <= 0 {
		return
	}
	from, to := off/grain*grain, (off+n+grain-1)/grain*grain
	// Those from i to j touch the new one.
	i, _ := slices.BinarySearchFunc(r.list, from, func(x lun.Extent, from int64) int {
		if x.Off+x.Len < from {
			return -1
		}
		return 1
	})
	j := i
	for ; j < len(r.list) && r.list[j].Off <= to; j++ {
		from, to = min(from, r.list[j].Off), max(to, r.list[j].Off+r.list[j].Len)
	}
	r.list = slices.Replace(r.list, i, j, lun.Extent{Off: from, Len: to - from})
	if len(r.list) > maxRegions {
		r.join()
	}
}

// join makes the two one that have the least between them.
func (r *regions) join() {
	best, gap := 1, int64(-1)
	for i := 1; i < len(r.list); i++ {
		if g := r.list[i].Off - r.list[i-1].Off - r.list[i-1].Len; gap < 0 || g < gap {
			best, gap = i, g
		}
	}
	a, b := r.list[best-1], r.list[best]
	r.list = slices.Replace(r.list, best-1, best+1, lun.Extent{Off: a.Off, Len: b.Off + b.Len - a.Off})
}
