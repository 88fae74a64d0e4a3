package lvm2

import (
	"fmt"
	"slices"
)

// Edit is new metadata text of a group in the making. What it does not name is
// kept as it was, known to this package or not. The group itself never changes.
type Edit struct {
	group *Group
	seqno int64
	text  *Section
	vg    *Section
}

// Edit begins new text. Each Text that it gives has a seqno one higher.
func (g *Group) Edit() *Edit {
	e := &Edit{group: g, seqno: g.Seqno, text: g.text.clone()}
	for _, it := range e.text.Items {
		if it.Sub != nil {
			e.vg = it.Sub
		}
	}
	return e
}

// Merge marks a thick snapshot as one that is being put back, as `lvconvert
// --merge` does before it copies the first chunk: LVM shows the origin with the
// snapshot's content from then on, and hides the snapshot.
func (e *Edit) Merge(s *Snapshot) {
	record := e.lv(s.Record.Name)
	if record == nil {
		return
	}
	record.hide()
	for _, it := range record.Items {
		if it.Sub == nil {
			continue
		}
		for i := range it.Sub.Items {
			if it.Sub.Items[i].Key == "cow_store" {
				it.Sub.Items[i].Key = "merging_store"
			}
		}
	}
}

// Remove takes a snapshot away. Of a thick one, its record and its store are
// gone, the store's extents are free, the origin is visible. A thin one is gone
// from the text; its device stays in the pool, which only LVM and the kernel
// together can change.
func (e *Edit) Remove(s *Snapshot) {
	lvs := e.volumes()
	if lvs == nil {
		return
	}
	lvs.Items = slices.DeleteFunc(lvs.Items, func(lv Item) bool { return lv.Key == s.Record.Name || lv.Key == s.COW.Name })
	if origin := e.lv(s.Origin.Name); origin != nil {
		origin.show()
	}
}

// Text is the metadata text with all that was edited so far, and the next
// seqno. The description is what vgcfgrestore --list shows of it.
func (e *Edit) Text(description string) []byte {
	e.seqno++
	e.vg.set("seqno", e.seqno)
	e.text.set("description", description)
	return e.text.Text()
}

func (e *Edit) volumes() *Section {
	for _, it := range e.vg.Items {
		if it.Key == "logical_volumes" {
			return it.Sub
		}
	}
	return nil
}

func (e *Edit) lv(name string) *Section {
	if lvs := e.volumes(); lvs != nil {
		for _, it := range lvs.Items {
			if it.Key == name {
				return it.Sub
			}
		}
	}
	return nil
}

// show makes a volume visible, hide the reverse. A volume without a status list
// stays as it is.
func (s *Section) show() {
	if list, ok := s.status(); ok && !slices.Contains(list, Value("VISIBLE")) {
		s.set("status", append(slices.Clone(list), "VISIBLE"))
	}
}

func (s *Section) hide() {
	if list, ok := s.status(); ok {
		s.set("status", slices.DeleteFunc(slices.Clone(list), func(v Value) bool { return v == Value("VISIBLE") }))
	}
}

func (s *Section) status() ([]Value, bool) {
	for _, it := range s.Items {
		if it.Key == "status" {
			list, ok := it.Value.([]Value)
			return list, ok
		}
	}
	return nil, false
}

// Change is what one commit puts on the PVs, as LVM does it: the Texts first,
// to where nobody looks for them; when those are stable, the Headers, each one
// sector, by which they come to count. Between two headers the areas differ,
// and the highest seqno wins.
type Change struct {
	Texts, Headers []Patch
	// Overwrites says that an area is too small for the text of now and the new
	// one: the change is good for a copy, not for the PVs themselves.
	Overwrites bool
}

// Patches are those of the whole change, for who needs no order.
func (c Change) Patches() []Patch { return slices.Concat(c.Texts, c.Headers) }

// Commit returns the changes that make each text in turn the committed metadata
// in every area of every PV of the group. Areas that LVM ignores stay as they
// are. The group must be complete, or the PVs that are missing would keep the
// old text.
func (g *Group) Commit(texts ...[]byte) ([]Change, error) {
	for _, text := range texts {
		if _, err := ParseGroup(text); err != nil {
			return nil, fmt.Errorf("new metadata of %s: %w", g.Name, err)
		}
	}
	changes := make([]Change, len(texts))
	for _, gp := range g.PVs {
		if gp.PV == nil {
			return nil, g.MissingError("new metadata of "+g.Name, gp)
		}
		for _, m := range gp.PV.MDAs { // copies: the group is as it was read
			if m.Ignored || !m.whole {
				continue // damaged ones are reported by Group.Damage; LVM skips both
			}
			for i, text := range texts {
				if err := m.replace(gp.PV, text, &changes[i]); err != nil {
					return nil, fmt.Errorf("new metadata of %s: %w", g.Name, err)
				}
			}
		}
	}
	return changes, nil
}

// Held lists what the PVs hold of the committed metadata: headers and texts, as
// patches of what is there. A commit that was interrupted has written there, or
// where the next one will.
func (g *Group) Held() []Patch {
	var out []Patch
	for _, gp := range g.PVs {
		if gp.PV == nil {
			continue
		}
		for _, m := range gp.PV.MDAs {
			if m.Ignored || !m.whole {
				continue
			}
			out = append(out, Patch{gp.PV, m.Off, m.header(m.Off-gp.PV.Off, int64(m.slot.off), append(slices.Clone(m.Text), 0))})
			if m.Text != nil {
				out = append(out, m.pieces(gp.PV, int64(m.slot.off), append(slices.Clone(m.Text), 0))...)
			}
		}
	}
	return out
}
