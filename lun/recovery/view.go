package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/overlay"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// ViewOptions of OpenView.
type ViewOptions struct {
	// Snapshots to recover, by UUID or name ("vg/snap"), at most one per
	// volume. Empty: every volume that has exactly one.
	Snapshots []string
	// AsItIs recovers nothing.
	AsItIs bool
	// Dir is where the overlay keeps what is written to the view; "" is the
	// system's directory for temporary files.
	Dir string
	// Files are for a process that opens none itself: an empty file for each
	// source, in the place of those in Dir. View.Close closes them; after an
	// error they are the caller's to close.
	Files []*os.File
	// ReadOnly makes no overlay; View.Devices is empty.
	ReadOnly bool
	// NewIdentity is a seed from which the view gets identifiers of its own, so
	// that it can be attached beside the original; "" keeps those of the
	// sources. The same seed gives the same view the same ones again. See
	// View.Identity.
	NewIdentity string
	// Limit bounds what is written to each device of the view, in bytes; 0 is
	// no bound. Beyond it writes fail with lun.ErrNoSpace.
	Limit int64
}

// Recovered is one volume that a view shows as its snapshot.
type Recovered struct {
	Volume       string `json:"volume"` // "vg/lv"
	VolumeUUID   string `json:"volumeUuid"`
	Snapshot     string `json:"snapshot"` // "vg/snap"
	SnapshotUUID string `json:"snapshotUuid"`
	Exceptions   int    `json:"exceptions"`     // chunks that come from the store; of a thin snapshot, its blocks
	Preserved    int64  `json:"preservedBytes"` // what they hold
	// Discarded are other thick snapshots of the volume, "vg/snap": they are of
	// another origin now, and gone.
	Discarded []string `json:"discarded,omitempty"`
	Mode      Mode     `json:"mode,omitempty"`   // in place only
	Staged    bool     `json:"staged,omitempty"` // in place only: by way of a redo journal
}

// View is a recovered image of one or several devices.
type View struct {
	// Devices are writable, one per source and in the sources' order; none
	// with ViewOptions.ReadOnly.
	Devices []lun.Device
	// Clean are the same without the overlay: read-only.
	Clean []lun.Device
	// Volumes are those that show their snapshots. Others show the split.
	Volumes []Recovered
	// Identity lists what ViewOptions.NewIdentity changed.
	Identity []Identifier
	// Warnings are about what was left as it is.
	Warnings []error

	layers []*overlay.Overlay // none if it is read-only
	bases  []*merged
}

// OpenView makes a view of what was probed. It reads the exception tables of
// the chosen snapshots and nothing else, and fails as a whole: a snapshot that
// is overflowed or unreadable, or a volume group that misses a PV, is no view
// at all.
//
// In each volume group of a recovered volume the view's metadata (seqno + 1, in
// every area of every PV) is that of lvm2.Edit.Revert: a recovered volume has no
// thick snapshots any more, the chosen one or others, and is linear where it was
// a mirror; a thin snapshot has taken its origin's name.
//
// ViewOptions.NewIdentity changes every group and every partition table, or is an
// error: nothing of what is seen may be damaged or missing.
//
// The sources must stay open, and must not change, until Close.
func OpenView(ctx context.Context, c *open.Contents, o ViewOptions) (*View, error) {
	var picks []chosen
	if !o.AsItIs {
		var err error
		if picks, err = choose(c, o.Snapshots); err != nil {
			return nil, err
		}
	}
	v := &View{}
	disks := make(map[*lvm2.PV]*merged)
	for _, d := range c.Disks {
		m := &merged{base: d.Device}
		v.bases = append(v.bases, m)
		v.Clean = append(v.Clean, m)
		for _, pv := range d.PVs {
			disks[pv] = m
		}
	}
	if err := v.recover(ctx, c, picks, disks, o.NewIdentity); err != nil {
		return nil, err
	}
	if len(o.Files) > 0 && len(o.Files) != len(v.bases) {
		return nil, fmt.Errorf("%d files for the overlays of %d devices", len(o.Files), len(v.bases))
	}
	for i, m := range v.bases {
		m.seal()
		if err := m.apart(); err != nil {
			return nil, errors.Join(err, v.Close())
		}
		if o.ReadOnly {
			continue
		}
		layer, err := o.overlay(i, m)
		if err != nil {
			return nil, errors.Join(err, v.Close())
		}
		v.layers = append(v.layers, layer)
		v.Devices = append(v.Devices, layer)
	}
	return v, nil
}

// recover has the bases show what was chosen: by redirections, and by patches of
// the metadata.
func (v *View) recover(ctx context.Context, c *open.Contents, picks []chosen, disks map[*lvm2.PV]*merged, identity string) error {
	edits := make(map[*lvm2.Group]*lvm2.Edit)
	kept := make(keptEdits)
	for _, p := range picks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if p.kept != nil {
			r, err := kept.show(p, v.bases)
			if err != nil {
				return err
			}
			v.Volumes = append(v.Volumes, r)
			continue
		}
		r, err := redirect(disks, p)
		if err != nil {
			return err
		}
		v.Volumes = append(v.Volumes, r)
		if edits[p.group] == nil {
			edits[p.group] = p.group.Edit()
		}
		if err := edits[p.group].Revert(p.snap); err != nil {
			return err
		}
	}
	if err := kept.patch(v.bases); err != nil {
		return err
	}
	if identity != "" {
		if err := v.renew(c, seed(identity), edits); err != nil {
			return fmt.Errorf("new identity: %w", err)
		}
	}
	for g, e := range edits {
		changes, err := g.Commit(e.Text("cleave: volumes put back to their snapshots"))
		if err != nil {
			return err
		}
		for _, p := range changes[0].Patches() {
			disks[p.PV].patch(p.Off, p.Data)
		}
	}
	return nil
}

// overlay makes the layer over device i.
func (o *ViewOptions) overlay(i int, base lun.Device) (*overlay.Overlay, error) {
	if len(o.Files) > 0 {
		return overlay.New(base, o.Files[i], overlay.Options{Limit: o.Limit})
	}
	return overlay.Temp(base, o.Dir, overlay.Options{Limit: o.Limit})
}

// redirect makes the origin's areas read the snapshot. A thin one needs no
// redirection: the metadata gives its device to the origin.
func redirect(disks map[*lvm2.PV]*merged, p chosen) (Recovered, error) {
	_, kept, err := judge(p.group, p.snap)
	if err != nil {
		return Recovered{}, fmt.Errorf("recover %s from %s: %w", p.volume(), p.name(), err)
	}
	r := Recovered{Volume: p.volume(), VolumeUUID: p.snap.Origin.UUID, Snapshot: p.name(), SnapshotUUID: p.snap.COW.UUID,
		Exceptions: kept.exceptions, Preserved: kept.preserved}
	for _, s := range p.group.SnapshotsOf(p.snap.Origin) {
		if s != p.snap && !s.Thin {
			r.Discarded = append(r.Discarded, p.group.Name+"/"+s.COW.Name)
		}
	}
	if p.snap.Thin {
		return r, nil
	}
	areas, err := p.group.Map(p.snap.Origin)
	if err != nil {
		return Recovered{}, fmt.Errorf("recover %s: %w", p.volume(), err)
	}
	for _, a := range areas {
		m := disks[a.PV.PV]
		m.redirects = append(m.redirects, toStore(a, kept.store))
	}
	return r, nil
}

// Rewritten lists, for each device, what may differ from the split: what reads
// from snapshots, the new metadata, and what has been written to the view so far.
// Extents are by offset, without overlaps, in a bounded number, so that they may
// name more. Whoever compares two recovered splits adds this to what the array
// knows of their changes.
func (v *View) Rewritten() ([][]lun.Extent, error) {
	out := make([][]lun.Extent, len(v.bases))
	for i, m := range v.bases {
		var r rewritten
		add := func(off, n int64) error {
			r.add(off, n)
			return nil
		}
		for _, q := range m.patches {
			r.add(q.off, int64(len(q.data)))
		}
		err := m.preserved(add)
		if i < len(v.layers) {
			err = errors.Join(err, v.layers[i].Written(add))
		}
		if err != nil {
			return nil, err
		}
		out[i] = r.extents()
	}
	return out, nil
}

// Close gives up the view and all that was written to it. The sources stay
// open.
func (v *View) Close() error {
	var errs []error
	for _, l := range v.layers {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
