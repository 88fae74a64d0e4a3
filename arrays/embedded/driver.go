package embedded

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// consentLife is after which time a consent that led to no split is forgotten.
const consentLife = 7 * 24 * time.Hour

// Resolve finds the volume by its identity, by the NAA or serial number that
// follow from that, or by the path of one of its mirrors' files. All fields
// that are given and known have to agree on one volume.
func (a *Array) Resolve(ctx context.Context, d driver.Disk) (driver.Volume, error) {
	if a.isClosed() {
		return driver.Volume{}, fmt.Errorf("array: %w", lun.ErrClosed)
	}
	var found []VolumeInfo
	for _, v := range a.Volumes() {
		naa := strings.TrimPrefix(v.Identity.NAAString(), "naa.")
		hit := !d.Identity.IsZero() && d.Identity == v.Identity ||
			d.NAA != "" && strings.TrimPrefix(strings.ToLower(d.NAA), "naa.") == naa ||
			d.Serial != "" && strings.EqualFold(d.Serial, v.Identity.Serial()) ||
			d.Path != "" && slices.ContainsFunc(v.Replicas, func(m MirrorInfo) bool { return filepath.Clean(d.Path) == m.File })
		if hit {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 0:
		return driver.Volume{}, driver.Errorf(driver.NotMine, "no volume of the embedded array answers to %s", diskText(d))
	case 1:
		return found[0].Volume, nil
	}
	return driver.Volume{}, driver.Errorf(driver.Ambiguous, "%s: volumes %q and %q both answer to it", diskText(d), found[0].Name, found[1].Name)
}

func diskText(d driver.Disk) string {
	var parts []string
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, fmt.Sprintf("%s %.120q", name, value))
		}
	}
	if !d.Identity.IsZero() {
		add("identity", d.Identity.String())
	}
	add("NAA", d.NAA)
	add("serial", d.Serial)
	add("IQN", d.IQN)
	add("path", d.Path)
	if len(parts) == 0 {
		return "a disk without any identity"
	}
	return "a disk with " + strings.Join(parts, ", ")
}

// Prepare waits until the volumes can be split: mirrors in sync, those that
// were deleted after a split replaced, broken ones repaired as by RepairVolume. It refuses at once, before it waits for
// anything, where consent is missing or another set has the mirror.
func (a *Array) Prepare(ctx context.Context, refs []driver.VolumeID, o driver.PrepareOptions) error {
	if err := checkTag(o.Tag); err != nil {
		return err
	}
	vols, err := a.findAll(refs)
	if err != nil {
		return err
	}
	for _, v := range vols {
		if err := v.expect(o); err != nil {
			return err
		}
	}
	if o.AllowUnmirrored {
		if err := a.consent(o.Tag, vols); err != nil {
			return err
		}
	}
	for _, v := range vols {
		if err := v.refill(ctx); err != nil {
			return err
		}
	}
	for _, v := range vols {
		if err := a.WaitInSync(ctx, driver.VolumeID(v.id.String())); err != nil {
			return err
		}
		if _, _, err := v.source(a.store.read(), o.Tag); err != nil && !a.hasSplit(o.Tag, v) {
			return err
		}
	}
	return nil
}

// hasSplit reports whether the tag's split of v is done already.
func (a *Array) hasSplit(tag driver.Tag, v *volume) bool {
	return slices.ContainsFunc(a.store.read().Snapshots, func(s snapshotRecord) bool {
		return s.Tag == tag && s.Volume == v.id
	})
}

// expect tells whether the volume can be split once everything is in sync.
func (v *volume) expect(o driver.PrepareOptions) error {
	c := v.a.store.read()
	r := c.volume(v.id)
	if r == nil {
		return driver.Errorf(driver.NotFound, "%s was deleted", v.label)
	}
	if v.a.hasSplit(o.Tag, v) {
		return nil
	}
	policy := r.Policy.orDefault()
	if policy == ByReflink || policy == AutoSnapshot && v.expectClone(c) == nil {
		return v.expectClone(c)
	}
	coming := len(v.missing(c))
	for _, m := range r.Mirrors {
		if m.State != broken || v.a.checkRoom(m.Pool, 0) == nil {
			coming++ // a broken one is filled again or replaced
		}
	}
	switch {
	case coming < 2:
		return v.noMirror(c, o.Tag)
	case coming == 2 && !o.AllowUnmirrored && !c.consents(o.Tag, v.id):
		return v.needsConsent()
	}
	return nil
}

// missing are the pools in which the volume should have a mirror and has none,
// not even one that is split off or broken.
func (v *volume) missing(c *catalog) []string {
	r := c.volume(v.id)
	if r == nil {
		return nil
	}
	want := slices.Clone(r.Want)
	have := func(pool string) {
		if i := slices.Index(want, pool); i >= 0 {
			want = slices.Delete(want, i, i+1)
		}
	}
	for _, m := range r.Mirrors {
		have(m.Pool)
	}
	for _, s := range c.Snapshots {
		if s.Volume == v.id && !s.Clone {
			have(s.Mirror.Pool)
		}
	}
	return want
}

// refill gives the volume the mirrors that it should have, as far as that can be
// done: whether what is there does for a split is seen afterwards.
func (v *volume) refill(ctx context.Context) error {
	c := v.a.store.read()
	lacks := len(v.missing(c)) > 0
	if len(v.brokenMirrors()) == 0 && !lacks {
		return nil
	}
	if err := v.lockAdmin(ctx); err != nil {
		return err
	}
	return v.a.finish(ctx, "replacing mirrors of "+v.label, v.unlockAdmin, func() error {
		if err := v.repairBroken(); err != nil {
			v.a.o.Logger.Warn("broken mirrors stay", "volume", v.name, "error", err)
		}
		return v.addMissing()
	})
}

// consent records that the tag's split may leave the volumes unmirrored.
func (a *Array) consent(tag driver.Tag, vols []*volume) error {
	c := a.store.read()
	if !slices.ContainsFunc(vols, func(v *volume) bool { return !c.consents(tag, v.id) }) {
		return nil
	}
	now := a.o.Now()
	return a.store.update(func(c *catalog) error {
		c.Consents = slices.DeleteFunc(c.Consents, func(r consentRecord) bool { return now.Sub(r.At) > consentLife })
		rec := consentRecord{Tag: tag, At: now.UTC()}
		for _, v := range vols {
			rec.Volumes = append(rec.Volumes, v.id)
		}
		c.Consents = append(c.Consents, rec)
		return nil
	})
}

// Describe says what the array can do: snapshots of its own where one of its
// pools has reflinks.
func (a *Array) Describe(ctx context.Context) (driver.Description, error) {
	return driver.Description{
		Snapshot: a.anyClones(slices.Collect(maps.Keys(a.pools))) == nil,
		Provider: "embedded", MirrorSplit: true, GroupOrdered: true, Resync: true, Rewrite: true, Arm: true,
		Revert: true, Break: true, Changes: true,
	}, nil
}

var _ driver.Describer = (*Array)(nil)
