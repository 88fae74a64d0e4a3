package arrays

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/cleave-san/cleave/arrays/driver"
)

// Split splits the volumes at one instant and returns their snapshots in the
// same order. Several volumes need a provider that splits groups: kind
// NotSupported. After kind OutcomeUnknown the caller asks Lookup before
// anything else.
func (a *Array) Split(ctx context.Context, tag driver.Tag, vs []driver.VolumeID) (ss []driver.Snapshot, err error) {
	op := "splitting " + volumesText(vs)
	if err := a.check(op, tag, vs); err != nil {
		return nil, err
	}
	if len(vs) > 1 && a.group == nil {
		return nil, a.refuse(op, driver.NotSupported, "it can't split several volumes at one instant, and one after the other would tear the write order")
	}
	err = a.call(ctx, op, true, func(ctx context.Context) error {
		if a.group != nil {
			ss, err = a.group.SplitGroup(ctx, tag, vs)
		} else {
			var s driver.Snapshot
			s, err = a.d.Split(ctx, tag, vs[0])
			ss = []driver.Snapshot{s}
		}
		if err == nil {
			err = checkSplit(tag, vs, ss)
		}
		return err
	}, attribute.String("cleave.tag", string(tag)), attribute.Int("cleave.volumes", len(vs)))
	if err != nil {
		return nil, err
	}
	return ss, nil
}

// Arm makes a split of the volumes ready, so that Commit has only the instant
// left to do. The array aborts it by itself once abortAfter has passed, also
// after a crash of either side; Arm again extends that.
func (a *Array) Arm(ctx context.Context, tag driver.Tag, vs []driver.VolumeID, abortAfter time.Duration) error {
	op := "arming " + volumesText(vs)
	if err := a.check(op, tag, vs); err != nil {
		return err
	}
	if abortAfter <= 0 {
		return a.refuse(op, driver.InvalidRequest, "time-out %v: want more than none", abortAfter)
	}
	if a.armer == nil {
		return a.refuse(op, driver.NotSupported, "it can't make a split ready beforehand; split without")
	}
	return a.call(ctx, op, true, func(ctx context.Context) error { return a.armer.Arm(ctx, tag, vs, abortAfter) },
		attribute.String("cleave.tag", string(tag)), attribute.Int("cleave.volumes", len(vs)))
}

// Commit splits what was armed under the tag, at one instant, and returns the
// snapshots in the order in which the volumes were armed. Kind NotArmed says
// that nothing was split. After kind OutcomeUnknown the caller asks Lookup
// before anything else.
func (a *Array) Commit(ctx context.Context, tag driver.Tag) (ss []driver.Snapshot, err error) {
	op := fmt.Sprintf("committing the split armed under tag %q", tag)
	if err := a.checkTag(op, tag); err != nil {
		return nil, err
	}
	if a.armer == nil {
		return nil, a.refuse(op, driver.NotArmed, "it arms nothing")
	}
	err = a.call(ctx, op, true, func(ctx context.Context) error {
		if ss, err = a.armer.Commit(ctx, tag); err == nil {
			err = checkSnapshots(tag, ss)
		}
		return err
	}, attribute.String("cleave.tag", string(tag)))
	if err != nil {
		return nil, err
	}
	return ss, nil
}

// Abort takes an arming back. Where nothing can be armed, there is nothing to
// do.
func (a *Array) Abort(ctx context.Context, tag driver.Tag) error {
	op := fmt.Sprintf("aborting the split armed under tag %q", tag)
	if err := a.checkTag(op, tag); err != nil {
		return err
	}
	if a.armer == nil {
		return nil
	}
	return a.call(ctx, op, true, func(ctx context.Context) error { return a.armer.Abort(ctx, tag) },
		attribute.String("cleave.tag", string(tag)))
}

// checkSplit refuses an answer that is not what was asked for. What the array
// did is then unknown.
func checkSplit(tag driver.Tag, vs []driver.VolumeID, ss []driver.Snapshot) error {
	if len(ss) != len(vs) {
		return nonsense("%d snapshots for %d volumes", len(ss), len(vs))
	}
	for i, s := range ss {
		if s.Volume != vs[i] {
			return nonsense("snapshot %q is of volume %q, want %q", s.ID, s.Volume, vs[i])
		}
	}
	return checkSnapshots(tag, ss)
}

// checkSnapshots refuses what can't be the snapshots of one split.
func checkSnapshots(tag driver.Tag, ss []driver.Snapshot) error {
	if len(ss) == 0 {
		return nonsense("a split without snapshots")
	}
	ids, vols := map[driver.SnapshotID]bool{}, map[driver.VolumeID]bool{}
	for _, s := range ss {
		switch {
		case s.ID == "" || ids[s.ID]:
			return nonsense("snapshot ID %q is empty or occurs twice", s.ID)
		case s.Volume == "" || vols[s.Volume]:
			return nonsense("volume ID %q is empty or occurs twice", s.Volume)
		case s.Tag != tag:
			return nonsense("snapshot %q has tag %q, want %q", s.ID, s.Tag, tag)
		case s.Size <= 0:
			return nonsense("snapshot %q has %d bytes", s.ID, s.Size)
		case len(ss) > 1 && (s.Group == "" || s.Group != ss[0].Group):
			return nonsense("snapshots %q and %q are not of one group", ss[0].ID, s.ID)
		}
		ids[s.ID], vols[s.Volume] = true, true
	}
	return nil
}

// Lookup returns every snapshot that carries the tag.
func (a *Array) Lookup(ctx context.Context, tag driver.Tag) (ss []driver.Snapshot, err error) {
	op := fmt.Sprintf("looking up tag %q", tag)
	if err := a.checkTag(op, tag); err != nil {
		return nil, err
	}
	err = a.call(ctx, op, false, func(ctx context.Context) error {
		ss, err = a.d.Lookup(ctx, tag)
		for _, s := range ss {
			if err == nil && s.Tag != tag {
				err = fmt.Errorf("the provider answered with snapshot %q of tag %q", s.ID, s.Tag)
			}
		}
		return err
	})
	return ss, err
}
