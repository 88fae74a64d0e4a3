package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// housekeeping clears marks of idle regions and looks after pools, files and
// the clock.
func (a *Array) housekeeping(clock *clockWatch) {
	every := max(a.o.LogIdle/2, time.Millisecond)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-a.bg.Done():
			return
		case <-t.C:
		}
		if by := clock.jumped(); by != 0 {
			a.event(ClockJumped, nil, lun.Identity{}, "the clock jumped by %v: times of events and records before and after don't fit together; nothing else depends on it", by.Round(time.Millisecond))
		}
		a.watchPools()
		a.watchState()
		for _, v := range a.allVolumes() {
			v.checkFiles()
			v.lookForReturned()
			v.tick()
		}
		for _, s := range a.allSnapshots() {
			s.tick()
		}
	}
}

// clockWatch compares the clock of records with one that never jumps.
type clockWatch struct {
	now  func() time.Time
	wall time.Time
	mono time.Time
}

// clockTolerance is how far the two may part between two looks: more than an
// NTP daemon slews in minutes, less than anybody would take for nothing.
const clockTolerance = 2 * time.Second

func newClockWatch(now func() time.Time) *clockWatch {
	return &clockWatch{now: now, wall: now().Round(0), mono: time.Now()}
}

// jumped is by how much the clock jumped since the last call, 0 if it did not.
func (c *clockWatch) jumped() time.Duration {
	wall, mono := c.now().Round(0), time.Now()
	by := wall.Sub(c.wall) - mono.Sub(c.mono)
	c.wall, c.mono = wall, mono
	if by.Abs() < clockTolerance {
		return 0
	}
	return by
}

// watchPools finds out which pools came and went, can't be written to, or get
// full.
func (a *Array) watchPools() {
	for _, p := range a.pools {
		if p.dir == "" {
			continue // not configured
		}
		if p.down() != nil {
			a.letGo(p)
			a.tryPool(p)
			continue
		}
		if err := p.here(a); err != nil {
			a.poolGone(p, err)
			continue
		}
		a.watchWritable(p)
		a.watchRoom(p)
	}
}

// here is nil if the pool's directory is the one that was opened.
func (p *pool) here(a *Array) error {
	fi, err := a.fs.Stat(p.dir)
	if err == nil && !os.SameFile(fi, p.fi) {
		return fmt.Errorf("pool %q: %s is another directory than the one that was opened (is its disk mounted?)", p.name, p.dir)
	}
	if err == nil {
		_, err = a.fs.Stat(filepath.Join(p.dir, poolFile))
	}
	if err != nil {
		return fmt.Errorf("pool %q: %w (is its disk mounted?)", p.name, err)
	}
	return nil
}

// poolGone takes a pool out of use: volumes go on with mirrors elsewhere.
func (a *Array) poolGone(p *pool, cause error) {
	p.setDown(cause)
	a.poolEvent(PoolOffline, p.name, "%v: volumes go on with their mirrors in other pools", cause)
	for _, v := range a.allVolumes() {
		v.leavePool(p.name, cause)
	}
	for _, s := range a.allSnapshots() {
		s.leavePool(p.name, cause)
	}
}

func (v *volume) leavePool(name string, cause error) {
	v.state.Lock()
	defer v.state.Unlock()
	for _, p := range slices.Concat(v.cur.insync, v.cur.filling) {
		if p.pool != name {
			continue
		}
		if err := v.drop(p, cause); errors.Is(err, cause) && !p.warned.Swap(true) {
			v.a.event(VolumeOffline, v, p.id, "%s: its last mirror: %v", v.label, cause)
		} else if err != nil && !errors.Is(err, cause) {
			v.a.o.Logger.Error("a failed mirror could not be recorded", "volume", v.name, "error", err)
		}
	}
}

func (s *snapshot) leavePool(name string, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mirror.Pool != name || s.gone || s.invalid != nil {
		return
	}
	s.invalid = cause
	s.unusable.Store(true)
	s.a.event(SnapshotInvalid, nil, s.mirror.ID, "snapshot %s can't be used: %v", s.id, cause)
}

// letGo closes what nobody uses of a pool that is gone, so that its file system can
// be checked and mounted again while the array goes on. What somebody uses still
// works, if it lies where it was and only its name is gone.
func (a *Array) letGo(p *pool) {
	p.close()
	for _, v := range a.allVolumes() {
		v.letGo(p.name)
	}
	for _, s := range a.allSnapshots() {
		s.letGo(p.name)
	}
}

// letGo takes a volume offline whose last mirror is in that pool, unless it is in
// use. See reopen.
func (v *volume) letGo(pool string) {
	select {
	case v.admin <- struct{}{}:
		defer v.unlockAdmin()
	default:
		return // somebody is changing it: next time
	}
	v.mu.Lock()
	inUse := v.gone || len(v.users) > 0 || len(v.fills) > 0 || v.recovering.Load() > 0
	v.mu.Unlock()
	v.state.Lock()
	defer v.state.Unlock()
	cur := v.cur.parts()
	ps := slices.Concat(cur.insync, cur.filling)
	if inUse || len(ps) == 0 || slices.ContainsFunc(ps, func(p *plex) bool { return p.pool != pool }) {
		return
	}
	old := v.flip(epoch0{dirty: cur.dirty, missed: cur.missed})
	v.a.start(func() {
		<-old.idle
		for _, p := range ps {
			if err := errors.Join(p.f.Sync(), p.f.Close()); err != nil {
				v.a.o.Logger.Warn("letting go of a mirror in a pool that is gone", "volume", v.name, "mirror", p.id.String(), "error", err)
			}
		}
	})
	v.notify()
}

func (s *snapshot) letGo(pool string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mirror.Pool != pool || s.gone || len(s.users) > 0 {
		return
	}
	if err := s.closeLocked(); err != nil {
		s.a.o.Logger.Warn("letting go of a split in a pool that is gone", "snapshot", s.id.String(), "error", err)
	}
}

// tryPool takes a pool into use again when it is back.
func (a *Array) tryPool(p *pool) {
	if _, err := a.fs.Stat(filepath.Join(p.dir, poolFile)); err != nil {
		return
	}
	p.close() // the lock of what was there before
	array := a.store.read().Array
	if err := p.open(a.fs, array); err != nil {
		if p.down().Error() != err.Error() {
			p.setDown(err)
			a.poolEvent(PoolOffline, p.name, "something is back, but %v", err)
		}
		return
	}
	p.setDown(nil)
	missed, failed := 0, 0
	for _, v := range a.allVolumes() {
		if err := v.reopen(); err != nil {
			a.o.Logger.Warn("a volume was not taken into use again", "volume", v.name, "error", err)
		}
		for _, m := range a.store.read().volume(v.id).mirrorsIn(p.name) {
			switch {
			case m.State != broken:
			case m.Away && !m.All:
				missed++
			default:
				failed++
			}
		}
	}
	for _, s := range a.allSnapshots() {
		s.reopen(p.name)
	}
	repair := ""
	if failed > 0 {
		repair = fmt.Sprintf("; %d had failed and wait for a repair of their volumes", failed)
	}
	a.poolEvent(PoolBack, p.name, "pool %q is back; %d mirrors in it missed writes and are filled with them%s", p.name, missed, repair)
	a.labels.kick()
}

func (v *volumeRecord) mirrorsIn(pool string) (out []mirrorRecord) {
	if v == nil {
		return nil
	}
	for _, m := range v.Mirrors {
		if m.Pool == pool {
			out = append(out, m)
		}
	}
	return out
}

// reopen takes the mirrors of an offline volume into use that can be again.
func (v *volume) reopen() error {
	select {
	case v.admin <- struct{}{}:
		defer v.unlockAdmin()
	default:
		return nil // somebody is changing it
	}
	if v.isGone() || v.mirrorsInSync() > 0 {
		return nil
	}
	r := v.a.store.read().clone().volume(v.id)
	v.state.Lock()
	e := epoch0{dirty: v.cur.dirty, missed: v.cur.missed}
	v.state.Unlock()
	begin, err := v.attach(r, &e)
	if err != nil || len(e.insync) == 0 {
		return err
	}
	if err := v.a.change(func(c *catalog) error {
		*c.volume(v.id) = *r
		return nil
	}); err != nil {
		return err
	}
	begin()
	v.notify()
	return nil
}

// reopen takes the snapshot's file into use that was in a pool that went away.
func (s *snapshot) reopen(pool string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mirror.Pool != pool || s.gone || s.invalid == nil {
		return
	}
	if len(s.users) == 0 && s.write == nil {
		if s.p != nil {
			s.p.f.Close()
		}
		s.p, s.invalid = s.a.openSplit(&s.mirror, s.size, os.O_RDWR)
	} else { // whoever has it open goes on with what is open
		s.invalid = nil
	}
	s.unusable.Store(s.invalid != nil)
}

// watchWritable tells when a pool can be read and not written to any more, as
// after an error of its file system, and when it can again.
func (a *Array) watchWritable(p *pool) {
	f, err := a.fs.OpenFile(filepath.Join(p.dir, poolFile), os.O_RDWR)
	if err == nil {
		f.Close()
		if p.readOnly.Swap(nil) != nil {
			a.poolEvent(PoolBack, p.name, "pool %q can be written to again", p.name)
		}
		return
	}
	if !errors.Is(err, syscall.EROFS) && !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.EPERM) {
		return
	}
	err = fmt.Errorf("pool %q can't be written to: %w", p.name, err)
	if p.readOnly.Swap(&err) == nil {
		a.poolEvent(PoolReadOnly, p.name, "%v", err)
	}
}

// watchRoom tells once when room gets low, and once when there is more again.
func (a *Array) watchRoom(p *pool) {
	var used int64
	if p.limit.Limit > 0 {
		used, _ = a.usage(p)
	}
	size, free, err := a.room(p, used)
	if err != nil {
		return // here tells
	}
	least := p.limit.threshold(size)
	switch {
	case !p.low && free < least:
		p.low = true
		a.poolEvent(PoolLow, p.name, "pool %q has %d of %d bytes free, less than the %d it should have: when it is full, mirrors in it are dropped", p.name, free, size, least)
	case p.low && free >= least+least/10:
		p.low = false
		a.poolEvent(PoolRoom, p.name, "pool %q has %d of %d bytes free again", p.name, free, size)
	}
}

// stateReserve is how much room the state directory should have, in bytes: for the
// maps of some volumes, at the least for a tenth of a small file system.
const stateReserve = 256 << 20

// watchState tells once when room for the catalogue and maps gets low, and once
// when there is more again.
func (a *Array) watchState() {
	size, free, err := a.fs.Space(a.o.StateDir)
	if err != nil {
		return
	}
	least := min(stateReserve, size/10)
	switch {
	case !a.stateLow && free < least:
		a.stateLow = true
		a.event(StateLow, nil, lun.Identity{}, "the state directory %s has %d bytes free, and should have %d: when it is full, nothing can be split, and in the end nothing written", a.o.StateDir, free, least)
	case a.stateLow && free >= least+least/10:
		a.stateLow = false
		a.event(StateRoom, nil, lun.Identity{}, "the state directory %s has %d bytes free again", a.o.StateDir, free)
	}
}
