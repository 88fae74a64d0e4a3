package embedded

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

const (
	poolKind    = "pool"
	poolVersion = 1
	poolFile    = "cleave-pool.json"
	lockFile    = ".cleave.lock"
)

// pool is a directory that stands for a disk.
type pool struct {
	name, dir string
	lock      io.Closer
	// offline says why nothing in it can be used; nil if it can.
	offline error

	probing sync.Mutex
	probed  bool  // noClone is for good
	noClone error // why files in it can't be cloned; nil if they can
}

// poolRecord lies in the pool and says whose it is.
type poolRecord struct {
	Pool  lun.Identity `json:"pool"`
	Array lun.Identity `json:"array"`
	Name  string       `json:"name"`
}

// openPool locks a pool and finds out whether it is the one that the catalogue
// knows. known is zero for one that the catalogue does not know: it is then
// made, unless it is another array's, and its new identity returned.
func openPool(fs disk.FS, name, dir string, array, known lun.Identity) (*pool, lun.Identity, error) {
	p := &pool{name: name, dir: dir}
	if known.IsZero() {
		if err := disk.MkdirAll(fs, dir); err != nil {
			return nil, known, fmt.Errorf("pool %q: %w", name, err)
		}
	} else if _, err := fs.Stat(filepath.Join(dir, poolFile)); err != nil {
		p.offline = fmt.Errorf("pool %q: %w (is its disk mounted?)", name, err)
		return p, known, nil
	}
	lock, err := fs.Lock(filepath.Join(dir, lockFile))
	switch {
	case errors.Is(err, disk.ErrLocked):
		return nil, known, driver.Errorf(driver.Busy, "pool %q in %s is in use by another array daemon: %w", name, dir, err)
	case err != nil && known.IsZero():
		return nil, known, fmt.Errorf("pool %q: %w", name, err)
	case err != nil: // read-only: what is in it may still be read
		p.offline = fmt.Errorf("pool %q: %w", name, err)
		return p, known, nil
	}
	p.lock = lock
	id, err := p.identify(fs, array, known)
	if err != nil {
		lock.Close()
		return nil, known, fmt.Errorf("pool %q in %s: %w", name, dir, err)
	}
	_ = p.canClone(fs) // found out now, told by whoever asks
	return p, id, nil
}

// canClone is nil if files in the pool can be cloned, and otherwise says why
// not. It is found out once, unless something that may pass, as a full disk,
// left it open.
func (p *pool) canClone(fs disk.FS) error {
	if p.offline != nil {
		return p.offline
	}
	p.probing.Lock()
	defer p.probing.Unlock()
	if !p.probed {
		p.noClone = disk.CanClone(fs, p.dir)
		p.probed = p.noClone == nil || errors.Is(p.noClone, disk.ErrNoClone)
		if p.noClone != nil {
			p.noClone = fmt.Errorf("pool %q in %s: %w", p.name, p.dir, p.noClone)
		}
	}
	return p.noClone
}

func (p *pool) identify(fs disk.FS, array, known lun.Identity) (lun.Identity, error) {
	path := filepath.Join(p.dir, poolFile)
	b, err := disk.ReadFile(fs, path, 1<<20)
	if isNotExist(err) && known.IsZero() {
		rec := poolRecord{Pool: lun.NewIdentity(), Array: array, Name: p.name}
		if b, err = encodeRecord(poolKind, poolVersion, rec); err != nil {
			return known, err
		}
		return rec.Pool, disk.Replace(fs, path, b)
	}
	if err != nil {
		return known, err
	}
	var rec poolRecord
	if _, err := decodeRecord(b, poolKind, poolVersion, &rec); err != nil {
		return known, fmt.Errorf("%s: %w", poolFile, err)
	}
	switch {
	case rec.Array != array:
		return known, fmt.Errorf("it belongs to array %s, and this one is %s: give the state directory that it was used with", rec.Array, array)
	case !known.IsZero() && rec.Pool != known:
		return known, fmt.Errorf("it is pool %s (%q), and the catalogue expects %s here: were directories swapped?", rec.Pool, rec.Name, known)
	}
	return rec.Pool, nil
}

func (p *pool) close() {
	if p.lock != nil {
		p.lock.Close()
	}
}

// Pools describes the pools, by name.
func (a *Array) Pools() []PoolInfo {
	var out []PoolInfo
	for _, p := range a.pools {
		info := PoolInfo{Name: p.name, Dir: p.dir}
		if p.offline != nil {
			info.Reason = p.offline.Error()
		} else {
			var err error
			if info.Size, info.Free, err = a.fs.Space(p.dir); err != nil {
				info.Reason = err.Error()
			}
			info.Reflink = p.canClone(a.fs) == nil
		}
		out = append(out, info)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (a *Array) checkPool(name string) error {
	p := a.pools[name]
	switch {
	case p == nil:
		return driver.Errorf(driver.NotFound, "no pool %.80q: there are %s", name, strings.Join(slices.Sorted(maps.Keys(a.pools)), ", "))
	case p.offline != nil:
		return driver.Errorf(driver.Unreachable, "%w", p.offline)
	}
	return nil
}

// checkRoom is checkPool for a pool that is to hold a new mirror. It takes
// little, being sparse; but one in a full pool is lost at the first write.
func (a *Array) checkRoom(name string) error {
	if err := a.checkPool(name); err != nil {
		return err
	}
	dir := a.pools[name].dir
	_, free, err := a.fs.Space(dir)
	if err != nil {
		return fmt.Errorf("pool %q: %w", name, err)
	}
	if free < poolReserve {
		return driver.Errorf(driver.NoSpace, "pool %q is full: %d bytes are free in %s", name, free, dir)
	}
	return nil
}

// poolReserve is how much room a pool must have for a mirror to be made in it,
// in bytes.
const poolReserve = 64 << 10
