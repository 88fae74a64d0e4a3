package embedded

import (
	"fmt"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// undo takes back a split that did not become certain, while the array runs.
// The mirrors go back to their volumes, to be filled with what was written
// since; one that failed meanwhile is broken. What
// they need to go back stays until that is stable.
func (a *Array) undo(s *cuts) {
	if err := a.store.failure(); err != nil {
		// Whether the split is certain is on the disk, and known at the next
		// start. Until then the mirrors stay off, and can go back.
		a.o.Logger.Error("a split's outcome is unknown until a restart", "group", s.group, "error", err)
		s.stay()
		return
	}
	todos := make(map[lun.Identity]*mapFile)
	for _, k := range s.parts {
		if k.old == nil {
			continue
		}
		if todo, err := k.rejoin(); err != nil && k.clone != nil {
			a.o.Logger.Warn("a map could not be flushed; what it lacks stays marked", "volume", k.v.name, "error", err)
		} else if err != nil {
			k.p.fail(err)
		} else if todo != nil {
			todos[k.p.id] = todo
		}
	}
	err := a.change(func(c *catalog) error {
		c.dropPending(s.group)
		for _, k := range s.parts {
			m := c.mirrorOf(k.v.id, k.p.id)
			switch {
			case k.old == nil || m == nil || k.clone != nil:
			case todos[k.p.id] != nil:
				m.State, m.Todo = filling, []string{todoName(k.p.id)}
			default:
				m.State, m.Reason = broken, fmt.Sprint(k.p.failed())
			}
			c.volume(k.v.id).noteUnmirrored(a.o.Now())
		}
		return nil
	})
	if err != nil {
		a.o.Logger.Error("undoing a split could not be recorded; a restart repeats it", "group", s.group, "error", err)
		s.stay()
		return
	}
	a.event(SplitUndone, nil, lun.Identity{}, "a split of %d volumes did not succeed and was undone", len(s.parts))
	for _, k := range s.parts {
		k.v.left()
		if todo := todos[k.p.id]; todo != nil {
			k.v.startFill(k.v.newFill(k.p, todo, false))
		} else if k.old != nil && k.clone == nil {
			k.p.f.Close()
		}
		k.v.notify()
	}
	s.scrap()
	s.dropClones(a)
}

// rejoin makes a mirror that came off one of those that are written to again,
// and returns what it lacks; nil if it failed, or never came off.
func (k *cut) rejoin() (*mapFile, error) {
	v := k.v
	stays := k.clone != nil || k.p.failed() != nil
	v.state.Lock()
	next := v.cur.parts()
	if !stays {
		next.filling = with(next.filling, k.p)
	}
	next.dirty = k.old.dirty
	old := v.flip(next)
	v.state.Unlock()
	<-old.idle
	if k.old.dirty != nil { // older snapshots want to know as well
		k.old.dirty.or(k.dirty.bitmap)
		if err := k.old.dirty.flush(); err != nil {
			return nil, err
		}
	}
	if stays {
		return nil, nil //nolint:nilerr // the mirror's error has been taken for what it says: there is nothing to fill
	}
	todo, err := createMap(v.a.fs, v.a.mapPath(todoName(k.p.id)), v.size.Load(), regionSize)
	if err == nil {
		todo.or(k.dirty.bitmap)
		if err = todo.flush(); err == nil {
			err = v.a.fs.SyncDir(v.a.maps)
		}
	}
	if err != nil {
		v.state.Lock()
		next := v.cur.parts()
		next.filling = without(next.filling, k.p) // it was not about to be in sync
		v.flip(next)
		v.state.Unlock()
		return nil, err
	}
	return todo, nil
}

// failure is why the catalogue takes no more changes, nil if it does.
func (s *store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

var _ driver.Resyncer = (*Array)(nil)
