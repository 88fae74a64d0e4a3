package recovery

import (
	"cmp"
	"slices"

	"github.com/cleave-san/cleave/lun"
)

// maxExtents bounds a list of what was rewritten. A snapshot can have millions
// of exceptions all over its volume; whoever takes the list compares or copies
// whole regions anyway.
const maxExtents = 1 << 16

// rewritten collects extents of one device.
type rewritten struct{ list []lun.Extent }

// add joins a run, in whole sectors, to the one before it where they touch.
func (r *rewritten) add(off, n int64) {
	if n <= 0 {
		return
	}
	end := (off + n + 511) &^ 511
	off &^= 511
	n = end - off
	if k := len(r.list) - 1; k >= 0 && r.list[k].Off+r.list[k].Len == off {
		r.list[k].Len += n
		return
	}
	if r.list = append(r.list, lun.Extent{Off: off, Len: n}); len(r.list) >= 4*maxExtents {
		r.list = bounded(r.list)
	}
}

// extents is the list: by offset, without overlaps, at most maxExtents. Where
// there would be more, neighbours are joined: it names all that was rewritten
// and may name more.
func (r *rewritten) extents() []lun.Extent { return bounded(r.list) }

func bounded(list []lun.Extent) []lun.Extent {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b lun.Extent) int { return cmp.Compare(a.Off, b.Off) })
	list = join(list, 0)
	for gap := int64(64 << 10); len(list) > maxExtents; gap *= 2 {
		list = join(list, gap)
	}
	return list
}

// join makes one of extents with at most gap bytes between them.
func join(list []lun.Extent, gap int64) []lun.Extent {
	out := list[:0]
	for _, e := range list {
		if k := len(out) - 1; k >= 0 && e.Off-(out[k].Off+out[k].Len) <= gap {
			out[k].Len = max(out[k].Len, e.Off+e.Len-out[k].Off)
			continue
		}
		out = append(out, e)
	}
	return out
}
