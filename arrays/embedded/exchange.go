package embedded

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// exchange makes a split mirror its volume's, and one of the volume's mirrors a
// split of what the volume held: nothing is copied, whatever the size. Further
// mirrors of the volume are filled with what differs.
//
// What differs is known: it was written to the volume in an epoch since the
// split, or to the split. That union is what the further mirrors lack, and it
// is what the epoch that now begins starts with. So the rule by which other
// generations are compared stays true: between a split and now lies what was
// written in the epochs since, as if the exchange had been one large write.
//
// All files are stable before the one record that says so is: a crash leaves
// the state before or the state after.
type exchange struct {
	v     *volume
	s     *snapshot
	rec   snapshotRecord // of s
	tag   driver.Tag     // of the split that gets the old content
	in    *plex          // s's mirror
	out   *plex          // the volume's that becomes the split
	clone bool           // out's place is taken by a clone of it: nothing goes back
	stay  []*plex        // the volume's others, to be filled
	epoch uint64
	dirty *mapFile // of that epoch: what differs
	todos map[lun.Identity]*mapFile
	snap  lun.Identity
}

// turn is Revert and Reverse. tag names the split that gets the old content.
func (a *Array) turn(ctx context.Context, id driver.SnapshotID, verb string, tag func(*snapshotRecord) driver.Tag) (driver.Snapshot, error) {
	s, err := a.findSnapshot(id)
	if err != nil {
		return a.turnedBefore(ctx, id, verb, err)
	}
	rec := a.store.read().snapshot(s.id)
	a.mu.Lock()
	v := a.volumes[s.volume]
	a.mu.Unlock()
	switch {
	case rec == nil:
		return a.turnedBefore(ctx, id, verb, driver.Errorf(driver.NotFound, "no snapshot %.80q", id))
	case v == nil:
		return driver.Snapshot{}, driver.Errorf(driver.InvalidRequest, "snapshot %s: its volume was deleted: break the snapshot to use it as a volume", id)
	}
	release, err := a.splits.lock(ctx, tag(rec))
	if err != nil {
		return driver.Snapshot{}, err
	}
	if err := v.lockAdmin(ctx); err != nil {
		release()
		return driver.Snapshot{}, err
	}
	var out driver.Snapshot
	what := fmt.Sprintf("%s of %s and snapshot %s", verb, v.label, id)
	err = a.finish(ctx, what, func() { v.unlockAdmin(); release() }, func() error {
		rec := a.store.read().snapshot(s.id)
		if rec == nil { // somebody was faster
			var err error
			out, err = a.turned(id, verb, driver.Errorf(driver.NotFound, "no snapshot %.80q", id))
			return err
		}
		x := &exchange{v: v, s: s, rec: *rec, tag: tag(rec), todos: map[lun.Identity]*mapFile{}}
		if err := x.run(verb); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		out = a.describe(a.store.read().snapshot(x.snap))
		return nil
	})
	if err != nil { // out may still be written to
		return driver.Snapshot{}, err
	}
	return out, nil
}

// turned finds what an earlier exchange of the same kind with a snapshot made,
// or returns err.
func (a *Array) turned(id driver.SnapshotID, verb string, err error) (driver.Snapshot, error) {
	if kindOf(err) != driver.NotFound {
		return driver.Snapshot{}, err
	}
	c := a.store.read()
	for i := range c.Snapshots {
		r := &c.Snapshots[i]
		if !r.For.IsZero() && driver.SnapshotID(r.For.String()) == id && (r.Tag == safeTag(r.For)) == (verb == verbRevert) {
			return a.describe(r), nil
		}
	}
	return driver.Snapshot{}, err
}

// turnedBefore is turned for a call that waits for the exchange to end, should
// it be under way still: the volume may be used when the call returns.
func (a *Array) turnedBefore(ctx context.Context, id driver.SnapshotID, verb string, err error) (driver.Snapshot, error) {
	out, err := a.turned(id, verb, err)
	if err != nil {
		return driver.Snapshot{}, err
	}
	v, err := a.find(out.Volume)
	if err == nil {
		err = v.lockAdmin(ctx)
	}
	switch {
	case err == nil:
		v.unlockAdmin()
	case kindOf(err) != driver.NotFound: // deleted since
		return driver.Snapshot{}, err
	}
	return out, nil
}

// run carries the exchange out. v.admin is held.
func (x *exchange) run(verb string) (err error) {
	v := x.v
	if err := v.block("its " + verb + " is under way"); err != nil {
		return err
	}
	if err := x.s.retire(); err != nil {
		v.unblock()
		return err
	}
	v.stopScrub(fmt.Errorf("the volume's %s began", verb))
	v.pauseFills()
	if err = x.prepare(); err == nil {
		err = x.commit()
	}
	if err != nil && kindOf(err) == driver.OutcomeUnknown {
		// Which content the volume has is on the disk, and known at the next
		// start. Nobody gets to either before.
		x.closeMaps()
		v.mu.Lock()
		v.blocked = "the outcome of its " + verb + " is unknown until a restart"
		v.mu.Unlock()
		return err
	}
	defer v.unblock()
	if err != nil {
		x.undo()
		return err
	}
	x.follow()
	return nil
}

// prepare makes all files stable that the record will refer to. On an error
// nothing has changed but that maps may claim more.
func (x *exchange) prepare() error {
	v, a := x.v, x.v.a
	if err := v.quiesce(); err != nil {
		return err
	}
	v.state.Lock()
	cur := v.cur.parts()
	v.state.Unlock()
	n := len(cur.insync)
	if n == 0 {
		return driver.Errorf(driver.NotSynchronized, "%s is offline, so that what it holds can't be kept: break the snapshot to use it as a volume", v.label)
	}
	x.out = cur.insync[n-1]
	if x.rec.Clone { // the volume's mirrors remain as many, and where they were
		for _, p := range slices.Backward(cur.insync) {
			if x.clone = p.pool == x.rec.Mirror.Pool; x.clone {
				x.out = p
				break
			}
		}
	}
	x.stay = slices.Concat(without(cur.insync, x.out), cur.filling)
	c := a.store.read()
	r := c.volume(v.id)
	x.epoch, x.snap = r.NextEpoch, lun.NewIdentity()

	var err error
	if x.in, err = a.openPlex(&x.rec.Mirror, x.rec.Size, os.O_RDWR); err != nil {
		return err
	}
	if size := v.size.Load(); x.rec.Size < size { // the volume has grown: what is added is zeroes
		if err = x.in.f.Truncate(size); err == nil {
			err = x.in.f.Sync()
		}
		if err != nil {
			return noSpace(err)
		}
	}
	if err = x.differ(); err != nil {
		return err
	}
	for _, p := range x.stay {
		if x.todos[p.id], err = v.lacking(r.mirror(p.id), x.dirty.bitmap); err != nil {
			return err
		}
	}
	for _, m := range cur.missed {
		m.or(x.dirty.bitmap)
		if err = m.flush(); err != nil {
			return err
		}
	}
	return a.fs.SyncDir(a.maps)
}

// differ makes the map of the epoch to come.
func (x *exchange) differ() (err error) {
	v := x.v
	if x.dirty, err = createMap(v.a.fs, v.a.mapPath(v.epochName(x.epoch)), v.size.Load(), regionSize); err != nil {
		return err
	}
	v.orEpochs(x.dirty.bitmap, x.rec.Epoch, lastEpoch)
	own, err := x.s.written()
	if err != nil {
		return err
	}
	if own != nil {
		x.dirty.or(own)
	}
	return x.dirty.flush()
}

// lacking is the map of what a mirror lacks besides more: a new one for a
// mirror in sync, the one it has for others.
func (v *volume) lacking(m *mirrorRecord, more *bitmap) (*mapFile, error) {
	todo, err := v.unite(todoName(m.ID), m.Todo)
	if err != nil {
		return nil, err
	}
	todo.or(more)
	if err := todo.flush(); err != nil {
		todo.close()
		return nil, err
	}
	return todo, nil
}

// commit makes the exchange so, in one step, on disk and then in memory.
func (x *exchange) commit() error {
	v, a := x.v, x.v.a
	v.state.Lock()
	cur := v.cur.parts()
	if !slices.Contains(cur.insync, x.out) || len(cur.insync)+len(cur.filling) != len(x.stay)+1 {
		v.state.Unlock()
		return driver.Errorf(driver.NotSynchronized, "%s lost a mirror meanwhile", v.label)
	}
	at := a.o.Now()
	err := a.change(func(c *catalog) error {
		r := c.volume(v.id)
		out := r.mirror(x.out.id)
		keep := snapshotRecord{
			ID: x.snap, Tag: x.tag, Group: lun.NewIdentity().String(), Volume: r.ID, VolumeName: r.Name, Size: r.Size,
			Mirror: mirrorRecord{ID: out.ID, Pool: out.Pool, File: out.File, State: out.State, FileID: out.FileID},
			Epoch:  x.epoch, At: at.UTC(), For: x.s.id, Clone: x.clone,
		}
		in := mirrorRecord{ID: x.rec.Mirror.ID, Pool: x.rec.Mirror.Pool, File: x.rec.Mirror.File, State: inSync, FileID: fileID(x.in.f)}
		c.Snapshots = append(slices.DeleteFunc(c.Snapshots, func(s snapshotRecord) bool { return s.ID == x.s.id }), keep)
		r.Mirrors = append(slices.DeleteFunc(r.Mirrors, func(m mirrorRecord) bool { return m.ID == x.out.id }), in)
		for _, p := range x.stay {
			m := r.mirror(p.id)
			m.State, m.Todo = filling, []string{todoName(p.id)}
		}
		r.Epochs, r.NextEpoch = append(r.Epochs, x.epoch), x.epoch+1
		r.noteUnmirrored(at)
		return nil
	})
	if err != nil {
		v.state.Unlock()
		return err
	}
	a.labels.writeVolume(v.id) // before mirrors are written to, they no longer say that they are in sync
	old := v.flip(epoch0{insync: []*plex{x.in}, filling: x.stay, dirty: x.dirty, missed: cur.missed})
	v.state.Unlock()
	<-old.idle
	return nil
}

// follow does what comes after the exchange is certain.
func (x *exchange) follow() {
	v, a := x.v, x.v.a
	v.setEpoch(x.epoch, x.dirty)
	s := newSnapshot(a, a.store.read().snapshot(x.snap), x.out)
	a.mu.Lock()
	delete(a.snaps, x.s.id)
	a.snaps[x.snap] = s
	a.mu.Unlock()
	a.scrap(a.mapPath(splitMapName(x.in.id)))
	a.scrap(a.mapPath(splitLogName(x.in.id)))
	x.startFills()
	v.pruneEpochs()
	v.notify()
	if x.clone && len(x.stay) == 0 { // it had one mirror, and has one
		return
	}
	how := fmt.Sprintf("until snapshot %s of tag %q is resynced or a mirror is added", x.snap, x.tag)
	if len(x.stay) > 0 {
		how = fmt.Sprintf("until %d more are filled with what differs, at most %d bytes each", len(x.stay), x.dirty.count()*regionSize)
	}
	a.event(Unmirrored, v, lun.Identity{}, "%s goes on with the content of snapshot %s on one mirror, %s", v.label, x.s.id, how)
}

// undo gives everything back as it was.
func (x *exchange) undo() {
	v, a := x.v, x.v.a
	if x.in != nil {
		x.in.f.Close()
	}
	if x.dirty != nil {
		x.dirty.close()
		a.scrap(x.dirty.path)
	}
	v.state.Lock()
	filling := v.cur.filling
	v.state.Unlock()
	for id, todo := range x.todos {
		if todo != nil && !slices.ContainsFunc(filling, func(p *plex) bool { return p.id == id }) {
			todo.close()
			a.scrap(todo.path)
		}
	}
	x.s.revive()
	v.resumeFills(x.todos)
}

func (x *exchange) startFills() {
	c := x.v.a.store.read()
	for _, p := range x.stay {
		all := false
		if m := c.mirrorOf(x.v.id, p.id); m != nil {
			all = m.All
		}
		x.v.startFill(x.v.newFill(p, x.todos[p.id], all))
	}
}

func (x *exchange) closeMaps() {
	if x.dirty != nil {
		x.dirty.close()
	}
	for _, m := range x.todos {
		m.close()
	}
	if x.in != nil {
		x.in.f.Close()
	}
}

// block keeps everybody from opening the volume. It is refused while somebody
// has it open.
func (v *volume) block(why string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.users) > 0 {
		return driver.Errorf(driver.Busy, "%s is in use by %s", v.label, oneOf(v.users))
	}
	v.blocked = why
	return nil
}

func (v *volume) unblock() {
	v.mu.Lock()
	v.blocked = ""
	v.mu.Unlock()
}

// quiesce makes everything stable that was written to a volume which nobody
// uses, scrubs or equalises, and clears the intent log. Whatever is not stable
// has a mark, so that clearing all of them is enough.
func (v *volume) quiesce() error {
	if v.recovering.Load() > 0 {
		return driver.Errorf(driver.NotSynchronized, "%s: its mirrors are still being compared after a crash", v.label)
	}
	if v.mirrorsInSync() == 0 {
		return nil
	}
	v.cleaning.Lock()
	defer v.cleaning.Unlock()
	return v.cleanLocked(false)
}

// pauseFills ends all copying to the volume's mirrors and keeps its maps.
func (v *volume) pauseFills() {
	v.mu.Lock()
	fills := make([]*fill, 0, len(v.fills))
	for _, f := range v.fills {
		fills = append(fills, f)
	}
	v.mu.Unlock()
	for _, f := range fills {
		f.cancel()
		<-f.done
	}
}

// resumeFills has copying go on after pauseFills, with maps that are open
// already or from what the catalogue has.
func (v *volume) resumeFills(maps map[lun.Identity]*mapFile) {
	c := v.a.store.read()
	v.state.Lock()
	filling := v.cur.filling
	v.state.Unlock()
	for _, p := range filling {
		m := c.mirrorOf(v.id, p.id)
		if m == nil {
			continue
		}
		todo := maps[p.id]
		var err error
		if todo == nil {
			todo, err = v.lacking(m, newBitmap(0))
		}
		if err != nil { // it stays as it is until the next start
			v.a.event(ResyncStalled, v, p.id, "%s: copying to mirror %s can't go on: %v", v.label, p.id, err)
			continue
		}
		v.startFill(v.newFill(p, todo, m.All))
	}
}

// lastEpoch is later than every epoch there is: now.
const lastEpoch = uint64(math.MaxUint64)

// orEpochs adds to b what was written in the epochs from first on and before
// end. v.admin is held.
func (v *volume) orEpochs(b *bitmap, first, end uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for n, m := range v.epochs {
		if n >= first && n < end {
			b.or(m.bitmap)
		}
	}
}

// written is the map of what was written to a split, nil if nothing was.
func (s *snapshot) written() (*bitmap, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.write != nil:
		return s.dirty.bitmap, nil
	case !s.skewed.Load():
		return nil, nil
	case s.own != nil:
		return s.own, nil
	}
	dirty, log, err := s.openMaps() // adds marks that a crash left
	if err != nil {
		return nil, err
	}
	s.own = dirty.bitmap
	return s.own, errors.Join(dirty.close(), log.close())
}
