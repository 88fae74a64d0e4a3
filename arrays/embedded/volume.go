package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// volume is an open volume of the array.
//
// Locks, in the order in which they are taken: admin (of several volumes: by
// ID), set.state, then the catalogue's, the array's or mu.
type volume struct {
	a    *Array
	id   lun.Identity
	name string
	set

	// admin is held by whoever changes what the volume consists of, for as long
	// as that takes. It is a channel of one so that waiting obeys a context.
	admin chan struct{}
	// armedBy is the tag for which admin is held until a commit, nil if it is
	// held for a moment or not at all.
	armedBy atomic.Pointer[driver.Tag]

	recovering atomic.Int64 // bytes still to be compared after a crash; above 0 while reads are fixed to one mirror

	mu      sync.Mutex
	epochs  map[uint64]*mapFile       // changed under admin as well
	missed  map[lun.Identity]*mapFile // by broken mirror: what it misses
	fills   map[lun.Identity]*fill
	users   map[*Volume]string
	scrub   *scrub        // under way, or the last since Open
	changed chan struct{} // closed and replaced when a mirror's state changes
	gone    bool
	blocked string // what keeps the volume from being opened, empty if nothing
}

func newVolume(a *Array, r *volumeRecord) *volume {
	v := &volume{
		a: a, id: r.ID, name: r.Name,
		admin:   make(chan struct{}, 1),
		epochs:  map[uint64]*mapFile{},
		missed:  map[lun.Identity]*mapFile{},
		fills:   map[lun.Identity]*fill{},
		users:   map[*Volume]string{},
		changed: make(chan struct{}),
	}
	v.label = fmt.Sprintf("volume %q", r.Name)
	v.size.Store(r.Size)
	v.order.init()
	v.start(epoch0{})
	v.dropping, v.dropped = v.recordDrop, v.onDrop
	return v
}

func (v *volume) logName() string           { return v.id.String() + ".log" }
func (v *volume) epochName(n uint64) string { return epochMapName(v.id, n) }
func epochMapName(volume lun.Identity, n uint64) string {
	return fmt.Sprintf("%s.%d.dirty", volume, n)
}
func todoName(mirror lun.Identity) string     { return mirror.String() + ".todo" }
func splitMapName(mirror lun.Identity) string { return mirror.String() + ".split" }
func splitLogName(mirror lun.Identity) string { return mirror.String() + ".log" }

// logUnit is the size of an intent log's regions: 64 KiB, or more for volumes
// that would have over four million of them: 4 MiB at 16 TiB. The limit of what
// is copied after a crash is then 65,536 regions for volumes of up to 256 GiB,
// so that random writes rarely wait for room.
func (a *Array) logUnit(size int64) int64 {
	if a.o.logUnit > 0 {
		return a.o.logUnit
	}
	unit := int64(regionSize)
	for size/unit > 4<<20 {
		unit *= 2
	}
	return unit
}

// lockAdmin waits for the right to change what the volume consists of.
func (v *volume) lockAdmin(ctx context.Context) error {
	select {
	case v.admin <- struct{}{}:
	default:
		select {
		case v.admin <- struct{}{}:
		case <-ctx.Done():
			if tag := v.armedBy.Load(); tag != nil {
				return driver.Errorf(driver.Busy, "%s is armed for a split under tag %q, until that is committed, aborted or times out: %w", v.label, *tag, context.Cause(ctx))
			}
			return notBegun(ctx, v.label)
		}
	}
	if v.isGone() {
		v.unlockAdmin()
		return driver.Errorf(driver.NotFound, "%s was deleted", v.label)
	}
	return nil
}

func (v *volume) unlockAdmin() { <-v.admin }

func (v *volume) isGone() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.gone
}

// setEpoch makes m the map of epoch n; nil forgets it.
func (v *volume) setEpoch(n uint64, m *mapFile) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m == nil {
		delete(v.epochs, n)
	} else {
		v.epochs[n] = m
	}
}

// changedSince is an upper bound of the bytes that were written since an epoch
// began, or are in own, which may be nil.
func (v *volume) changedSince(epoch uint64, own *bitmap) int64 {
	var sets []*bitmap
	if own != nil {
		sets = append(sets, own)
	}
	v.mu.Lock()
	for e, m := range v.epochs {
		if e >= epoch {
			sets = append(sets, m.bitmap)
		}
	}
	v.mu.Unlock()
	return min(countUnion(sets)*regionSize, v.size.Load())
}

// notify wakes those who wait for a mirror.
func (v *volume) notify() {
	v.mu.Lock()
	close(v.changed)
	v.changed = make(chan struct{})
	v.mu.Unlock()
}

func (v *volume) waitChange() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

// openPlex opens a mirror's file and checks that it is long enough.
func (a *Array) openPlex(m *mirrorRecord, size int64, flag int) (*plex, error) {
	p := a.pools[m.Pool]
	if p == nil || p.down() != nil {
		if p == nil {
			return nil, fmt.Errorf("pool %q is not known: %w", m.Pool, errAway)
		}
		return nil, fmt.Errorf("%w: %w", errAway, p.down())
	}
	path := filepath.Join(p.dir, m.File)
	f, err := a.fs.OpenFile(path, flag)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() < size {
		err = fmt.Errorf("%s is %d bytes long and should be %d: %w", path, fi.Size(), size, errCut)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &plex{id: m.ID, pool: m.Pool, path: path, f: f}, nil
}

// createPlex makes a mirror's file of size bytes, all hole, stable.
func (a *Array) createPlex(m *mirrorRecord, size int64) (*plex, error) {
	p := a.pools[m.Pool]
	if p == nil || p.down() != nil {
		return nil, driver.Errorf(driver.Unreachable, "pool %q can't be used", m.Pool)
	}
	path := filepath.Join(p.dir, m.File)
	dir := filepath.Dir(path)
	a.dirs.Lock()
	defer a.dirs.Unlock()
	if err := a.fs.Mkdir(dir); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, noSpace(err)
	}
	f, err := a.fs.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, noSpace(err)
	}
	if err = f.Truncate(size); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = errors.Join(a.fs.SyncDir(dir), a.fs.SyncDir(p.dir))
	}
	if err != nil {
		f.Close()
		return nil, noSpace(err)
	}
	m.FileID = fileID(f)
	return &plex{id: m.ID, pool: m.Pool, path: path, f: f}, nil
}

// recordDrop makes it stable that a mirror failed. It is called under set.state.
func (v *volume) recordDrop(p *plex, cause error) error {
	known := v.startMissed(p) && !errors.Is(cause, errCut)
	id, size := fileID(p.f), v.size.Load()
	err := v.a.change(func(c *catalog) error {
		r := c.volume(v.id)
		if r == nil {
			return nil
		}
		if m := r.mirror(p.id); m != nil {
			m.FileID = id
			m.breaks(cause, known, size)
			m.Away = m.Away || v.a.isPoolAway(m.Pool)
		}
		r.noteUnmirrored(v.a.o.Now())
		return nil
	})
	if err == nil {
		// Before anything is acknowledged that the lost mirror has not: were the
		// catalogue lost as well, its label alone would still claim to be in sync.
		v.a.labels.writeVolume(v.id)
	}
	return err
}

// onDrop follows once the volume goes on without the mirror.
func (v *volume) onDrop(p *plex, old *epoch, cause error) {
	v.mu.Lock()
	if f := v.fills[p.id]; f != nil {
		f.cancel()
	}
	v.mu.Unlock()
	v.a.event(MirrorDropped, v, p.id, "%s lost its mirror %s in pool %q: %v; it goes on with the others", v.label, p.id, p.pool, cause)
	v.notify()
	v.a.start(func() {
		<-old.idle
		p.f.Close()
	})
}

// checkFiles drops mirrors whose file was removed, replaced or cut short
// behind our back.
func (v *volume) checkFiles() {
	e := v.enter()
	defer e.leave()
	size := v.size.Load()
	for _, p := range slices.Concat(e.insync, e.filling) {
		err := v.a.checkFile(p, size)
		if err == nil || p.failed() != nil {
			continue
		}
		v.state.Lock()
		if inEpoch(v.cur, p) && len(without(v.cur.insync, p)) > 0 {
			if derr := v.drop(p, err); derr != nil {
				v.a.o.Logger.Error("a failed mirror could not be recorded", "volume", v.name, "error", derr)
			}
		} else if inEpoch(v.cur, p) && !p.warned.Swap(true) {
			v.a.event(VolumeOffline, v, p.id, "%s: its last mirror: %v", v.label, err)
		}
		v.state.Unlock()
	}
}

func (a *Array) checkFile(p *plex, size int64) error {
	now, err := a.fs.Stat(p.path)
	if err != nil {
		return err
	}
	open, err := p.f.Stat()
	if err != nil {
		return err
	}
	switch {
	case !os.SameFile(now, open):
		return fmt.Errorf("%s is another file than the one that was opened: %w", p.path, errAway)
	case now.Size() < size:
		return fmt.Errorf("%s is %d bytes long and should be %d: %w", p.path, now.Size(), size, errCut)
	}
	return nil
}

// tick ages the intent log and clears what is idle.
func (v *volume) tick() {
	if v.log.nextTick() == 0 || v.recovering.Load() > 0 {
		return
	}
	v.a.start(func() {
		if err := v.cleanIdle(); err != nil && !errors.Is(err, errNotNow) && !errors.Is(err, errOffline) {
			v.a.o.Logger.Warn("intent log not cleared", "volume", v.name, "error", err)
		}
	})
}

// shut syncs and closes a volume that nobody calls any more.
func (v *volume) shut() error {
	v.mu.Lock()
	v.gone = true
	v.mu.Unlock()
	err := v.shutdown()
	for _, m := range v.epochs {
		err = errors.Join(err, m.close()) // what is not stable of it is marked
	}
	for _, m := range v.missed {
		err = errors.Join(err, m.close())
	}
	return err
}

func (v *volume) info(c *catalog, now time.Time) (VolumeInfo, bool) {
	r := c.volume(v.id)
	if r == nil {
		return VolumeInfo{}, false
	}
	info := VolumeInfo{
		Volume: driver.Volume{
			ID: driver.VolumeID(r.ID.String()), Name: r.Name, Size: r.Size, Identity: r.ID,
			State: driver.Synchronized,
		},
		Created: r.Created, Wanted: len(r.Want), UnmirroredSince: r.Unmirrored,
		Policy:     r.Policy.orDefault(),
		Recovering: v.recovering.Load(),
	}
	e := v.enter()
	usable := len(e.insync) > 0
	e.leave()
	v.mu.Lock()
	for i := range r.Mirrors {
		m := &r.Mirrors[i]
		mi := MirrorInfo{ID: m.ID, Pool: m.Pool, File: v.a.poolPath(m.Pool, m.File), State: driver.Synchronized, Reason: m.Reason}
		switch m.State {
		case inSync:
			info.Mirrors++
		case filling:
			mi.State = driver.Unsynchronized
			info.State = driver.Unsynchronized
			if f := v.fills[m.ID]; f != nil {
				f.describe(&mi)
				info.Remaining = max(info.Remaining, mi.Remaining)
			}
		case broken:
			mi.State = driver.Broken
		}
		info.Replicas = append(info.Replicas, mi)
	}
	for _, by := range v.users {
		info.UsedBy = append(info.UsedBy, by)
	}
	if v.scrub != nil {
		rep := v.scrub.report(false)
		info.Scrub = &rep
	}
	v.mu.Unlock()
	slices.Sort(info.UsedBy)
	for _, s := range c.Snapshots {
		if s.Volume == v.id {
			info.Snapshots = append(info.Snapshots, driver.SnapshotID(s.ID.String()))
		}
	}
	switch {
	case !usable:
		info.State, info.Mirrors = driver.Broken, 0
	case info.Recovering > 0 || info.Mirrors < 2 && len(r.Want) >= 2:
		info.State = driver.Unsynchronized
	}
	return info, true
}
