package lvm2

import (
	"fmt"
	"slices"
)

// WithoutSnapshots returns metadata text of the group as it would be after
// every thick snapshot was removed: the records and their stores are gone, the
// stores' extents are free, the origins are plain visible volumes, and seqno is
// one higher. Everything else is kept as it was, known to this package or not.
func (g *Group) WithoutSnapshots(description string) []byte {
	gone := make(map[string]bool)
	origins := make(map[string]bool)
	for _, s := range g.Snapshots {
		gone[s.Record.Name], gone[s.COW.Name] = true, true
		origins[s.Origin.Name] = true
	}
	text := g.text.clone()
	for _, top := range text.Items {
		if top.Sub == nil {
			continue
		}
		top.Sub.set("seqno", g.Seqno+1)
		for _, it := range top.Sub.Items {
			if it.Key != "logical_volumes" || it.Sub == nil {
				continue
			}
			it.Sub.Items = slices.DeleteFunc(it.Sub.Items, func(lv Item) bool { return gone[lv.Key] })
			for _, lv := range it.Sub.Items {
				if origins[lv.Key] {
					show(lv.Sub)
				}
			}
		}
	}
	text.set("description", description)
	return text.Text()
}

// show makes a volume visible.
func show(lv *Section) {
	for _, it := range lv.Items {
		if it.Key != "status" {
			continue
		}
		list, ok := it.Value.([]Value)
		if ok && !slices.Contains(list, Value("VISIBLE")) {
			lv.set("status", append(slices.Clone(list), "VISIBLE"))
		}
	}
}

// Commit returns the patches that make text the committed metadata in every
// area of every PV of the group. Areas that LVM ignores stay as they are. The
// group must be complete, or the PVs that are missing would keep the old text.
func (g *Group) Commit(text []byte) ([]Patch, error) {
	if _, err := ParseGroup(text); err != nil {
		return nil, fmt.Errorf("new metadata of %s: %w", g.Name, err)
	}
	var patches []Patch
	for _, gp := range g.PVs {
		if gp.PV == nil {
			return nil, g.MissingError("new metadata of "+g.Name, gp)
		}
		for i := range gp.PV.MDAs {
			m := &gp.PV.MDAs[i]
			if m.Ignored || !m.whole {
				continue // damaged ones are reported by Group.Damage; LVM skips both
			}
			p, err := m.replace(gp.PV, text)
			if err != nil {
				return nil, fmt.Errorf("new metadata of %s: %w", g.Name, err)
			}
			patches = append(patches, p...)
		}
	}
	return patches, nil
}
