package lvm2

import (
	"cmp"
	"fmt"
	"slices"
)

// checkReferences refuses volumes that lead back to themselves, by whatever
// kind of reference.
func (g *Group) checkReferences() error {
	const (
		unseen = iota
		open
		done
	)
	state := make(map[*LV]int, len(g.LVs))
	type frame struct {
		lv   *LV
		refs []string
	}
	for _, root := range g.LVs {
		if state[root] != unseen {
			continue
		}
		// An explicit stack: the depth is the stranger's choice.
		stack := []frame{{root, g.references(root)}}
		state[root] = open
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if len(top.refs) == 0 {
				state[top.lv] = done
				stack = stack[:len(stack)-1]
				continue
			}
			next := g.lvs[top.refs[0]]
			top.refs = top.refs[1:]
			if next == nil {
				continue
			}
			switch state[next] {
			case open:
				return fields{where: g.where + "/" + top.lv.Name}.fail("segments", next.Name, "leads back to the volume itself")
			case unseen:
				state[next] = open
				stack = append(stack, frame{next, g.references(next)})
			}
		}
	}
	return nil
}

func (g *Group) references(lv *LV) []string {
	var refs []string
	for _, s := range lv.Segments {
		refs = append(refs, s.refs...)
		for _, st := range s.areas() {
			if g.pvs[st.Name] == nil {
				refs = append(refs, st.Name)
			}
		}
	}
	return refs
}

// checkAreas refuses stripes that lie outside their PV and extents that belong
// to two volumes.
func (g *Group) checkAreas() error {
	type run struct {
		from, to int64
		lv       string
	}
	used := make(map[*GroupPV][]run)
	for _, lv := range g.LVs {
		for i, s := range lv.Segments {
			f := fields{where: fmt.Sprintf("%s/%s/segment%d", g.where, lv.Name, i+1)}
			for _, st := range s.areas() {
				n := s.Count / int64(max(len(s.Stripes), 1))
				if err := g.checkArea(f, st, n); err != nil && len(s.legs) > 0 {
					s.refused = err // of this one volume, not of the group
				} else if err != nil {
					return err
				} else if pv := g.pvs[st.Name]; pv != nil {
					used[pv] = append(used[pv], run{st.Extent, st.Extent + n, lv.Name})
				}
			}
			if s.StripeSize > 0 && (s.Count/int64(len(s.Stripes))*g.ExtentSize)%s.StripeSize != 0 {
				return f.fail("stripe_size", s.StripeSize/sectorSize, "does not divide the segment")
			}
		}
	}
	for pv, runs := range used {
		slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.from, b.from) })
		for i := 1; i < len(runs); i++ {
			if a, b := runs[i-1], runs[i]; b.from < a.to {
				return fields{where: g.where + "/" + b.lv}.fail("stripes", b.from, fmt.Sprintf("extent of %s belongs to %s as well", pv.Name, a.lv))
			}
		}
	}
	return nil
}

// checkArea checks where n extents of a segment lie.
func (g *Group) checkArea(f fields, st Stripe, n int64) error {
	pv := g.pvs[st.Name]
	switch {
	case pv == nil && g.lvs[st.Name] == nil:
		return f.fail("stripes", st.Name, "is neither a physical nor a logical volume of the group")
	case pv != nil && (st.Extent > pv.Extents || n > pv.Extents-st.Extent):
		return f.fail("stripes", st.Extent, fmt.Sprintf("%d extents from there run beyond the end of %s (%d extents)", n, st.Name, pv.Extents))
	}
	return nil
}

// areas are the stripes or legs of a segment that lie on a volume of either
// kind.
func (s *Segment) areas() []Stripe {
	if len(s.legs) == 0 {
		return s.Stripes
	}
	var out []Stripe
	for _, l := range s.legs {
		out = append(out, l.image)
	}
	return out
}
