package lvm2

import (
	"fmt"
	"sort"
	"strings"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/extents"
)

// Bounds of volumes that lie on volumes. LVM's own go five deep: a thin volume,
// the pool's data, a raid, its leg, a pvmove.
const (
	maxStack  = 12
	maxOpened = 4096
)

// descent is the way down from a volume to the PVs. What lies on what is a
// stranger's word: without a bound on all steps together, a few lines of text in
// which each volume names the next one twice would take for ever.
type descent struct {
	depth int
	left  *int
}

func newDescent() descent {
	left := maxOpened
	return descent{left: &left}
}

func (d descent) down() descent { return descent{d.depth + 1, d.left} }

// into takes the step into a volume.
func (d descent) into(g *Group, lv *LV) error {
	if *d.left--; d.depth > maxStack || *d.left < 0 {
		return fields{where: g.where + "/" + lv.Name}.fail("segments", nil, fmt.Sprintf("more than %d volumes lie on one another, or %d side by side", maxStack, maxOpened))
	}
	return nil
}

// Area is one stripe column of a segment: a run of bytes of a PV's device that
// belongs to a logical volume. A linear segment has one column.
type Area struct {
	PV   *GroupPV
	Off  int64 // on PV.PV.Dev
	Len  int64
	LV   int64 // byte of the logical volume at which the segment begins
	Unit int64 // stripe size in bytes; Len for a linear segment

	Stripes, Index int64
}

// Volume maps byte rel of the area to the byte of the logical volume that it
// holds, and says for how many bytes from there both run alike.
func (a Area) Volume(rel int64) (off, run int64) {
	row, in := rel/a.Unit, rel%a.Unit
	return a.LV + (row*a.Stripes+a.Index)*a.Unit + in, a.Unit - in
}

// Map returns the areas of a volume in the order of its bytes. Of a mirror or
// raid1 they are those of one leg that is in sync, the same that Open reads. It
// refuses, with the reason, a volume that can't be read or that has no fixed
// place on the PVs: a thin one.
func (g *Group) Map(lv *LV) ([]Area, error) { return g.areasOf(lv, newDescent()) }

func (g *Group) areasOf(lv *LV, d descent) ([]Area, error) {
	if err := d.into(g, lv); err != nil {
		return nil, err
	}
	what := g.Name + "/" + lv.Name
	var areas []Area
	for i, s := range lv.Segments {
		f := fields{where: fmt.Sprintf("%s/segment%d", what, i+1)}
		if s.Type == "thin" {
			return nil, f.fail("type", s.Type, "a thin volume has no place of its own on the physical volumes")
		}
		stripes, err := g.copyOf(f, s, d)
		if err != nil {
			return nil, err
		}
		for j := range stripes {
			c := g.column(s, stripes, j)
			gp := g.pvs[c.name]
			if gp == nil {
				sub, err := g.areasBelow(f, c, d)
				if err != nil {
					return nil, err
				}
				areas = append(areas, sub...)
				continue
			}
			if gp.PV == nil || gp.Marked {
				return nil, g.MissingError(what, gp)
			}
			c.PV, c.Off = gp, gp.PV.Off+gp.Start+c.Off
			areas = append(areas, c.Area)
		}
	}
	return areas, nil
}

// areasBelow maps a column that lies on another volume.
func (g *Group) areasBelow(f fields, c column, d descent) ([]Area, error) {
	lv := g.lvs[c.name]
	if lv == nil {
		return nil, f.fail("stripes", c.name, "no such volume in the group")
	}
	if c.Stripes > 1 {
		return nil, f.fail("stripes", c.name, "a volume striped over other logical volumes has no simple place on the physical volumes")
	}
	sub, err := g.areasOf(lv, d.down())
	if err != nil {
		return nil, err
	}
	var out []Area
	from, to := c.Off, c.Off+c.Len
	for _, a := range sub {
		end := a.LV + a.Len*a.Stripes
		if end <= from || a.LV >= to {
			continue
		}
		if cut := max(from-a.LV, 0); a.Stripes == 1 {
			a.LV, a.Off = a.LV+cut, a.Off+cut
			a.Len = min(end, to) - a.LV
			a.Unit = a.Len
		} else if cut > 0 || end > to {
			return nil, f.fail("stripes", c.name, "begins or ends within a striped segment, which has no simple place on the physical volumes")
		}
		a.LV += c.LV - from
		out = append(out, a)
	}
	return out, nil
}

// refusal is why a segment type is not read, in words for an operator.
func refusal(typ string) string {
	base, _, _ := strings.Cut(typ, "+")
	switch base {
	case "thin-pool":
		return "a thin pool holds thin volumes and no data of its own: name one of them"
	case "cache", "writecache":
		return "a cached volume may have its newest data in the cache only: detach the cache in the guest (lvconvert --uncache) before the split"
	case "cache-pool":
		return "is the cache of another volume"
	case "snapshot":
		return "is the record of a snapshot and holds no data"
	case "vdo", "vdo-pool":
		return "VDO compresses and deduplicates in a format of its own, which is not read: take the snapshot on a volume of another type"
	case "integrity":
		return "volumes with dm-integrity are not read: the newest data may be in its journal"
	case "error":
		return "LVM put this in the place of what was lost: it has no data"
	case "raid0", "raid0_meta", "raid4", "raid5", "raid6", "raid10":
		return "of LVM's raid levels only raid1 is read"
	}
	for _, level := range []string{"raid5_", "raid6_", "raid10_"} {
		if strings.HasPrefix(base, level) {
			return "of LVM's raid levels only raid1 is read"
		}
	}
	return "volumes of this type can't be read by this version"
}

// Open returns the volume as a read-only device. It reads through the PVs'
// devices, which must stay open as long. What can't be read is refused with the
// reason, and hides no other volume of the group.
func (g *Group) Open(lv *LV) (lun.Device, error) { return g.open(lv, newDescent()) }

func (g *Group) open(lv *LV, d descent) (lun.Device, error) {
	if err := d.into(g, lv); err != nil {
		return nil, err
	}
	if lv.Role == "thin" {
		t, _, err := g.thin(lv, d)
		if err != nil {
			return nil, err // and not a *dmthin.Thin that is nil
		}
		return t, nil
	}
	what := g.Name + "/" + lv.Name
	v := &volume{size: lv.Size}
	for i, s := range lv.Segments {
		f := fields{where: fmt.Sprintf("%s/segment%d", what, i+1)}
		stripes, err := g.copyOf(f, s, d)
		if err != nil {
			return nil, err
		}
		for j := range stripes {
			c := g.column(s, stripes, j)
			if gp := g.pvs[c.name]; gp == nil {
				if c.dev, err = g.openName(c.name, d); err != nil {
					return nil, err
				}
			} else if gp.PV == nil || gp.Marked {
				return nil, g.MissingError(what, gp)
			} else {
				c.dev, c.Off = gp.PV.Dev, gp.PV.Off+gp.Start+c.Off
			}
			if err := lun.CheckRange(c.Off, c.Len, c.dev.Size()); err != nil {
				return nil, f.fail("stripes", c.name, fmt.Sprintf("is too small: %d bytes of %d are needed", c.Off+c.Len, c.dev.Size()))
			}
			v.columns = append(v.columns, c)
		}
	}
	return v, nil
}

// column is an Area on a device that may be another volume; PV is not set.
type column struct {
	Area
	name string
	dev  lun.Device
}

// column is the j-th stripe of a segment, by its bytes on what it lies on.
func (g *Group) column(s *Segment, stripes []Stripe, j int) column {
	n := int64(len(stripes))
	size := s.Count / n * g.ExtentSize
	unit := s.StripeSize
	if n == 1 {
		unit = size
	}
	st := stripes[j]
	return column{name: st.Name, Area: Area{Off: st.Extent * g.ExtentSize, Len: size,
		LV: s.Start * g.ExtentSize, Unit: unit, Stripes: n, Index: int64(j)}}
}

type volume struct {
	columns []column // by LV, then Index
	size    int64
}

func (v *volume) Size() int64                              { return v.size }
func (v *volume) Sync() error                              { return nil }
func (v *volume) WriteAt(p []byte, off int64) (int, error) { return 0, lun.ErrReadOnly }

func (v *volume) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), v.size); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		c, at, run := v.locate(off + int64(done))
		n := min(run, int64(len(p)-done))
		if _, err := c.dev.ReadAt(p[done:done+int(n)], at); err != nil {
			return done, fmt.Errorf("byte %d of %s: %w", at, c.name, err)
		}
		done += int(n)
	}
	return len(p), nil
}

// Extents implements lun.Mapper.
func (v *volume) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, v.size); err != nil {
		return err
	}
	return extents.Pieces(off, n, func(off int64) (lun.Device, int64, int64) {
		c, at, run := v.locate(off)
		return c.dev, at, run
	}, fn)
}

// locate finds the column that holds byte off, where on its device, and for how
// many bytes.
func (v *volume) locate(off int64) (c column, at, run int64) {
	i := sort.Search(len(v.columns), func(i int) bool { return v.columns[i].LV > off }) - 1
	first := v.columns[i] // the last column of the segment
	i -= int(first.Index)
	rel := off - first.LV
	unit, in := rel/first.Unit, rel%first.Unit
	c = v.columns[i+int(unit%first.Stripes)]
	return c, c.Off + unit/first.Stripes*c.Unit + in, first.Unit - in
}
