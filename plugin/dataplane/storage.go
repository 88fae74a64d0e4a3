package dataplane

import (
	"context"
	"slices"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/iscsi"
)

func (p *plane) volume(v embedded.VolumeInfo) remote.Volume {
	out := remote.Volume{
		Volume: v.Volume, Created: v.Created, Wanted: v.Wanted, Snapshots: v.Snapshots,
		UnmirroredSince: v.UnmirroredSince, Remaining: v.Remaining, Recovering: v.Recovering, UsedBy: v.UsedBy,
		Policy: string(v.Policy),
		LUN:    p.exposed(kindVolume, string(v.ID)),
	}
	if v.Scrub != nil {
		s := scrubReport(*v.Scrub)
		out.Scrub = &s
	}
	for _, m := range v.Replicas {
		out.Replicas = append(out.Replicas, remote.Mirror(m))
	}
	return out
}

func (p *plane) volumes() []remote.Volume {
	out := []remote.Volume{}
	for _, v := range p.array.Volumes() {
		out = append(out, p.volume(v))
	}
	return out
}

func (p *plane) snapshots() []remote.Snapshot {
	out := []remote.Snapshot{}
	for _, s := range p.array.Snapshots() {
		out = append(out, remote.Snapshot{
			Snapshot: s.Snapshot, VolumeName: s.VolumeName, Pool: s.Pool, File: s.File, Reason: s.Reason,
			UsedBy: s.UsedBy, ResyncBytes: s.ResyncBytes, ResyncTime: s.ResyncTime, UnmirroredSince: s.UnmirroredSince, LUN: p.exposed(kindSnapshot, string(s.ID)),
		})
	}
	return out
}

func (p *plane) exposeVolume(ref driver.VolumeID, r remote.ExposeVolumeRequest) (driver.Path, error) {
	who, err := names(r.Initiators)
	if err != nil {
		return driver.Path{}, err
	}
	v, err := p.array.VolumeInfo(ref)
	if err != nil {
		return driver.Path{}, err
	}
	return p.expose(lunRecord{
		Kind: kindVolume, Of: string(v.ID), Identity: v.Identity, Size: v.Size, Initiators: who, Writable: !r.ReadOnly,
	})
}

func (p *plane) unexposeVolume(ctx context.Context, ref driver.VolumeID) error {
	v, err := p.array.VolumeInfo(ref)
	if err != nil {
		if p.array.Kind(err) == driver.NotFound {
			// It may be gone and its LUN still there, by its ID.
			return p.unexpose(ctx, kindVolume, string(ref))
		}
		return err
	}
	return p.unexpose(ctx, kindVolume, string(v.ID))
}

func (p *plane) resize(ctx context.Context, ref driver.VolumeID, size int64) (remote.Volume, error) {
	v, err := p.array.GrowVolume(ctx, ref, size)
	if err != nil {
		return remote.Volume{}, err
	}
	p.mu.Lock()
	next := p.rec.clone()
	if l := next.find(kindVolume, string(v.ID)); l != nil {
		l.Size = v.Size
		if err = next.save(p.recordPath()); err == nil {
			p.rec = next
			err = p.target.Resized(p.c.IQN, l.Number)
		}
	}
	p.mu.Unlock()
	return p.volume(v), err
}

func (p *plane) repair(ctx context.Context, ref driver.VolumeID) (remote.Volume, error) {
	if err := p.array.RepairVolume(ctx, ref); err != nil {
		return remote.Volume{}, err
	}
	v, err := p.array.VolumeInfo(ref)
	if err != nil {
		return remote.Volume{}, err
	}
	return p.volume(v), nil
}

func (p *plane) exposeSnapshot(id driver.SnapshotID, o driver.ExposeOptions) (driver.Path, error) {
	who, err := names(o.Initiators)
	if err != nil {
		return driver.Path{}, err
	}
	for _, s := range p.array.Snapshots() {
		if s.ID == id {
			return p.expose(lunRecord{
				Kind: kindSnapshot, Of: string(id), Identity: s.Identity, Size: s.Size, Initiators: who, Writable: o.Writable,
			})
		}
	}
	return driver.Path{}, driver.Errorf(driver.NotFound, "no snapshot %.80q", id)
}

func (p *plane) split(ctx context.Context, r remote.SplitRequest) ([]driver.Snapshot, error) {
	if len(r.Volumes) == 0 || !r.Group && len(r.Volumes) != 1 {
		return nil, driver.Errorf(driver.InvalidRequest, "split of %d volumes: want one, or a group", len(r.Volumes))
	}
	if err := p.delay(ctx, r.Tag); err != nil {
		return nil, err
	}
	if r.Group {
		return p.array.SplitGroup(ctx, r.Tag, r.Volumes)
	}
	s, err := p.array.Split(ctx, r.Tag, r.Volumes[0])
	if err != nil {
		return nil, err
	}
	return []driver.Snapshot{s}, nil
}

func (p *plane) commit(ctx context.Context, tag driver.Tag) ([]driver.Snapshot, error) {
	if err := p.delay(ctx, tag); err != nil {
		return nil, err
	}
	return p.array.Commit(ctx, tag)
}

// delay makes the array as slow as the configuration wants it.
func (p *plane) delay(ctx context.Context, tag driver.Tag) error {
	if p.c.SplitDelay <= 0 {
		return nil
	}
	t := time.NewTimer(p.c.SplitDelay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return driver.Errorf(driver.Unreachable, "split under tag %q: not begun: %w", tag, ctx.Err())
	}
}

// resolve finds a disk's volume: by IQN, LUN and portal where it has them, by
// what the array knows otherwise. Where both answer, they have to agree.
func (p *plane) resolve(ctx context.Context, d driver.Disk) (driver.Volume, error) {
	if d.IQN == "" {
		return p.array.Resolve(ctx, d)
	}
	name, err := iscsi.ParseName(d.IQN)
	if err != nil || name != p.c.IQN {
		return driver.Volume{}, driver.Errorf(driver.NotMine, "disk is on target %.120q, ours is %s", d.IQN, p.c.IQN)
	}
	if d.Portal != "" && !p.ourPortal(d.Portal) {
		return driver.Volume{}, driver.Errorf(driver.NotMine, "disk is on portal %.120q, ours are %v", d.Portal, p.portalNames())
	}
	p.mu.Lock()
	var of *lunRecord
	for i := range p.rec.LUNs {
		if l := p.rec.LUNs[i]; uint64(l.Number) == d.LUN {
			of = &l
		}
	}
	p.mu.Unlock()
	switch {
	case of == nil:
		return driver.Volume{}, driver.Errorf(driver.NotMine, "no LUN %d on target %s", d.LUN, p.c.IQN)
	case of.Kind != kindVolume:
		return driver.Volume{}, driver.Errorf(driver.NotMine, "LUN %d of target %s is a %s, not a volume", d.LUN, p.c.IQN, of.Kind)
	}
	v, err := p.array.VolumeInfo(driver.VolumeID(of.Of))
	if err != nil {
		return driver.Volume{}, err
	}
	rest := d
	rest.IQN, rest.LUN, rest.Portal = "", 0, ""
	if rest != (driver.Disk{}) {
		other, err := p.array.Resolve(ctx, rest)
		if err != nil && p.array.Kind(err) != driver.NotMine {
			return driver.Volume{}, err
		}
		if err != nil || other.ID != v.ID {
			return driver.Volume{}, driver.Errorf(driver.Ambiguous, "LUN %d is volume %q, but the disk's other identities are not that volume's", d.LUN, v.Name)
		}
	}
	return v.Volume, nil
}

// ourPortal reports whether an address is one that we serve or are reached by.
func (p *plane) ourPortal(s string) bool {
	a, err := iscsi.ParsePortal(s)
	if err != nil {
		return false
	}
	return slices.Contains(p.c.Advertise, a) || slices.ContainsFunc(p.portals, func(o Portal) bool {
		return o.Addr == a || o.Addr.Addr().IsUnspecified() && o.Addr.Port() == a.Port()
	})
}
