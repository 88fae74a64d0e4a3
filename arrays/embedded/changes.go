package embedded

import (
	"context"
	"fmt"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Changes tells which regions of a volume may differ between two of its
// snapshots, or a snapshot and now. It is known from the maps of what was
// written: in the epochs between the two, and to the splits themselves. The
// volume may be in use, or offline; what is written to it during the call may
// be left out. Where one of the two is smaller, all beyond its end differs.
//
// Half a million regions are told at the most: where there are more, the
// granularity is coarser than the 64 KiB that it is otherwise.
//
// A map that was lost or damaged was replaced, with an event, by one that
// claims everything. Of a volume that was deleted nothing is known: kind
// NotSupported.
func (a *Array) Changes(ctx context.Context, ref driver.VolumeID, from, to driver.SnapshotID) (driver.Changes, error) {
	v, err := a.find(ref)
	if err == nil {
		err = v.lockAdmin(ctx)
	}
	if err != nil {
		if kindOf(err) == driver.NotFound && a.isOrphaned(ref) {
			err = driver.Errorf(driver.NotSupported, "volume %.80q was deleted, and with it what is known of changes", ref)
		}
		return driver.Changes{}, err
	}
	defer v.unlockAdmin()
	r := regions{most: maxRegions, grain: regionSize}
	if err := v.changes(from, to, &r); err != nil {
		return driver.Changes{}, fmt.Errorf("changes of %s: %w", v.label, err)
	}
	return driver.Changes{Granularity: r.grain, Regions: r.list}, nil
}

// isOrphaned reports whether a volume is gone of which there are snapshots.
func (a *Array) isOrphaned(ref driver.VolumeID) bool {
	for _, s := range a.store.read().Snapshots {
		if s.Volume.String() == string(ref) || s.VolumeName == string(ref) {
			return true
		}
	}
	return false
}

// moment is a point in a volume's life: a split, or now.
type moment struct {
	epoch uint64 // the first after it
	size  int64
	own   *bitmap // what was written to the split
}

func (v *volume) moment(id driver.SnapshotID) (moment, error) {
	if id == "" {
		return moment{epoch: lastEpoch, size: v.size.Load()}, nil
	}
	s, err := v.a.findSnapshot(id)
	if err != nil {
		return moment{}, err
	}
	r := v.a.store.read().snapshot(s.id)
	switch {
	case r == nil:
		return moment{}, driver.Errorf(driver.NotFound, "no snapshot %.80q", id)
	case r.Volume != v.id:
		return moment{}, driver.Errorf(driver.InvalidRequest, "snapshot %s is one of volume %q", id, r.VolumeName)
	}
	own, err := s.written()
	return moment{epoch: r.Epoch, size: r.Size, own: own}, err
}

// changes is Changes with v.admin held.
func (v *volume) changes(from, to driver.SnapshotID, out *regions) error {
	a, err := v.moment(from)
	if err != nil {
		return err
	}
	b, err := v.moment(to)
	if err != nil {
		return err
	}
	if from == to {
		return nil
	}
	if b.epoch < a.epoch {
		a, b = b, a
	}
	small, large := min(a.size, b.size), max(a.size, b.size)
	all := newBitmap(regionsFor(large, regionSize))
	v.orEpochs(all, a.epoch, b.epoch)
	for _, m := range []moment{a, b} {
		if m.own != nil {
			all.or(m.own)
		}
	}
	all.setRange(small, large-small, regionSize)
	for i := int64(0); ; {
		first, n := all.run(i, all.n())
		if n == 0 {
			return nil
		}
		off := first * regionSize
		out.add(off, min(off+n*regionSize, large), large)
		i = first + n
	}
}

// maxRegions is how many regions are told at the most. A volume that was written
// to all over has more, by the hundred million, which nobody could take.
const maxRegions = 1 << 19

// regions are collected in order. Where there would be more than most, grain is
// doubled until there are not, and they cover more than what changed.
type regions struct {
	most  int
	grain int64
	list  []lun.Extent
}

// add adds [off, end) of a volume of size bytes.
func (r *regions) add(off, end, size int64) {
	r.put(off, end, size)
	for len(r.list) > r.most {
		r.grain *= 2
		was := r.list
		r.list = r.list[:0] // never longer than what was read of was
		for _, e := range was {
			r.put(e.Off, e.Off+e.Len, size)
		}
	}
}

func (r *regions) put(off, end, size int64) {
	off, end = off/r.grain*r.grain, min((end+r.grain-1)/r.grain*r.grain, size)
	if n := len(r.list); n > 0 {
		if last := &r.list[n-1]; last.Off+last.Len >= off {
			last.Len = max(last.Len, end-last.Off)
			return
		}
	}
	r.list = append(r.list, lun.Extent{Off: off, Len: end - off})
}

var _ driver.ChangeTracker = (*Array)(nil)
