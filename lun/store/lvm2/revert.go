package lvm2

import (
	"fmt"
	"slices"
	"strings"
)

// Revert has the origin of a snapshot be the snapshot, as far as metadata can;
// at most one for each origin.
//
// Of a thick snapshot, its record and its store are gone, and so are those of
// other thick snapshots of its origin, since they would show wrong content over
// another origin. Where the snapshot's content is put is the caller's matter,
// by Map; an origin that was a mirror or a raid1 is linear afterwards, on the
// leg that Map tells: the other legs hold what the origin was, and to fill them
// is LVM's to do (lvconvert --mirrors 1).
//
// A thin snapshot is in its origin's place: the origin's name and UUID now mean
// the snapshot's device, nothing is to be copied, and other thin snapshots stay
// what they are. The text is that of `lvconvert --merge` before LVM has told
// the kernel: it activates like any other, and LVM's next change of the pool has
// the origin's former device deleted. A pool that LVM would not activate is an
// error.
func (e *Edit) Revert(s *Snapshot) error {
	for _, other := range e.group.SnapshotsOf(s.Origin) {
		if !other.Thin {
			e.Remove(other)
		}
	}
	var err error
	switch {
	case s.Thin:
		err = e.takePlace(s)
	case len(s.Origin.Segments) == 1 && len(s.Origin.Segments[0].legs) > 0:
		err = e.linearise(s.Origin)
	}
	if err != nil {
		return fmt.Errorf("new metadata of %s/%s: %w", e.group.Name, s.Origin.Name, err)
	}
	return nil
}

// linearise puts the segments of the leg that is read into the place of a
// mirror, and drops the volumes that it was made of.
func (e *Edit) linearise(origin *LV) error {
	g, s, lvs, lv := e.group, origin.Segments[0], e.volumes(), e.lv(origin.Name)
	f := fields{where: g.where + "/" + origin.Name + "/segment1"}
	stripes, err := g.copyOf(f, s, newDescent())
	if err != nil {
		return err
	}
	image := g.lvs[stripes[0].Name]
	if image == nil || stripes[0].Extent != 0 || image.Size != origin.Size {
		return f.fail("legs", stripes[0].Name, "the leg is no volume of the mirror's size")
	}
	lv.Items = slices.DeleteFunc(lv.Items, func(it Item) bool { return it.Sub != nil && strings.HasPrefix(it.Key, "segment") })
	from := lvs.sub(image.Name)
	for i := range image.Segments {
		key := fmt.Sprintf("segment%d", i+1)
		lv.Items = append(lv.Items, Item{Key: key, Sub: from.sub(key).clone()})
	}
	lv.set("segment_count", int64(len(image.Segments)))
	// What else the status says is of a mirror: that it never was in sync, that
	// a leg is rebuilt.
	keep := []Value{"READ", "WRITE", "VISIBLE", "FIXED_MINOR"}
	if list, ok := lv.get("status").([]Value); ok {
		lv.set("status", slices.DeleteFunc(slices.Clone(list), func(v Value) bool { return !slices.Contains(keep, v) }))
	}
	for _, l := range s.legs {
		lvs.drop(l.image.Name)
		lvs.drop(l.meta)
	}
	lvs.drop(s.log)
	return nil
}

// takePlace exchanges the devices of a thin snapshot and its origin, drops the
// snapshot, and has LVM tell the pool to delete the device that has no name any
// more.
func (e *Edit) takePlace(s *Snapshot) error {
	g, lvs := e.group, e.volumes()
	poolLV := g.lvs[s.COW.Segments[0].thin.pool]
	if poolLV == nil || s.Origin.Segments[0].thin.pool != poolLV.Name {
		return fields{where: g.where + "/" + s.COW.Name}.fail("thin_pool", s.COW.Segments[0].thin.pool, "is not that of its origin")
	}
	pool, err := g.Pool(poolLV)
	if err != nil {
		return err
	}
	if pool.Warning != nil {
		return pool.Warning
	}
	origin := lvs.sub(s.Origin.Name)
	seg := lvs.sub(s.COW.Name).sub("segment1").clone()
	seg.drop("merge")
	seg.drop("origin")
	if o := s.Origin.Segments[0].thin.origin; o != "" && o != s.COW.Name {
		seg.set("origin", o)
	}
	for i := range origin.Items {
		if origin.Items[i].Key == "segment1" {
			origin.Items[i].Sub = seg
		}
	}
	lvs.drop(s.COW.Name)
	for _, it := range lvs.Items {
		adopt(it.Sub, s)
	}
	pool.forget(lvs.sub(poolLV.Name).sub("segment1"), s.Origin.Segments[0].thin.device)
	return nil
}

// adopt has a volume that was a snapshot of s be one of the origin, whose
// device is now that of s, and takes back a merge into the origin that waits
// for the next activation: it would come after this one.
func adopt(lv *Section, s *Snapshot) {
	seg := lv.sub("segment1")
	if seg == nil || seg.get("type") != Value("thin") {
		return
	}
	if seg.get("origin") == Value(s.COW.Name) {
		seg.set("origin", s.Origin.Name)
	}
	if m := seg.get("merge"); m == Value(s.Origin.Name) || m == Value(s.COW.Name) {
		seg.drop("merge")
	}
}

// forget adds to a pool's segment the message that deletes a device. LVM's
// transaction_id is then one ahead of the kernel's until it has been sent.
func (p *Pool) forget(seg *Section, device uint64) {
	next := int64(p.Transaction) + 1
	if seg.get("transaction_id") != Value(next) {
		// Messages that are still there were sent.
		seg.Items = slices.DeleteFunc(seg.Items, isMessage)
		seg.set("transaction_id", next)
	}
	n := 1
	for _, it := range seg.Items {
		if isMessage(it) {
			n++
		}
	}
	seg.Items = append(seg.Items, Item{Key: fmt.Sprintf("message%d", n), Sub: &Section{Items: []Item{{Key: "delete", Value: int64(device)}}}})
}

func isMessage(it Item) bool { return it.Sub != nil && strings.HasPrefix(it.Key, "message") }

// sub returns a section's section, nil if it has none of the name.
func (s *Section) sub(key string) *Section {
	if s != nil {
		for _, it := range s.Items {
			if it.Key == key {
				return it.Sub
			}
		}
	}
	return nil
}

// get returns a setting's value, nil if there is none.
func (s *Section) get(key string) Value {
	for _, it := range s.Items {
		if it.Key == key {
			return it.Value
		}
	}
	return nil
}

// drop removes an item, if it is there.
func (s *Section) drop(key string) {
	s.Items = slices.DeleteFunc(s.Items, func(it Item) bool { return it.Key == key })
}
