package embedded

import (
	"context"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
)

// GrowVolume makes a volume larger, while it is in use; what is added reads as
// zeroes. Volumes never shrink.
func (a *Array) GrowVolume(ctx context.Context, ref driver.VolumeID, size int64) (VolumeInfo, error) {
	v, err := a.find(ref)
	if err == nil {
		err = checkSize(size)
	}
	if err == nil {
		err = v.lockAdmin(ctx)
	}
	if err != nil {
		return VolumeInfo{}, err
	}
	err = a.finish(ctx, fmt.Sprintf("growing %s", v.label), v.unlockAdmin, func() error { return v.grow(size) })
	if err != nil {
		return VolumeInfo{}, err
	}
	return a.VolumeInfo(ref)
}

func (v *volume) grow(size int64) error {
	have := v.size.Load()
	if size == have {
		return nil
	}
	if size < have {
		return driver.Errorf(driver.InvalidRequest, "%s has %d bytes: it can't shrink to %d", v.label, have, size)
	}
	for _, m := range v.a.store.read().volume(v.id).Mirrors {
		if m.State == broken {
			continue
		}
		if err := v.a.checkRoom(m.Pool, 0); err != nil {
			return fmt.Errorf("growing %s: %w", v.label, err)
		}
	}
	v.state.Lock()
	defer v.state.Unlock()
	if len(v.cur.insync) == 0 {
		return fmt.Errorf("growing %s: %w", v.label, errOffline)
	}
	for _, p := range slices.Concat(v.cur.insync, v.cur.filling) {
		err := p.f.Truncate(size)
		if err == nil {
			err = p.f.Sync()
		}
		if err != nil {
			return fmt.Errorf("growing mirror %s of %s: %w", p.id, v.label, noSpace(err))
		}
	}
	err := v.a.change(func(c *catalog) error {
		c.volume(v.id).Size = size
		return nil
	})
	if err != nil {
		return err
	}
	v.mu.Lock()
	for _, m := range v.epochs {
		m.grow(regionsFor(size, m.unit))
	}
	for _, m := range v.missed {
		m.grow(regionsFor(size, m.unit))
	}
	for _, f := range v.fills { // writes to what is added go to the mirror as well
		f.todo.grow(regionsFor(size, f.todo.unit))
	}
	v.mu.Unlock()
	v.log.file.grow(regionsFor(size, v.log.file.unit))
	v.size.Store(size)
	return nil
}
