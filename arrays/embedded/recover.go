package embedded

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// recover brings everything up that the catalogue knows, after a clean end or
// a crash. It changes the catalogue once, when all that the change relies on
// is stable.
//
// What a crash may have left, and what becomes of it:
//
//	a split that was pending       is undone: its mirrors go back to filling, and
//	                               what differs is under the intent log's marks
//	marked regions                 are compared and made equal, from one mirror
//	a resync                       goes on; marked regions are copied once more
//	files about to be made or gone are removed
//	a mirror that can't be opened  is dropped, if the volume has another
//	a file that is not the mirror's  see vet
func (a *Array) recover() error {
	cat := a.store.read().clone()
	a.emptyTrash(cat)
	undone := a.undoPending(cat)
	cat.trimEpochs()
	var after []func()
	for i := range cat.Volumes {
		r := &cat.Volumes[i]
		v := newVolume(a, r)
		a.volumes[r.ID] = v
		begin, err := v.bringUp(r, undone[r.ID])
		if err != nil {
			return fmt.Errorf("%s: %w", v.label, err)
		}
		after = append(after, begin)
	}
	for i := range cat.Snapshots {
		r := &cat.Snapshots[i]
		s, err := a.bringUpSnapshot(r)
		if err != nil {
			return fmt.Errorf("snapshot %s: %w", r.ID, err)
		}
		a.snaps[r.ID] = s
	}
	if err := a.fs.SyncDir(a.maps); err != nil {
		return err
	}
	if err := a.store.update(func(c *catalog) error {
		seq := c.Seq
		*c = *cat
		c.Seq = seq
		return nil
	}); err != nil {
		return err
	}
	for _, fn := range after {
		fn()
	}
	a.sweepMaps()
	return nil
}

// undoPending puts the mirrors of splits that did not become certain back to
// their volumes. What they lack is in the map of the epoch that had begun, or
// under a mark of the intent log. A mirror that is the last one in sync did not
// come off: the others failed before the instant, after which one would have
// stayed. It returns the epochs' maps.
func (a *Array) undoPending(cat *catalog) map[lun.Identity][]string {
	maps := map[lun.Identity][]string{}
	for _, p := range cat.Pending {
		for _, m := range p.Members {
			name := epochMapName(m.Volume, m.Epoch)
			r := cat.volume(m.Volume)
			if mr := r.mirror(m.Mirror); mr.State == inSync && !m.Clone && r.inSync() > 1 {
				mr.State, mr.Todo = filling, []string{name}
			}
			maps[m.Volume] = append(maps[m.Volume], name)
		}
		a.event(SplitUndone, nil, lun.Identity{}, "the split of %d volumes for tag %q had not been completed and was undone", len(p.Members), p.Tag)
	}
	cat.Pending = nil
	return maps
}

// trimEpochs forgets epochs that ended before the oldest snapshot began: a crash
// came before their maps were given up. Fills that need one name it.
func (c *catalog) trimEpochs() {
	for i := range c.Volumes {
		v := &c.Volumes[i]
		needed := func(n uint64) bool {
			return slices.ContainsFunc(c.Snapshots, func(s snapshotRecord) bool { return s.Volume == v.ID && s.Epoch == n })
		}
		for len(v.Epochs) > 0 && !needed(v.Epochs[0]) {
			v.Epochs = v.Epochs[1:]
		}
	}
}

// bringUp opens a volume's files. undone are the maps of epochs that came to
// nothing: their regions changed in the epoch before. begin starts what has to
// go on, once the catalogue is stable.
func (v *volume) bringUp(r *volumeRecord, undone []string) (begin func(), err error) {
	a := v.a
	log, err := v.openOrAll(v.logName(), r.Size, a.logUnit(r.Size))
	if err != nil {
		return nil, err
	}
	if log, err = log.withJournal(a.fs, r.Size); err != nil {
		return nil, err
	}
	v.log = newIntentLog(log, a.o.LogLimit, func() { v.cleanSoon(func(fn func()) { a.start(fn) }) })
	v.log.adopt()

	e := epoch0{}
	for _, n := range r.Epochs {
		m, err := v.openOrAll(v.epochName(n), r.Size, regionSize)
		if err != nil {
			return nil, err
		}
		v.epochs[n] = m
		e.dirty = m
	}
	if e.dirty != nil {
		orScaled(e.dirty, log)
		if err := v.addMaps(e.dirty, undone); err != nil {
			return nil, err
		}
		if err := e.dirty.flush(); err != nil {
			return nil, err
		}
	}
	return v.attach(r, &e)
}

// attach opens the volume's mirrors and begins an epoch with those that can be
// opened. begin starts what has to go on, once r is stable.
func (v *volume) attach(r *volumeRecord, e *epoch0) (begin func(), err error) {
	failed, compare := v.openMirrors(r, e)
	if compare {
		if err := v.log.adoptAll(); err != nil {
			return nil, err
		}
	}
	if err := v.bringUpMissed(r, failed, e); err != nil {
		return nil, err
	}
	for _, p := range slices.Concat(e.insync, e.filling) {
		r.mirror(p.id).FileID = fileID(p.f)
	}
	if len(e.insync) > 0 {
		r.noteUnmirrored(v.a.o.Now())
	}
	var fills []*fill
	for _, p := range e.filling {
		f, err := v.resumeFill(p, r.mirror(p.id), v.log.file)
		if err != nil {
			return nil, err
		}
		fills = append(fills, f)
	}
	e.fixed = v.log.marked() > 0
	v.flip(*e)
	return func() {
		for _, f := range fills {
			v.startFill(f)
		}
		if e.fixed && len(e.insync) > 0 {
			v.recovering.Store(v.log.file.count() * v.log.file.unit)
			v.a.start(v.equaliseMarked)
		}
	}, nil
}

// openMirrors opens the mirrors' files. One that can't be opened is to become
// broken, if another in sync can; else the volume waits for it, offline. compare:
// what was opened may differ anywhere.
func (v *volume) openMirrors(r *volumeRecord, e *epoch0) (failed map[lun.Identity]error, compare bool) {
	failed = map[lun.Identity]error{}
	for i := range r.Mirrors {
		m := &r.Mirrors[i]
		if m.State == broken {
			continue
		}
		p, err := v.a.openPlex(m, r.Size, os.O_RDWR)
		switch {
		case err != nil:
			failed[m.ID] = err
		case m.State == inSync:
			e.insync = append(e.insync, p)
		default:
			e.filling = append(e.filling, p)
		}
	}
	compare = v.vet(r, e, failed)
	if len(e.insync) == 0 {
		for _, p := range e.filling { // nothing to copy from
			p.f.Close()
		}
		e.filling = nil
		why := make([]string, 0, len(failed))
		for _, err := range failed {
			why = append(why, err.Error())
		}
		slices.Sort(why)
		v.a.event(VolumeOffline, v, lun.Identity{}, "%s has no mirror in sync that can be opened: %s", v.label, strings.Join(why, "; "))
		return nil, false
	}
	for id, err := range failed {
		v.tellDropped(r.mirror(id), err)
	}
	return failed, compare
}

// openOrAll opens a map file. One that is missing or damaged is made anew with
// all bits set: more is copied than needed, and an event says so.
func (v *volume) openOrAll(name string, size, unit int64) (*mapFile, error) {
	path := v.a.mapPath(name)
	m, bad, err := openMap(v.a.fs, path, size)
	if err == nil && bad > 0 {
		v.a.event(MapDamaged, v, lun.Identity{}, "map %s: %d of its blocks failed their checksum; all regions under them are taken as changed", name, bad)
	}
	if err == nil || !isNotExist(err) && !errors.Is(err, errMapDamaged) {
		return m, err
	}
	v.a.event(MapDamaged, v, lun.Identity{}, "%v; the whole of %s is taken as changed", err, v.label)
	return createFullMap(v.a.fs, path, size, unit)
}

// orScaled adds to dst all that src marks, whose regions are larger.
func orScaled(dst, src *mapFile) {
	for i := src.next(0); i >= 0; i = src.next(i + 1) {
		from := i * src.unit / dst.unit
		for j := from; j < from+src.unit/dst.unit && j < dst.n(); j++ {
			dst.set(j)
		}
	}
}

// equaliseMarked makes the mirrors in sync equal in the regions that a crash
// left marked, while the volume is in use.
func (v *volume) equaliseMarked() {
	begun := time.Now()
	var copied atomic.Int64
	for {
		err := v.equalisePass(&copied)
		if err == nil {
			break
		}
		if v.a.bg.Err() != nil {
			return
		}
		v.a.event(ResyncStalled, v, lun.Identity{}, "%s: comparing mirrors after a crash: %v; it is tried again", v.label, err)
		select {
		case <-time.After(v.a.o.retryAfter):
		case <-v.a.bg.Done():
			return
		}
	}
	v.state.Lock()
	next := v.cur.parts()
	next.fixed = false
	v.flip(next)
	v.state.Unlock()
	v.recovering.Store(0)
	v.a.event(Recovered, v, lun.Identity{}, "%s: mirrors are equal again after a crash: %d bytes differed; it took %v", v.label, copied.Load(), time.Since(begun).Round(time.Millisecond))
	v.notify()
}

const copyChunk = 1 << 20

func (v *volume) equalisePass(copied *atomic.Int64) error {
	log := v.log.file
	chunk := min(copyChunk, log.unit)
	src, have := make([]byte, chunk), make([]byte, chunk)
	for i := v.log.nextAdopted(0); i >= 0; i = v.log.nextAdopted(i + 1) {
		v.recovering.Store(v.log.leftAdopted() * log.unit) // not 0 before reads go to all mirrors again
		for off, end := i*log.unit, min((i+1)*log.unit, v.size.Load()); off < end && v.mirrorsInSync() > 1; off += chunk {
			n := min(chunk, end-off)
			if err := v.a.copies.wait(v.a.bg, n); err != nil {
				return err
			}
			if err := v.equaliseRange(src[:n], have[:n], off, copied); err != nil {
				return err
			}
		}
		v.log.recovered(i)
	}
	return nil
}

func (v *volume) mirrorsInSync() int {
	e := v.enter()
	defer e.leave()
	return len(e.insync)
}

// equaliseRange copies to the other mirrors in sync where they differ.
func (v *volume) equaliseRange(buf, have []byte, off int64, copied *atomic.Int64) error {
	var sp span
	v.order.lock(&sp, off, int64(len(buf)))
	defer v.order.unlock(&sp)
	if _, err := v.readAt(buf, off); err != nil {
		return err
	}
	e := v.enter()
	defer e.leave()
	if len(e.insync) == 0 {
		return errOffline
	}
	for _, p := range e.insync[1:] {
		err := readFull(p.f, have, off)
		if err == nil && string(have) == string(buf) {
			continue
		}
		if err == nil {
			err = writeSparse(p.f, buf, off)
			copied.Add(int64(len(buf)))
		}
		if err != nil {
			v.state.Lock()
			if inEpoch(v.cur, p) {
				err = v.drop(p, err)
			}
			v.state.Unlock()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepMaps removes map files that the catalogue does not refer to.
func (a *Array) sweepMaps() {
	cat := a.store.read()
	keep := map[string]bool{}
	for _, v := range cat.Volumes {
		keep[v.ID.String()+".log"] = true
		for _, n := range v.Epochs {
			keep[epochMapName(v.ID, n)] = true
		}
		for _, m := range v.Mirrors {
			for _, t := range m.Todo {
				keep[t] = true
			}
		}
	}
	for _, s := range cat.Snapshots {
		keep[splitMapName(s.Mirror.ID)], keep[splitLogName(s.Mirror.ID)] = true, true
	}
	names, err := a.fs.ReadDir(a.maps)
	if err != nil {
		return
	}
	for _, n := range names {
		if !keep[n] {
			a.scrap(a.mapPath(n))
		}
	}
}
