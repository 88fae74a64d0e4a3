package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// Array is an open array. See the package comment for what it promises.
type Array struct {
	o      Options
	fs     disk.FS
	store  store
	maps   string // directory of map files
	lock   io.Closer
	pools  map[string]*pool
	dirs   sync.Mutex // volumes' directories in pools come and go under it
	copies rate
	// copied is how many bytes were copied to mirrors since Open, and lastPace
	// how many a second the last copying moved.
	copied, lastPace atomic.Int64
	// copying has a place for each mirror that is copied to at once.
	copying chan struct{}
	events  eventQueue
	labels  labeller
	splits  tagLocks

	stateLow bool // room for it is; housekeeping alone uses it

	// background work ends when stop is called, and is waited for.
	bg   context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	volumes map[lun.Identity]*volume
	snaps   map[lun.Identity]*snapshot
	armed   map[driver.Tag]*armed
}

// Open opens the array, or makes one where the state directory is empty. What a
// crash left undone is finished or undone before Open returns, but for the
// copying that makes mirrors equal, which goes on while volumes are in use.
//
// A pool that is away, or a mirror whose file is, costs its volumes that
// mirror; a state directory or a pool in use by another process is an error.
func Open(ctx context.Context, o Options) (_ *Array, err error) {
	if o.StateDir == "" || len(o.Pools) == 0 {
		return nil, driver.Errorf(driver.InvalidRequest, "embedded array: a state directory and at least one pool are needed")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FS == nil {
		o.FS = disk.OS()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.LogLimit <= 0 {
		o.LogLimit = 4 << 30
	}
	if o.LogIdle <= 0 {
		o.LogIdle = 5 * time.Second
	}
	if o.retryAfter <= 0 {
		o.retryAfter = o.LogIdle
	}
	if o.HoldLimit <= 0 {
		o.HoldLimit = 5 * time.Second
	}
	a := &Array{
		o: o, fs: o.FS,
		store:   store{fs: o.FS, path: filepath.Join(o.StateDir, "catalogue.json")},
		maps:    filepath.Join(o.StateDir, "maps"),
		pools:   map[string]*pool{},
		volumes: map[lun.Identity]*volume{},
		snaps:   map[lun.Identity]*snapshot{},
		armed:   map[driver.Tag]*armed{},
		copying: make(chan struct{}, 4),
	}
	a.copies.set(o.ResyncRate)
	a.bg, a.stop = context.WithCancel(context.WithoutCancel(ctx))
	a.events.init(o.OnEvent)
	a.labels.init(a)
	defer func() {
		if err != nil {
			a.abandon()
			a.release()
			err = fmt.Errorf("opening array in %s: %w", o.StateDir, err)
		}
	}()
	if err := disk.MkdirAll(a.fs, a.maps); err != nil {
		return nil, err
	}
	a.lock, err = a.fs.Lock(filepath.Join(o.StateDir, lockFile))
	if errors.Is(err, disk.ErrLocked) {
		return nil, driver.Errorf(driver.Busy, "the state directory is in use by another array daemon: %w", err)
	} else if err != nil {
		return nil, err
	}
	if log, before, err := openEventLog(a.fs, filepath.Join(o.StateDir, eventsFile), o.Logger); err != nil {
		o.Logger.Warn("events can't be kept", "error", err)
	} else {
		a.events.restore(log, before)
	}
	if err := a.load(); err != nil {
		return nil, err
	}
	if err := a.recover(); err != nil {
		return nil, err
	}
	a.work.Go(a.labels.run)
	clock := newClockWatch(o.Now)
	a.work.Go(func() { a.housekeeping(clock) })
	a.labels.kick()
	return a, nil
}

// load reads the catalogue and opens the pools.
func (a *Array) load() error {
	upgraded, err := a.store.load()
	if upgraded > 0 {
		a.event(Upgraded, nil, lun.Identity{}, "the records are upgraded from version %d to %d; the old catalogue is kept as %s until the next start", upgraded, catalogVersion, a.store.backup(upgraded))
	}
	fresh := isNotExist(err)
	if fresh {
		a.store.cur.Store(&catalog{Array: lun.NewIdentity(), Pools: map[string]lun.Identity{}})
		// Who we are is stable before a pool says that it is ours.
		err = a.store.update(func(*catalog) error { return nil })
	}
	if err != nil {
		return err
	}
	cat := a.store.read()
	added := map[string]lun.Identity{}
	names := make([]string, 0, len(a.o.Pools))
	for name := range a.o.Pools {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if !volumeName.MatchString(name) {
			return driver.Errorf(driver.InvalidRequest, "pool name %.80q: want 1 to 63 of [a-z0-9._-]", name)
		}
		p, id, err := openPool(a.fs, name, a.o.Pools[name], cat.Array, cat.Pools[name])
		if err != nil {
			return err
		}
		a.pools[name] = p
		p.limit = a.o.Limits[name]
		if err := p.down(); err != nil {
			a.poolEvent(PoolOffline, name, "%v", err)
		}
		if cat.Pools[name] != id {
			added[name] = id
		}
	}
	for name := range cat.Pools {
		if a.pools[name] == nil {
			p := &pool{name: name}
			p.setDown(fmt.Errorf("pool %q is not configured", name))
			a.pools[name] = p
		}
	}
	if len(added) == 0 {
		return nil
	}
	return a.store.update(func(c *catalog) error {
		for name, id := range added {
			c.Pools[name] = id
		}
		return nil
	})
}

// Close syncs and closes everything. Devices that are still open fail with
// lun.ErrClosed from then on. Calls under way end first. What is
// armed is aborted.
func (a *Array) Close() error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.closed = true
	a.mu.Unlock()
	a.stop()
	a.labels.stop()
	a.work.Wait()
	errs := []error{a.abortAll()}
	for _, v := range a.volumes {
		errs = append(errs, v.shut())
	}
	for _, s := range a.snaps {
		errs = append(errs, s.shut())
	}
	a.release()
	return errors.Join(errs...)
}

// abandon closes the files of an array that could not be opened, and writes
// nothing.
func (a *Array) abandon() {
	for _, v := range a.volumes {
		for _, p := range slices.Concat(v.cur.insync, v.cur.filling) {
			p.f.Close()
		}
		if v.log != nil {
			v.log.file.close()
		}
		for _, m := range v.epochs {
			m.close()
		}
		for _, m := range v.missed {
			m.close()
		}
	}
	for _, s := range a.snaps {
		if s.p != nil {
			s.p.f.Close()
		}
	}
}

// release gives back what Open took first.
func (a *Array) release() {
	a.stop()
	for _, p := range a.pools {
		p.close()
	}
	if a.lock != nil {
		a.lock.Close()
	}
	a.events.close()
}

func (a *Array) isClosed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closed
}

// start runs fn in the background, unless the array is closing.
func (a *Array) start(fn func()) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	a.work.Go(fn)
	return true
}

// finish runs fn and then release to their end and returns fn's error; if ctx
// ends before they do, they go on by themselves and the outcome is unknown.
func (a *Array) finish(ctx context.Context, what string, release func(), fn func() error) error {
	done := make(chan error, 1)
	begun := a.start(func() {
		err := fn()
		release()
		done <- err
	})
	if !begun {
		release()
		return fmt.Errorf("%s: array: %w", what, lun.ErrClosed)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return driver.Errorf(driver.OutcomeUnknown, "%s: still under way: %w", what, context.Cause(ctx))
	}
}

func (a *Array) allVolumes() []*volume {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*volume, 0, len(a.volumes))
	for _, v := range a.volumes {
		out = append(out, v)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].name < out[j].name })
	return out
}

func (a *Array) allSnapshots() []*snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.snaps))
}

// find returns the volume of an ID or a name.
func (a *Array) find(ref driver.VolumeID) (*volume, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, fmt.Errorf("array: %w", lun.ErrClosed)
	}
	if id, err := lun.ParseIdentity(string(ref)); err == nil {
		if v := a.volumes[id]; v != nil {
			return v, nil
		}
	}
	for _, v := range a.volumes {
		if v.name == string(ref) {
			return v, nil
		}
	}
	return nil, driver.Errorf(driver.NotFound, "no volume %.80q", ref)
}

func (a *Array) findSnapshot(ref driver.SnapshotID) (*snapshot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, fmt.Errorf("array: %w", lun.ErrClosed)
	}
	if id, err := lun.ParseIdentity(string(ref)); err == nil {
		if s := a.snaps[id]; s != nil {
			return s, nil
		}
	}
	return nil, driver.Errorf(driver.NotFound, "no snapshot %.80q", ref)
}

// poolPath is where a file of a pool lies.
func (a *Array) poolPath(poolName, file string) string {
	if p := a.pools[poolName]; p != nil {
		return filepath.Join(p.dir, file)
	}
	return file
}

func (a *Array) mapPath(name string) string { return filepath.Join(a.maps, name) }
