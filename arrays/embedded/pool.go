package embedded

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

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
	limit     PoolLimit
	id        lun.Identity // as the catalogue has it
	// offline says why nothing in it can be used; nil if it can. See down.
	offline atomic.Pointer[error]

	// What the watch saw last; it alone uses them, but for readOnly.
	fi       os.FileInfo // of the directory
	low      bool
	readOnly atomic.Pointer[error] // it can be read and not written to

	probing sync.Mutex
	probed  bool  // noClone is for good
	noClone error // why files in it can't be cloned; nil if they can
}

// down says why nothing in the pool can be used; nil if it can.
func (p *pool) down() error {
	if e := p.offline.Load(); e != nil {
		return *e
	}
	return nil
}

func (p *pool) setDown(err error) {
	if err == nil {
		p.offline.Store(nil)
		return
	}
	p.offline.Store(&err)
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
	p := &pool{name: name, dir: dir, id: known}
	if known.IsZero() {
		if err := disk.MkdirAll(fs, dir); err != nil {
			return nil, known, fmt.Errorf("pool %q: %w", name, err)
		}
	} else if _, err := fs.Stat(filepath.Join(dir, poolFile)); err != nil {
		p.setDown(fmt.Errorf("pool %q: %w (is its disk mounted?)", name, err))
		return p, known, nil
	}
	if err := p.open(fs, array); err != nil {
		var locked *lockError
		if !known.IsZero() && errors.As(err, &locked) && !errors.Is(err, disk.ErrLocked) {
			p.setDown(err) // it is read-only, or failing
			return p, known, nil
		}
		return nil, known, err
	}
	return p, p.id, nil
}

// lockError says that it was the lock of a pool that could not be had.
type lockError struct{ error }

func (e *lockError) Unwrap() error { return e.error }

// open locks the pool's directory and makes sure that it is the pool.
func (p *pool) open(fs disk.FS, array lun.Identity) error {
	lock, err := fs.Lock(filepath.Join(p.dir, lockFile))
	if errors.Is(err, disk.ErrLocked) {
		return &lockError{driver.Errorf(driver.Busy, "pool %q in %s is in use by another array daemon: %w", p.name, p.dir, err)}
	} else if err != nil {
		return &lockError{fmt.Errorf("pool %q: %w", p.name, err)}
	}
	id, err := p.identify(fs, array, p.id)
	if err == nil {
		p.fi, err = fs.Stat(p.dir)
	}
	if err != nil {
		lock.Close()
		return fmt.Errorf("pool %q in %s: %w", p.name, p.dir, err)
	}
	p.lock, p.id = lock, id
	_ = p.canClone(fs) // found out now, told by whoever asks
	return nil
}

// canClone is nil if files in the pool can be cloned, and otherwise says why
// not. It is found out once, unless something that may pass, as a full disk,
// left it open.
func (p *pool) canClone(fs disk.FS) error {
	if err := p.down(); err != nil {
		return err
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
		return known, fmt.Errorf("it belongs to array %s, and this one is %s: give the state directory that it was used with, or, if that is lost, rebuild it by `cleave array rescan`", rec.Array, array)
	case !known.IsZero() && rec.Pool != known:
		return known, fmt.Errorf("it is pool %s (%q), and the catalogue expects %s here: were directories swapped?", rec.Pool, rec.Name, known)
	}
	return rec.Pool, nil
}

func (p *pool) close() {
	if p.lock != nil {
		p.lock.Close()
		p.lock = nil
	}
}
