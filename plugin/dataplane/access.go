package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/target"
)

// access is what an initiator may do with a LUN.
type access string

const (
	readWrite access = remote.ReadWrite
	readOnly  access = remote.ReadOnly
	noAccess  access = remote.NoAccess
)

// access is what who may do.
func (l *lunRecord) access(who iscsi.Name) access {
	switch {
	case !slices.Contains(l.Initiators, who):
		return noAccess
	case !l.Writable || slices.Contains(l.ReadOnly, who):
		return readOnly
	}
	return readWrite
}

// grant changes what who may do, and nothing for others.
func (l *lunRecord) grant(who iscsi.Name, a access) {
	is := func(n iscsi.Name) bool { return n == who }
	if !l.Writable {
		l.ReadOnly = slices.Clone(l.Initiators)
	}
	l.ReadOnly = slices.DeleteFunc(l.ReadOnly, is)
	if a == noAccess {
		l.Initiators = slices.DeleteFunc(l.Initiators, is)
	} else if !slices.ContainsFunc(l.Initiators, is) {
		l.Initiators = append(l.Initiators, who)
	}
	if a == readOnly {
		l.ReadOnly = append(l.ReadOnly, who)
	}
	l.Writable = len(l.ReadOnly) < len(l.Initiators)
	if !l.Writable {
		l.ReadOnly = nil
	}
}

// setMask does what a request says.
func (p *plane) setMask(ctx context.Context, r remote.MaskRequest) error {
	who, err := names([]string{r.Initiator})
	if err != nil {
		return err
	}
	a := access(r.Access)
	switch a {
	case readWrite, readOnly, noAccess:
	default:
		return driver.Errorf(driver.InvalidRequest, "access %.40q: want rw, ro or none", r.Access)
	}
	want, err := p.exposable(r.Of)
	if err != nil {
		return err
	}
	want.Initiators, want.Writable = who, a == readWrite
	p.mu.Lock()
	defer p.mu.Unlock()
	next := p.rec.clone()
	l := next.find(want.Kind, want.Of)
	switch {
	case l == nil && a == noAccess:
		return nil
	case l == nil || a == readWrite:
		_, err := p.add(want)
		return err
	case a == noAccess && len(l.Initiators) == 1 && l.Initiators[0] == who[0]:
		return p.remove(ctx, l.Kind, l.Of)
	}
	return p.narrow(next, l, who[0], a)
}

// narrow takes a right away, or adds an initiator that may only read.
func (p *plane) narrow(next *record, l *lunRecord, who iscsi.Name, a access) error {
	l.grant(who, a)
	if err := next.save(p.recordPath()); err != nil {
		return err
	}
	p.rec = next
	if err := p.mask(next, []iscsi.Name{who}); err != nil {
		return err
	}
	if !l.Writable {
		if err := p.target.SetWritable(p.c.IQN, l.Number, false); err != nil && !errors.Is(err, target.ErrNoLUN) {
			return fmt.Errorf("LUN %d: %w", l.Number, err)
		}
	}
	p.log.Info("mask changed", "lun", l.Number, "kind", l.Kind, "of", l.Of, "initiator", who, "access", a)
	return nil
}

// exposable is the LUN, but for its number and who sees it, of a volume by name
// or ID, or of a snapshot by ID.
func (p *plane) exposable(of string) (lunRecord, error) {
	v, err := p.array.VolumeInfo(driver.VolumeID(of))
	if err == nil {
		return lunRecord{Kind: kindVolume, Of: string(v.ID), Identity: v.Identity, Size: v.Size}, nil
	}
	if p.array.Kind(err) != driver.NotFound {
		return lunRecord{}, err
	}
	for _, s := range p.array.Snapshots() {
		if string(s.ID) == of {
			return lunRecord{Kind: kindSnapshot, Of: of, Identity: s.Identity, Size: s.Size}, nil
		}
	}
	return lunRecord{}, driver.Errorf(driver.NotFound, "no volume and no snapshot %.80q", of)
}

// masks lists who sees which LUN.
func (p *plane) masks() []remote.Mask {
	of := map[string]string{}
	for _, v := range p.array.Volumes() {
		of[string(v.ID)] = v.Name
	}
	for _, s := range p.array.Snapshots() {
		of[string(s.ID)] = s.VolumeName
	}
	sessions := p.target.Sessions()
	p.mu.Lock()
	defer p.mu.Unlock()
	out := []remote.Mask{}
	for _, l := range p.rec.LUNs {
		for _, who := range l.Initiators {
			m := remote.Mask{
				Initiator: string(who), LUN: uint64(l.Number), Access: string(l.access(who)),
				Kind: string(l.Kind), Of: l.Of, Volume: of[l.Of], Identity: l.Identity,
			}
			for _, s := range sessions {
				sees := s.Initiator == who || string(who) == anyone && !slices.Contains(l.Initiators, s.Initiator)
				if s.Target == p.c.IQN && sees {
					m.Sessions++
				}
			}
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(x, y remote.Mask) int {
		return cmp.Or(cmp.Compare(x.Initiator, y.Initiator), cmp.Compare(x.LUN, y.LUN))
	})
	return out
}
