package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/redo"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// ErrDiscards says that a recovery in place would make other snapshots of the
// same volume worthless. Compared with errors.Is; the text names them.
var ErrDiscards = errors.New("their content would be lost: agree to that, or recover to a file or as a view")

// Mode is how a volume is put back in place.
type Mode string

const (
	Overwrite Mode = "overwrite" // what a thick snapshot preserves is written over the volume
	Delete    Mode = "delete"    // the volume takes a thin snapshot's device, and its own goes
	Rename    Mode = "rename"    // a subvolume and its snapshot exchange their names
)

// InPlaceOptions of PrepareInPlace.
type InPlaceOptions struct {
	// Snapshots to recover, by UUID or name ("vg/snap"), at most one per
	// volume. Empty: every volume that has exactly one.
	Snapshots []string
	// DiscardOthers agrees that other snapshots of the recovered volumes, whose
	// content depends on what is overwritten, are removed.
	DiscardOthers bool
	// Journal is a file outside of the disks that keeps what is about to be
	// written, for snapshots that lie in the very volume that is written over:
	// shadow copies, and those of Btrfs. nil refuses these. One that holds the
	// journal of an interrupted run has that one ended, whatever Snapshots says.
	Journal redo.File
}

// InPlace is a recovery in place that is ready to run: nothing is written
// before Run, and all that could be wrong with the formats has been found.
//
// A thin snapshot is put back by metadata alone (Delete): one commit gives its
// device to the volume and has LVM delete the dirty device from the pool at the
// next activation.
//
// For a thick one (Overwrite), the way is that of LVM's own `lvconvert --merge`,
// so that the devices say at each moment what state they are in, to this program
// and to LVM alike:
//
//  1. The metadata marks the snapshots as merging, and other snapshots of the
//     same volumes are gone from it.
//  2. What the snapshots preserve is written over their volumes. The stores
//     stay as they are.
//  3. The metadata has the snapshots no more; see lvm2.Edit.Revert.
//
// Each step is stable before the next begins, and a change of metadata counts
// by headers of one sector each. A crash, or an error, at any point therefore
// leaves devices of which every view shows the same recovered volumes as
// before; which PrepareInPlace and Run finish, whatever has been written
// already; and which LVM in a guest finishes by itself if it activates them.
// No journal besides is needed.
//
// A shadow copy lies in the volume that it is of, and what it preserves may be
// overwritten by what it preserves of elsewhere (Overwrite); of a Btrfs a few tree
// blocks are written where they are (Rename). Both are staged: all that will be
// written is in a redo journal, outside and stable, before the first write; see
// package redo. An interrupted run leaves a volume of which nothing can be read but
// that it needs its journal.
type InPlace struct {
	// Volumes that are put back.
	Volumes []Recovered
	// Discarded are other snapshots that go with it, "vg/snap".
	Discarded []string
	// Resumed says that an earlier run was interrupted after its first step.
	Resumed bool
	// Done says that an earlier run came to its end: Run writes nothing.
	Done bool

	sources []*open.Disk
	disks   []*merged // by source
	byPV    map[*lvm2.PV]int
	mark    []lvm2.Change
	commit  []lvm2.Change
	lists   []rewritten
	bytes   int64
	written int64 // by Run
	ragged  bool  // something written is no whole logical blocks

	staged *staged // none of LVM's
}

// The descriptions in metadata that say how far a recovery has come. LVM
// replaces them by its own at the next change.
const (
	sayRecovering = "cleave: recovering "
	sayRecovered  = "cleave: recovered "
)

// PrepareInPlace plans to put volumes back to their snapshots on the devices
// themselves, which must be writable and used by nobody else until Run has
// returned. It reads what OpenView reads, and refuses everything that is not
// whole: damage that a view passes over is none to write beside.
//
// Other snapshots of a recovered volume are ErrDiscards without the consent.
// Snapshots that an earlier run has brought back completely are no error; see
// InPlace.Done.
func PrepareInPlace(ctx context.Context, c *open.Contents, o InPlaceOptions) (*InPlace, error) {
	if o.Journal != nil {
		if p, err := resume(ctx, c, o.Journal); p != nil || err != nil {
			return p, err
		}
	}
	if len(c.Damage) > 0 {
		return nil, fmt.Errorf("recover in place: nothing is written where there is damage: %w", c.Damage[0])
	}
	p := &InPlace{byPV: make(map[*lvm2.PV]int)}
	disks := make(map[*lvm2.PV]*merged)
	p.sources = c.Disks
	for i, d := range c.Disks {
		m := &merged{base: d.Device}
		p.disks = append(p.disks, m)
		for _, pv := range d.PVs {
			disks[pv], p.byPV[pv] = m, i
		}
	}
	p.lists = make([]rewritten, len(p.disks))

	names, done := finished(c, o.Snapshots)
	var picks []chosen
	if len(names) > 0 || len(done) == 0 {
		var err error
		if picks, err = choose(c, names); err != nil {
			return nil, err
		}
	}
	for _, d := range done {
		if err := p.already(d); err != nil {
			return nil, err
		}
	}
	groups := make(map[*lvm2.Group][]chosen)
	var order []*lvm2.Group
	for _, pick := range picks {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if pick.kept != nil {
			if len(done) > 0 || slices.ContainsFunc(picks, func(c chosen) bool { return c.kept == nil }) {
				return nil, fmt.Errorf("recover %s to %s in place: not together with snapshots of LVM, which are brought back another way: choose those first, and this one in a second run: %w", pick.volume(), pick.name(), ErrChoice)
			}
			return p, p.stage(ctx, picks, o)
		}
		r, err := redirect(disks, pick)
		if err != nil {
			return nil, err
		}
		if r.Mode = Overwrite; pick.snap.Thin {
			r.Mode = Delete
		}
		p.Volumes = append(p.Volumes, r)
		if groups[pick.group] == nil {
			order = append(order, pick.group)
		}
		groups[pick.group] = append(groups[pick.group], pick)
	}
	for _, g := range order {
		if err := p.metadata(g, groups[g], o); err != nil {
			return nil, err
		}
	}
	p.Done = len(picks) == 0
	return p, p.layOut()
}

// metadata makes the changes of a group's text.
func (p *InPlace) metadata(g *lvm2.Group, picks []chosen, o InPlaceOptions) error {
	for _, gp := range g.PVs {
		if gp.PV != nil && len(gp.PV.Damage) > 0 {
			return fmt.Errorf("recover %s in place: nothing is written where there is damage: %w", g.Name, gp.PV.Damage[0])
		}
	}
	e := g.Edit()
	marked := true
	var said []string
	for _, pick := range picks {
		for _, s := range others(g, pick) {
			if !o.DiscardOthers {
				return fmt.Errorf("recover %s to %s in place: it has other snapshots (%s): %w", pick.volume(), pick.name(), listed(g, others(g, pick)), ErrDiscards)
			}
			p.Discarded = append(p.Discarded, g.Name+"/"+s.COW.Name)
			e.Remove(s)
			marked = false
		}
		if !pick.snap.Thin { // a thin one takes its origin's place in one step
			e.Merge(pick.snap)
			marked = marked && pick.snap.Merging
		}
		said = append(said, fmt.Sprintf("%s from %s %s", pick.snap.Origin.Name, pick.snap.COW.Name, pick.snap.COW.UUID))
	}
	p.Resumed = p.Resumed || marked && strings.HasPrefix(g.Description, sayRecovering)
	list := strings.Join(said, ", ")
	var texts [][]byte
	if !marked {
		texts = append(texts, e.Text(sayRecovering+list))
	}
	for _, pick := range picks {
		if err := e.Revert(pick.snap); err != nil {
			return err
		}
	}
	changes, err := g.Commit(append(texts, e.Text(sayRecovered+list))...)
	if err != nil {
		return err
	}
	for _, c := range changes {
		if c.Overwrites {
			return &lun.FormatError{Format: "lvm2", Offset: -1, Field: g.Name + ", metadata areas", Reason: "are too small to hold the metadata of now beside the new one: recover to a file or as a view"}
		}
	}
	p.mark = append(p.mark, changes[:len(changes)-1]...)
	p.commit = append(p.commit, changes[len(changes)-1])
	p.held(g)
	return nil
}

func others(g *lvm2.Group, pick chosen) []*lvm2.Snapshot {
	var out []*lvm2.Snapshot
	for _, s := range g.SnapshotsOf(pick.snap.Origin) {
		if s != pick.snap && !s.Thin {
			out = append(out, s)
		}
	}
	return out
}

// held lists where an earlier run has changed the metadata of g.
func (p *InPlace) held(g *lvm2.Group) {
	for _, h := range g.Held() {
		p.lists[p.byPV[h.PV]].add(h.Off, int64(len(h.Data)))
	}
}

// layOut lists all that Run will write, and asks the disks whether they take it.
func (p *InPlace) layOut() error {
	for i, m := range p.disks {
		m.seal()
		logical, _ := m.Blocks()
		block := int64(logical)
		ask := asker{disk: p.sources[i]}
		err := m.preserved(func(off, n int64) error {
			p.bytes += n
			p.ragged = p.ragged || off%block != 0 || n%block != 0
			p.lists[i].add(off, n)
			return ask.add(off, n)
		})
		if err == nil {
			err = ask.flush()
		}
		if err != nil {
			return fmt.Errorf("recover in place: %w", err)
		}
	}
	for _, changes := range [][]lvm2.Change{p.mark, p.commit} {
		for _, c := range changes {
			for _, q := range c.Patches() {
				i := p.byPV[q.PV]
				p.lists[i].add(q.Off, int64(len(q.Data)))
				if err := p.sources[i].CheckWritable([]lun.Extent{{Off: q.Off, Len: int64(len(q.Data))}}); err != nil {
					return fmt.Errorf("recover in place: %w", err)
				}
			}
		}
	}
	return nil
}

// asker asks a disk whether it takes writes: a virtual disk may have no blocks
// of its own there.
type asker struct {
	disk *open.Disk
	list []lun.Extent
}

func (a *asker) add(off, n int64) error {
	if k := len(a.list) - 1; k >= 0 && a.list[k].Off+a.list[k].Len == off {
		a.list[k].Len += n
		return nil
	}
	if a.list = append(a.list, lun.Extent{Off: off, Len: n}); len(a.list) < maxExtents {
		return nil
	}
	return a.flush()
}

func (a *asker) flush() error {
	err := a.disk.CheckWritable(a.list)
	a.list = a.list[:0]
	return err
}

// Bytes is how much of the volumes is written, without metadata.
func (p *InPlace) Bytes() int64 { return p.bytes }

// Rewritten lists, for each source, what differs from the split after Run, or
// may differ once Run has begun: extents by offset, without overlaps, in a
// bounded number, so that they may name more than was written. After a crash it
// covers what the earlier run has written.
func (p *InPlace) Rewritten() [][]lun.Extent {
	out := make([][]lun.Extent, len(p.lists))
	for i := range p.lists {
		out[i] = p.lists[i].extents()
	}
	return out
}
