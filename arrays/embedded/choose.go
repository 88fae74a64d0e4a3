package embedded

import (
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// choose picks the mirror to split off: the one that came last, so that reads,
// which favour the first, go on as they were.
func (v *volume) choose(c *catalog, tag driver.Tag) (*plex, error) {
	v.state.Lock() // the catalogue and the epoch may differ while it is held
	defer v.state.Unlock()
	e := v.cur
	switch n := len(e.insync); {
	case n == 0:
		return nil, driver.Errorf(driver.NotSynchronized, "%s is offline: %w", v.label, errOffline)
	case e.fixed:
		return nil, driver.Errorf(driver.NotSynchronized, "%s: its mirrors are still being compared after a crash", v.label)
	case n == 1:
		return nil, v.noMirror(c, tag)
	case n == 2 && !c.consents(tag, v.id):
		return nil, v.needsConsent()
	default:
		return e.insync[n-1], nil
	}
}

func (v *volume) needsConsent() error {
	return driver.Errorf(driver.NeedsConsent, "splitting %s would leave it with one mirror: add a third, or allow it to be unmirrored until the resync", v.label)
}

// noMirror says why there is no mirror to split off.
func (v *volume) noMirror(c *catalog, tag driver.Tag) error {
	for _, s := range c.Snapshots {
		if s.Volume == v.id && s.Tag != tag {
			return driver.Errorf(driver.Busy, "%s: its mirror is split off as snapshot %s of tag %q: resync or delete that first", v.label, s.ID, s.Tag)
		}
	}
	for _, m := range c.volume(v.id).Mirrors {
		switch m.State {
		case inSync:
		case filling:
			return driver.Errorf(driver.NotSynchronized, "%s: mirror %s is still being filled", v.label, m.ID)
		case broken:
			return driver.Errorf(driver.NotSynchronized, "%s: mirror %s in pool %q is broken (%s): repair it, or remove it and add another", v.label, m.ID, m.Pool, m.Reason)
		}
	}
	return driver.Errorf(driver.NotSynchronized, "%s has one mirror only: add another", v.label)
}

func (c *catalog) consents(tag driver.Tag, v lun.Identity) bool {
	return slices.ContainsFunc(c.Consents, func(r consentRecord) bool {
		return r.Tag == tag && slices.Contains(r.Volumes, v)
	})
}
