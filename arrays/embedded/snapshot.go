package embedded

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// snapshot is a mirror that was split off.
type snapshot struct {
	a      *Array
	id     lun.Identity
	volume lun.Identity
	mirror mirrorRecord
	clone  bool // of a mirror, not one that was split off
	size   int64

	mu      sync.Mutex
	p       *plex // nil if its file can't be used
	invalid error
	write   *set // once it was opened for writing
	dirty   *mapFile
	own     *bitmap        // what was written to it, once asked for while it is not open for writing
	users   map[any]string // handles, and who has them
	alone   chan struct{}  // not nil while its only user is alone with it; closed when that is over
	gone    bool

	skewed   atomic.Bool
	unusable atomic.Bool // invalid != nil
}

func newSnapshot(a *Array, r *snapshotRecord, p *plex) *snapshot {
	s := &snapshot{
		a: a, id: r.ID, volume: r.Volume, mirror: r.Mirror, clone: r.Clone, size: r.Size,
		p: p, users: map[any]string{},
	}
	s.skewed.Store(r.Skewed)
	return s
}

// bringUpSnapshot opens a snapshot's file. One that can't be opened makes the
// snapshot invalid, and nothing else.
func (a *Array) bringUpSnapshot(r *snapshotRecord) (*snapshot, error) {
	s := newSnapshot(a, r, nil)
	if s.p, s.invalid = a.openSplit(&r.Mirror, r.Size, os.O_RDWR); s.invalid != nil {
		s.p, s.invalid = a.openSplit(&r.Mirror, r.Size, os.O_RDONLY)
	}
	s.mirror = r.Mirror
	if s.invalid != nil {
		s.unusable.Store(true)
		a.event(SnapshotInvalid, nil, r.Mirror.ID, "snapshot %s of volume %q can't be used: %v", r.ID, r.VolumeName, s.invalid)
	}
	return s, nil
}

func (a *Array) describe(r *snapshotRecord) driver.Snapshot {
	st, method := driver.Split, driver.MirrorSplit
	if r.Clone {
		method = driver.ArraySnapshot
	}
	if r.Skewed {
		st = driver.Skewed
	}
	a.mu.Lock()
	if s := a.snaps[r.ID]; s != nil && s.unusable.Load() {
		st = driver.Invalid
	}
	a.mu.Unlock()
	return driver.Snapshot{
		ID: driver.SnapshotID(r.ID.String()), Tag: r.Tag, Volume: driver.VolumeID(r.Volume.String()),
		Size: r.Size, Identity: r.ID, NAA: r.ID.NAAString(), Method: method,
		State: st, Group: r.Group, At: r.At, Held: r.Held,
	}
}

// Lookup returns the snapshots of a tag, as the catalogue has them. A split
// under way for the tag comes to its end first.
func (a *Array) Lookup(ctx context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	if err := checkTag(tag); err != nil {
		return nil, err
	}
	if err := a.splits.wait(ctx, tag); err != nil {
		return nil, err
	}
	if a.isClosed() {
		return nil, fmt.Errorf("lookup of tag %q: array: %w", tag, lun.ErrClosed)
	}
	return a.ofTag(tag)
}

// ofTag are the tag's snapshots. The tag is locked, or nobody works for it.
func (a *Array) ofTag(tag driver.Tag) ([]driver.Snapshot, error) {
	if err := a.store.failure(); err != nil {
		return nil, fmt.Errorf("lookup of tag %q: %w", tag, err)
	}
	var out []driver.Snapshot
	c := a.store.read()
	for i := range c.Snapshots {
		if r := &c.Snapshots[i]; r.Tag == tag {
			out = append(out, a.describe(r))
		}
	}
	return out, nil
}

// Snapshots describes all snapshots, in the order in which they were made.
func (a *Array) Snapshots() []SnapshotInfo {
	c := a.store.read()
	out := make([]SnapshotInfo, 0, len(c.Snapshots))
	for i := range c.Snapshots {
		r := &c.Snapshots[i]
		info := SnapshotInfo{
			Snapshot: a.describe(r), VolumeName: r.VolumeName, Pool: r.Mirror.Pool,
			File: a.poolPath(r.Mirror.Pool, r.Mirror.File),
		}
		a.mu.Lock()
		s, v := a.snaps[r.ID], a.volumes[r.Volume]
		a.mu.Unlock()
		if s != nil {
			s.mu.Lock()
			if s.invalid != nil {
				info.Reason = s.invalid.Error()
			}
			info.UsedBy = slices.Sorted(maps.Values(s.users))
			s.mu.Unlock()
		}
		if rv := c.volume(r.Volume); s != nil && v != nil && rv != nil && !r.Clone {
			info.UnmirroredSince = rv.Unmirrored
			if own, err := s.written(); err == nil {
				info.ResyncBytes = v.changedSince(r.Epoch, own)
			} else {
				info.ResyncBytes = rv.Size
			}
			info.ResyncTime = timeFor(info.ResyncBytes, a.expectedPace())
		}
		out = append(out, info)
	}
	return out
}

// use registers a handle, unless the snapshot can't be used or is being given
// up.
func (s *snapshot) use(h any, by string) error {
	switch {
	case s.gone:
		return driver.Errorf(driver.NotFound, "snapshot %s is gone", s.id)
	case s.invalid != nil:
		return fmt.Errorf("snapshot %s can't be used: %w", s.id, s.invalid)
	case s.alone != nil:
		return driver.Errorf(driver.Busy, "snapshot %s is in use by %s", s.id, oneOf(s.users))
	}
	s.users[h] = by
	return nil
}

func (s *snapshot) unuse(h any) {
	s.mu.Lock()
	delete(s.users, h)
	if s.alone != nil {
		close(s.alone)
		s.alone = nil
	}
	s.mu.Unlock()
}

// retire makes sure that nobody uses the snapshot and that nobody will. What
// was written to it is stable afterwards, and so is the map of it.
func (s *snapshot) retire() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.users) > 0 {
		return driver.Errorf(driver.Busy, "snapshot %s is in use by %s", s.id, oneOf(s.users))
	}
	s.gone = true
	return s.closeLocked()
}

// revive undoes retire.
func (s *snapshot) revive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = false
	s.p, s.invalid = s.a.openPlex(&s.mirror, s.size, os.O_RDWR)
	s.unusable.Store(s.invalid != nil)
}

func oneOf[K comparable](users map[K]string) string {
	all := slices.Sorted(maps.Values(users))
	if len(all) > 1 {
		return fmt.Sprintf("%s and %d more", all[0], len(all)-1)
	}
	return all[0]
}

func (s *snapshot) shut() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	return s.closeLocked()
}

func (s *snapshot) closeLocked() error {
	var err error
	if s.write != nil {
		err = errors.Join(s.write.shutdown(), s.dirty.close())
		s.write, s.dirty = nil, nil
	} else if s.p != nil {
		err = s.p.f.Close()
	}
	s.p = nil
	return err
}

// forWriting opens the map and the log of what is written to the split. Marks
// that a crash left are added to the map first.
func (s *snapshot) forWriting() error {
	if s.write != nil {
		return nil
	}
	dirty, log, err := s.openMaps()
	if err != nil {
		return err
	}
	w := &set{label: fmt.Sprintf("snapshot %s", s.id)}
	w.size.Store(s.size)
	w.order.init()
	w.log = newIntentLog(log, s.a.o.LogLimit, func() { w.cleanSoon(func(fn func()) { s.a.start(fn) }) })
	w.start(epoch0{insync: []*plex{s.p}, dirty: dirty})
	s.write, s.dirty, s.own = w, dirty, nil
	return nil
}

func (s *snapshot) openMaps() (dirty, log *mapFile, err error) {
	open := func(name string, unit int64, create func(disk.FS, string, int64, int64) (*mapFile, error)) (*mapFile, error) {
		path := s.a.mapPath(name)
		m, bad, err := openMap(s.a.fs, path, s.size)
		if bad > 0 {
			s.a.event(MapDamaged, nil, s.mirror.ID, "map %s: %d of its blocks failed their checksum; all regions under them are taken as changed", name, bad)
		}
		if err == nil || !isNotExist(err) && !errors.Is(err, errMapDamaged) {
			return m, err
		}
		if s.skewed.Load() {
			s.a.event(MapDamaged, nil, s.mirror.ID, "map %s is missing or damaged; the whole of snapshot %s is taken as changed", name, s.id)
			create = createFullMap
		}
		if m, err = create(s.a.fs, path, s.size, unit); err != nil {
			return nil, err
		}
		return m, s.a.fs.SyncDir(s.a.maps)
	}
	if dirty, err = open(splitMapName(s.mirror.ID), regionSize, createMap); err != nil {
		return nil, nil, err
	}
	if log, err = open(splitLogName(s.mirror.ID), s.a.logUnit(s.size), createLog); err != nil {
		dirty.close()
		return nil, nil, err
	}
	if log, err = log.withJournal(s.a.fs, s.size); err != nil {
		dirty.close()
		return nil, nil, err
	}
	orScaled(dirty, log)
	if err = dirty.flush(); err == nil {
		for i := log.next(0); i >= 0; i = log.next(i + 1) {
			log.clear(i)
		}
		// Need not be stable: after a crash they are added once more.
	}
	if err != nil {
		dirty.close()
		log.close()
		return nil, nil, err
	}
	return dirty, log, nil
}

// skew makes it stable that the split was written to, before it is.
func (s *snapshot) skew() error {
	if s.skewed.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.skewed.Load() {
		return nil
	}
	err := s.a.change(func(c *catalog) error {
		if r := c.snapshot(s.id); r != nil {
			r.Skewed = true
		}
		return nil
	})
	s.skewed.Store(err == nil)
	return err
}

// tick ages the intent log of a split that is written to, as volume.tick does.
func (s *snapshot) tick() {
	s.mu.Lock()
	w := s.write
	s.mu.Unlock()
	if w == nil || w.log.nextTick() == 0 {
		return
	}
	s.a.start(func() {
		if err := w.cleanIdle(); err != nil && !errors.Is(err, errOffline) {
			s.a.o.Logger.Warn("intent log not cleared", "snapshot", s.id.String(), "error", err)
		}
	})
}
