package embedded

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// Files that belong to nothing, since they are about to be made or removed, are
// in the catalogue's trash until that is stable: no crash leaves one behind.

// unlink removes files of the pools, with what a crash left of writing them, and
// the volumes' directories in which nothing is left. It returns those that are
// gone for good, be there a crash or not.
func (a *Array) unlink(files []fileRef) map[fileRef]bool {
	a.dirs.Lock()
	defer a.dirs.Unlock()
	removed := map[string][]fileRef{} // by directory
	for _, f := range files {
		if p := a.pools[f.Pool]; p == nil || p.down() != nil {
			continue
		}
		path := a.poolPath(f.Pool, f.Path)
		if err := errors.Join(a.remove(path), a.remove(path+disk.NewSuffix)); err != nil {
			a.event(LeftOver, nil, lun.Identity{}, "a deleted file could not be removed: %v", err)
			continue
		}
		dir := filepath.Dir(path)
		removed[dir] = append(removed[dir], f)
	}
	gone := map[fileRef]bool{}
	for dir, fs := range removed {
		if err := a.settleDir(dir); err != nil {
			a.event(LeftOver, nil, lun.Identity{}, "that files were removed is not certain: %v", err)
			continue
		}
		for _, f := range fs {
			gone[f] = true
		}
	}
	return gone
}

func (a *Array) remove(path string) error {
	if err := a.fs.Remove(path); err != nil && !isNotExist(err) {
		return err
	}
	return nil
}

// settleDir makes stable that files of dir were removed, and removes dir if none
// is left. a.dirs is held.
func (a *Array) settleDir(dir string) error {
	if err := a.fs.Remove(dir); err == nil {
		return a.fs.SyncDir(filepath.Dir(dir))
	} else if isNotExist(err) {
		return nil
	}
	return a.fs.SyncDir(dir) // there is something in it
}

// scrap removes a map that nothing refers to any more. One that stays, or comes
// back with a crash, is in nobody's way: maps are looked through at every start.
func (a *Array) scrap(path string) {
	if err := a.fs.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.o.Logger.Warn("a file that is no longer needed stays", "error", err)
	}
}

// discard removes files that are in the trash and takes them out of it. What
// can't be removed stays there for the next start.
func (a *Array) discard(files []fileRef) {
	gone := a.unlink(files)
	if err := a.store.update(func(c *catalog) error {
		c.dropTrash(gone)
		return nil
	}); err != nil && !errors.Is(err, disk.ErrUncertain) {
		a.o.Logger.Warn("removed files stay in the catalogue's trash until a restart", "error", err)
	}
}

// emptyTrash is discard for all of it, in a catalogue that is not yet stable.
func (a *Array) emptyTrash(cat *catalog) { cat.dropTrash(a.unlink(cat.Trash)) }

func (c *catalog) dropTrash(gone map[fileRef]bool) {
	left := make([]fileRef, 0, len(c.Trash))
	for _, f := range c.Trash {
		if !gone[f] {
			left = append(left, f)
		}
	}
	c.Trash = left
}
