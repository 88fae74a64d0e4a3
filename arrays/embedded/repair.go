package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
)

// RepairVolume gives a volume the mirrors that it should have. A broken one
// whose file can be used again is filled with what it missed, if that is known;
// any other is replaced by a new one in the same pool, and its file removed. It
// returns when the copying has begun. What can't be repaired is named in the
// error; the rest is.
func (a *Array) RepairVolume(ctx context.Context, ref driver.VolumeID) error {
	v, err := a.find(ref)
	if err == nil {
		err = v.lockAdmin(ctx)
	}
	if err != nil {
		return err
	}
	return a.finish(ctx, "repairing the mirrors of "+v.label, v.unlockAdmin, func() error {
		return errors.Join(v.repairBroken(), v.addMissing())
	})
}

// addMissing makes the mirrors that the volume should have and has not, not
// even broken or split off. v.admin is held.
func (v *volume) addMissing() error {
	var errs []error
	for _, pool := range v.missing(v.a.store.read()) {
		err := v.a.checkRoom(pool, v.taken())
		if err == nil {
			_, err = v.addMirror(pool, false)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// repairBroken takes broken mirrors back or replaces them. v.admin is held.
func (v *volume) repairBroken() error {
	var errs []error
	for _, m := range v.brokenMirrors() {
		back, err := v.rejoin(&m)
		if !back && err == nil {
			err = v.replace(&m)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("mirror %s in pool %q: %w", m.ID, m.Pool, err))
		}
	}
	return errors.Join(errs...)
}

func (v *volume) brokenMirrors() (out []mirrorRecord) {
	if r := v.a.store.read().volume(v.id); r != nil {
		for _, m := range r.Mirrors {
			if m.State == broken {
				out = append(out, m)
			}
		}
	}
	return out
}

// replace fills a new mirror in a broken one's pool and forgets the broken one.
func (v *volume) replace(m *mirrorRecord) error {
	if err := v.a.checkRoom(m.Pool, v.taken()); err != nil {
		return err
	}
	if _, err := v.addMirror(m.Pool, false); err != nil {
		return err
	}
	files := v.a.removable(m)
	if err := v.a.change(func(c *catalog) error {
		r := c.volume(v.id)
		r.Mirrors = slices.DeleteFunc(r.Mirrors, func(x mirrorRecord) bool { return x.ID == m.ID })
		c.Trash = append(c.Trash, files...)
		return nil
	}); err != nil {
		return err
	}
	v.dropMissed(m.ID)
	v.a.scrap(v.a.mapPath(todoName(m.ID)))
	v.a.discard(files)
	return nil
}

// rejoin takes a broken mirror back whose file can be used again, to be filled
// with what it missed. It is false, and nothing has changed, if that is not
// known or the file is not there or another.
func (v *volume) rejoin(m *mirrorRecord) (back bool, err error) {
	v.mu.Lock()
	missed, f := v.missed[m.ID], v.fills[m.ID]
	v.mu.Unlock()
	if f != nil { // it was dropped while being filled
		f.cancel()
		<-f.done
	}
	if m.All || missed == nil || v.mirrorsInSync() == 0 {
		return false, nil
	}
	p, err := v.openReturned(m)
	if err != nil {
		return false, nil //nolint:nilerr // the mirror's record says why it is broken: another takes its place
	}
	if err = v.a.change(func(c *catalog) error {
		r := c.mirrorOf(v.id, m.ID)
		r.State, r.Reason, r.Away, r.Length = filling, "", false, 0
		return nil
	}); err != nil {
		p.f.Close()
		return false, err
	}
	v.a.event(MirrorReturned, v, m.ID, "%s: mirror %s in pool %q can be used again and is filled with what it missed, at most %d bytes", v.label, m.ID, m.Pool, missed.count()*regionSize)
	err = v.takeIn(p, m.Todo, func() { v.dropMissed(m.ID) })
	v.notify()
	return true, err
}

// openReturned opens the file of a broken mirror, if it is the one that it was, and
// makes it as long as the volume.
func (v *volume) openReturned(m *mirrorRecord) (*plex, error) {
	p, err := v.a.openPlex(m, m.Length, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	if fileID(p.f) != m.FileID {
		p.f.Close()
		return nil, fmt.Errorf("%s is another file than the one that was the mirror", p.path)
	}
	if size := v.size.Load(); m.Length < size {
		if err = p.f.Truncate(size); err == nil {
			err = p.f.Sync()
		}
		if err != nil {
			p.f.Close()
			return nil, err
		}
	}
	return p, nil
}

// lookForReturned takes mirrors back whose file was away and is there again.
// Mirrors that erred are not tried again until somebody asks for it.
func (v *volume) lookForReturned() {
	for _, m := range v.brokenMirrors() {
		if !m.Away || m.All || !v.isThere(&m) {
			continue
		}
		select {
		case v.admin <- struct{}{}:
		default:
			return // being administered: next time
		}
		err := error(nil)
		if r := v.a.store.read().mirrorOf(v.id, m.ID); r != nil && r.State == broken && !v.isGone() {
			_, err = v.rejoin(r)
		}
		v.unlockAdmin()
		if err != nil {
			v.a.o.Logger.Warn("a mirror that is there again could not be taken back", "volume", v.name, "mirror", m.ID.String(), "error", err)
		}
	}
}

func (v *volume) isThere(m *mirrorRecord) bool {
	p, err := v.a.openPlex(m, m.Length, os.O_RDONLY)
	if err != nil {
		return false
	}
	defer p.f.Close()
	return fileID(p.f) == m.FileID
}

func (a *Array) isPoolAway(name string) bool {
	p := a.pools[name]
	return p == nil || p.down() != nil
}

// errAway says that a mirror's file, or the pool with it, is not where it was.
var errAway = errors.New("it is away")

// isAway reports whether a mirror broke because its file was not there, which
// may pass by itself.
func isAway(cause error) bool { return isNotExist(cause) || errors.Is(cause, errAway) }
