package embedded

import (
	"context"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
)

// DeleteVolume removes a volume and its mirrors. It is refused while the volume
// is in use. Its snapshots stay. Deleting what is not there is success.
func (a *Array) DeleteVolume(ctx context.Context, ref driver.VolumeID) error {
	v, err := a.find(ref)
	if err == nil {
		err = v.lockAdmin(ctx)
	}
	if err != nil {
		if kindOf(err) == driver.NotFound {
			return nil
		}
		return err
	}
	return a.finish(ctx, fmt.Sprintf("deleting %s", v.label), v.unlockAdmin, func() error { return a.deleteVolume(v) })
}

func (a *Array) deleteVolume(v *volume) error {
	v.mu.Lock()
	if len(v.users) > 0 {
		defer v.mu.Unlock()
		return driver.Errorf(driver.Busy, "%s is in use by %s", v.label, oneOf(v.users))
	}
	v.gone = true
	v.mu.Unlock()
	var files []fileRef
	err := a.change(func(c *catalog) error {
		files = a.removableOf(c.volume(v.id))
		c.Volumes = slices.DeleteFunc(c.Volumes, func(r volumeRecord) bool { return r.ID == v.id })
		c.Trash = append(c.Trash, files...)
		return nil
	})
	if err != nil {
		v.mu.Lock()
		v.gone = false
		v.mu.Unlock()
		return err
	}
	a.mu.Lock()
	delete(a.volumes, v.id)
	a.mu.Unlock()
	v.stopScrub(errScrubStopped)
	v.stopFills()
	if err := v.shut(); err != nil {
		a.o.Logger.Warn("closing a deleted volume", "volume", v.name, "error", err)
	}
	a.scrap(a.mapPath(v.logName()))
	for n := range v.epochs {
		a.scrap(a.mapPath(v.epochName(n)))
	}
	for id := range v.missed {
		a.scrap(a.mapPath(missedName(id)))
	}
	a.discard(files)
	return nil
}

// stopScrub ends a scrub that is under way. What it repaired is stable when it
// returns.
func (v *volume) stopScrub(why error) {
	v.mu.Lock()
	s := v.scrub
	v.mu.Unlock()
	if s != nil {
		s.cancel(why)
		<-s.done
	}
}

// stopFills ends all copying to the volume's mirrors.
func (v *volume) stopFills() {
	v.mu.Lock()
	var fills []*fill
	for _, f := range v.fills {
		fills = append(fills, f)
	}
	v.mu.Unlock()
	for _, f := range fills {
		f.cancel()
		<-f.done
		v.a.scrap(v.a.mapPath(todoName(f.p.id)))
	}
}
