package embedded

import (
	"context"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
)

// SnapshotPolicy says what a split of a volume makes its snapshot of. The empty
// policy is ByMirror.
type SnapshotPolicy string

const (
	// ByMirror takes a mirror off: a copy of its own, on a disk of its own. It
	// leaves production with one mirror fewer until the resync.
	ByMirror SnapshotPolicy = "mirror"
	// ByReflink clones the file of a mirror in sync within its pool, whose file
	// system must have reflinks. Production keeps all its mirrors, and needs one
	// only; what the snapshot holds is lost with that pool, and what production
	// overwrites takes new space in it. Writes are held while the file is being
	// cloned, a few milliseconds, and for Options.HoldLimit at most.
	ByReflink SnapshotPolicy = "reflink"
	// AutoSnapshot is ByMirror where a mirror can be spared, which is where two
	// remain or the operator consented to fewer, and ByReflink otherwise.
	AutoSnapshot SnapshotPolicy = "auto"
)

func (p SnapshotPolicy) orDefault() SnapshotPolicy {
	if p == "" {
		return ByMirror
	}
	return p
}

func (p SnapshotPolicy) check() error {
	switch p {
	case "", ByMirror, ByReflink, AutoSnapshot:
		return nil
	}
	return driver.Errorf(driver.InvalidRequest, "snapshots %.40q: want %s, %s or %s", string(p), ByMirror, ByReflink, AutoSnapshot)
}

// SetSnapshotPolicy changes a volume's policy, from its next split on. ByReflink
// is refused where none of the volume's pools has reflinks (kind NotSupported).
func (a *Array) SetSnapshotPolicy(ctx context.Context, ref driver.VolumeID, p SnapshotPolicy) (VolumeInfo, error) {
	v, err := a.find(ref)
	if err == nil {
		err = p.check()
	}
	if err == nil {
		err = v.lockAdmin(ctx)
	}
	if err != nil {
		return VolumeInfo{}, err
	}
	err = a.finish(ctx, fmt.Sprintf("changing the snapshots of %s", v.label), v.unlockAdmin, func() error {
		if p == ByReflink {
			if err := a.anyClones(a.store.read().volume(v.id).Want); err != nil {
				return fmt.Errorf("%s: %w", v.label, err)
			}
		}
		return a.change(func(c *catalog) error {
			c.volume(v.id).Policy = p.orDefault()
			return nil
		})
	})
	if err != nil {
		return VolumeInfo{}, err
	}
	return a.VolumeInfo(ref)
}

// anyClones is nil if one of the pools has reflinks.
func (a *Array) anyClones(pools []string) error {
	why := fmt.Errorf("it has no pool")
	for _, name := range pools {
		p := a.pools[name]
		if p == nil {
			continue
		}
		if why = p.canClone(a.fs); why == nil {
			return nil
		}
	}
	return driver.Errorf(driver.NotSupported, "no snapshot by reflink can be made: %w", why)
}

// source picks what the tag's split of v is made of: a mirror that comes off,
// or one whose file is cloned.
func (v *volume) source(c *catalog, tag driver.Tag) (p *plex, clone bool, err error) {
	policy := c.volume(v.id).Policy.orDefault()
	if policy != ByReflink {
		if p, err = v.choose(c, tag); err == nil || policy == ByMirror {
			return p, false, err
		}
	}
	p, cerr := v.chooseClone()
	if cerr != nil && policy == ByReflink {
		err = cerr
	}
	if cerr != nil {
		return nil, false, err
	}
	return p, true, nil
}

// chooseClone picks the mirror to clone: as choose does the one that came last,
// of those in a pool with reflinks and some room.
func (v *volume) chooseClone() (*plex, error) {
	v.state.Lock()
	e := v.cur
	v.state.Unlock()
	switch {
	case len(e.insync) == 0:
		return nil, driver.Errorf(driver.NotSynchronized, "%s is offline: %w", v.label, errOffline)
	case e.fixed:
		return nil, driver.Errorf(driver.NotSynchronized, "%s: its mirrors are still being compared after a crash", v.label)
	}
	var why error
	for _, p := range slices.Backward(e.insync) {
		if err := v.a.anyClones([]string{p.pool}); err != nil {
			if why == nil {
				why = err
			}
		} else if why = v.a.checkRoom(p.pool, 0); why == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", v.label, why)
}

// expectClone tells whether chooseClone will find a mirror once all that can be
// is in sync.
func (v *volume) expectClone(c *catalog) error {
	pools := v.missing(c)
	for _, m := range c.volume(v.id).Mirrors {
		if m.State != broken {
			pools = append(pools, m.Pool)
		}
	}
	if err := v.a.anyClones(pools); err != nil {
		return fmt.Errorf("%s: %w", v.label, err)
	}
	return nil
}
