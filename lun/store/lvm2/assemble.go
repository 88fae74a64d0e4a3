package lvm2

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/store/dmthin"
)

// Assemble makes volume groups of the PVs found on all devices. For each group
// the newest text (highest seqno) whose checksums hold is taken, from whichever
// PV. Damage lists what belongs to no group that could be read: a group whose
// every copy is damaged, a PV that is there twice.
//
// A PV of a group that is on none of the devices leaves GroupPV.PV nil: volumes
// that need it are refused when they are opened.
func Assemble(pvs []*PV) (groups []*Group, damage []error) {
	byUUID := make(map[string]*PV, len(pvs))
	for _, p := range pvs {
		if byUUID[p.UUID] != nil {
			damage = append(damage, &lun.FormatError{Format: format, Offset: -1, Field: "PV UUID", Value: p.UUID,
				Reason: "is on two of the devices given: the same disk, or a copy of it, was given twice"})
			continue
		}
		byUUID[p.UUID] = p
	}
	best := make(map[string]*Group)
	raw := make(map[*Group][]byte)
	budget := MaxText // for all different texts together
	var order []string
	for _, p := range pvs {
		for _, m := range p.MDAs {
			if m.Text == nil || holds(raw, m.Text) {
				continue
			}
			if budget -= len(m.Text); budget < 0 {
				damage = append(damage, &lun.FormatError{Format: format, Offset: m.Off, Field: "metadata text", Value: len(m.Text),
					Reason: fmt.Sprintf("more than %d bytes of different metadata are not read: give fewer disks at once", MaxText)})
				break
			}
			g, err := ParseGroup(m.Text)
			if err != nil {
				p.Damage = append(p.Damage, inText(err, m))
				continue
			}
			old := best[g.UUID]
			switch {
			case old == nil:
				order = append(order, g.UUID)
			case g.Seqno == old.Seqno:
				old.Damage = append(old.Damage, &lun.FormatError{Format: format, Offset: m.Off, Field: g.Name + "/seqno", Value: g.Seqno, Reason: "two different texts carry it; the first one found is used"})
				continue
			case g.Seqno < old.Seqno:
				old.Damage = append(old.Damage, stale(g, old))
				continue
			default:
				g.Damage = append(old.Damage, stale(old, g))
			}
			best[g.UUID] = g
			raw[g] = m.Text
		}
	}
	claimed := make(map[*PV]bool)
	nodes := &dmthin.Cache{}
	for _, id := range order {
		g := best[id]
		g.pools.nodes = nodes
		if err := g.attach(byUUID, claimed); err != nil {
			damage = append(damage, err)
			continue
		}
		groups = append(groups, g)
	}
	for _, p := range pvs {
		if !claimed[p] {
			damage = append(damage, p.Damage...)
		}
	}
	slices.SortStableFunc(groups, func(a, b *Group) int { return cmp.Compare(a.Name, b.Name) })
	return groups, damage
}

func holds(raw map[*Group][]byte, text []byte) bool {
	for _, t := range raw {
		if bytes.Equal(t, text) {
			return true
		}
	}
	return false
}

func stale(old, new *Group) error {
	return &lun.FormatError{Format: format, Offset: -1, Field: old.Name + "/seqno", Value: old.Seqno,
		Reason: fmt.Sprintf("a metadata area is behind the newest, %d, which is used", new.Seqno)}
}

// inText makes an offset within a text one on the device, where the text does
// not wrap before it.
func inText(err error, m MDA) error {
	var fe *lun.FormatError
	if errors.As(err, &fe) && fe.Offset >= 0 {
		c := *fe
		at := int64(m.slot.off) + fe.Offset
		if at >= m.Size {
			at += mdaHeader - m.Size
		}
		c.Offset = m.Off + at
		return &c
	}
	return err
}

// attach finds the group's PVs among those given.
func (g *Group) attach(byUUID map[string]*PV, claimed map[*PV]bool) error {
	for _, gp := range g.PVs {
		p := byUUID[gp.UUID]
		if p == nil {
			continue
		}
		if claimed[p] {
			return fields{where: g.where + "/" + gp.Name}.fail("id", gp.UUID, "belongs to another volume group, or twice to this one")
		}
		if end := gp.Start + gp.Extents*g.ExtentSize; end > p.Len {
			return fields{where: g.where + "/" + gp.Name}.fail("pe_count", gp.Extents, fmt.Sprintf("the last extent ends at byte %d of a physical volume of %d bytes: the disk was cut short", end, p.Len))
		}
		claimed[p] = true
		gp.PV = p
		g.Damage = append(g.Damage, p.Damage...)
	}
	return nil
}

// Missing lists the group's PVs that are on none of the devices given.
func (g *Group) Missing() []*GroupPV {
	var out []*GroupPV
	for _, p := range g.PVs {
		if p.PV == nil {
			out = append(out, p)
		}
	}
	return out
}

// MissingError says that p is needed for what and is not there, or not to be
// used.
func (g *Group) MissingError(what string, p *GroupPV) error {
	if p.PV != nil {
		return &lun.FormatError{Format: format, Offset: -1, Field: what + " needs physical volume " + p.Name, Value: p.UUID,
			Reason: "was missing for LVM at some time and may hold old data: in the guest, vgextend --restoremissing or vgreduce --removemissing"}
	}
	hint := ""
	if p.Hint != "" {
		hint = fmt.Sprintf(" (%.64q in the guest)", p.Hint)
	}
	return &lun.FormatError{Format: format, Offset: -1, Field: what + " needs physical volume " + p.Name, Value: p.UUID,
		Reason: "is on none of the devices given" + hint + ": give the disk that holds it as well"}
}
