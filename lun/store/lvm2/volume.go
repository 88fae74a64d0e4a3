package lvm2

import (
	"fmt"
	"sort"

	"github.com/cleave-san/cleave/lun"
)

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

// Map returns the areas of a volume in the order of its bytes. It refuses, with
// the reason, a volume that can't be read this way: one that needs a missing
// PV, or a type that is not linear or striped.
func (g *Group) Map(lv *LV) ([]Area, error) {
	what := g.Name + "/" + lv.Name
	var areas []Area
	for i, s := range lv.Segments {
		f := fields{where: fmt.Sprintf("%s/segment%d", what, i+1)}
		if s.Type != "striped" {
			return nil, f.fail("type", s.Type, refusal(s.Type))
		}
		n := int64(len(s.Stripes))
		size := s.Count / n * g.ExtentSize
		for j, st := range s.Stripes {
			gp := g.pvs[st.Name]
			if gp == nil {
				return nil, f.fail("stripes", st.Name, "the volume is stacked on another logical volume, which is not read yet")
			}
			if gp.PV == nil {
				return nil, g.MissingError(what, gp)
			}
			unit := s.StripeSize
			if n == 1 {
				unit = size
			}
			areas = append(areas, Area{PV: gp, Off: gp.PV.Off + gp.Start + st.Extent*g.ExtentSize, Len: size,
				LV: s.Start * g.ExtentSize, Unit: unit, Stripes: n, Index: int64(j)})
		}
	}
	return areas, nil
}

// refusal is why a segment type is not read, in words for an operator.
func refusal(typ string) string {
	switch typ {
	case "thin", "thin-pool":
		return "thin pools can't be read by this version: recover the volume with LVM in a machine that may be trusted with it"
	case "mirror", "raid1":
		return "LVM mirrors can't be read by this version"
	case "cache", "writecache":
		return "a cached volume may have its newest data in the cache only: detach the cache in the guest (lvconvert --uncache) before the split"
	case "snapshot":
		return "is the record of a snapshot and holds no data"
	}
	return "volumes of this type can't be read by this version"
}

// Open returns the volume as a read-only device. It reads through the PVs'
// devices, which must stay open as long.
func (g *Group) Open(lv *LV) (lun.Device, error) {
	areas, err := g.Map(lv)
	if err != nil {
		return nil, err
	}
	return &volume{areas: areas, size: lv.Size}, nil
}

type volume struct {
	areas []Area // by LV, then Index
	size  int64
}

func (v *volume) Size() int64                              { return v.size }
func (v *volume) Sync() error                              { return nil }
func (v *volume) WriteAt(p []byte, off int64) (int, error) { return 0, lun.ErrReadOnly }

func (v *volume) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), v.size); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		a, at, run := v.locate(off + int64(done))
		n := min(run, int64(len(p)-done))
		if _, err := a.PV.PV.Dev.ReadAt(p[done:done+int(n)], at); err != nil {
			return done, fmt.Errorf("byte %d of %s: %w", at, a.PV.Name, err)
		}
		done += int(n)
	}
	return len(p), nil
}

// locate finds the area that holds byte off, where on its device, and for how
// many bytes.
func (v *volume) locate(off int64) (a Area, at, run int64) {
	i := sort.Search(len(v.areas), func(i int) bool { return v.areas[i].LV > off }) - 1
	first := v.areas[i] // the last column of the segment
	i -= int(first.Index)
	rel := off - first.LV
	unit, in := rel/first.Unit, rel%first.Unit
	a = v.areas[i+int(unit%first.Stripes)]
	return a, a.Off + unit/first.Stripes*a.Unit + in, first.Unit - in
}
