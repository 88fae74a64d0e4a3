package arrays

import (
	"context"
	"fmt"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Options of an Array.
type Options struct {
	// Tracer gets a span for each call. Default: none.
	Tracer trace.Tracer
	// Without switches options of the provider off, so that a test sees what
	// happens without them.
	Without []Capability
}

// Capability names an option of a provider.
type Capability string

const (
	SplitGroup Capability = "split-group"
	Expose     Capability = "expose"
	OpenDevice Capability = "open"
	Resync     Capability = "resync"
	Describe   Capability = "describe"
)

// Array is a storage array as callers hold it. Its methods may be called at
// once; each but Resolve and Lookup may be repeated with the same outcome.
type Array struct {
	name   string
	d      driver.Driver
	tracer trace.Tracer

	// The options, nil where the provider has none.
	group    driver.GroupSplitter
	exposer  driver.Exposer
	opener   driver.Opener
	resyncer driver.Resyncer
	describe driver.Describer
}

// New makes an Array of a provider. name is the operator's for it.
func New(name string, d driver.Driver, o Options) *Array {
	a := &Array{name: name, d: d, tracer: o.Tracer}
	if a.tracer == nil {
		a.tracer = noop.NewTracerProvider().Tracer("")
	}
	a.group, _ = d.(driver.GroupSplitter)
	a.exposer, _ = d.(driver.Exposer)
	a.opener, _ = d.(driver.Opener)
	a.resyncer, _ = d.(driver.Resyncer)
	a.describe, _ = d.(driver.Describer)
	for _, c := range o.Without {
		switch c {
		case SplitGroup:
			a.group = nil
		case Expose:
			a.exposer = nil
		case OpenDevice:
			a.opener = nil
		case Resync:
			a.resyncer = nil
		case Describe:
			a.describe = nil
		}
	}
	return a
}

// Name is the operator's name for the array.
func (a *Array) Name() string { return a.name }

// CanSplitGroup reports whether several volumes can be split at one instant.
func (a *Array) CanSplitGroup() bool { return a.group != nil }

// CanExpose reports whether snapshots can be made LUNs.
func (a *Array) CanExpose() bool { return a.exposer != nil }

// CanOpen reports whether snapshots can be read without a transport.
func (a *Array) CanOpen() bool { return a.opener != nil }

// CanResync reports whether a split mirror can go back to its volume.
func (a *Array) CanResync() bool { return a.resyncer != nil }

// Resolve answers which volume a disk is. Kind NotMine says that it is none of
// this array's, Ambiguous that it could be several.
func (a *Array) Resolve(ctx context.Context, d driver.Disk) (v driver.Volume, err error) {
	const op = "resolving a disk"
	if d == (driver.Disk{}) {
		return v, a.refuse(op, driver.InvalidRequest, "nothing is known of it")
	}
	err = a.call(ctx, op, false, func(ctx context.Context) error {
		v, err = a.d.Resolve(ctx, d)
		if err == nil && (v.ID == "" || v.Size <= 0) {
			err = fmt.Errorf("the provider answered with a volume %q of %d bytes", v.ID, v.Size)
		}
		return err
	})
	return v, err
}

// Prepare brings the volumes to where a split can follow at once.
func (a *Array) Prepare(ctx context.Context, vs []driver.VolumeID, o driver.PrepareOptions) error {
	op := "preparing " + volumesText(vs)
	if err := a.check(op, o.Tag, vs); err != nil {
		return err
	}
	return a.call(ctx, op, true, func(ctx context.Context) error { return a.d.Prepare(ctx, vs, o) },
		attribute.String("cleave.tag", string(o.Tag)), attribute.Int("cleave.volumes", len(vs)))
}

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

// checkSplit refuses an answer that is not what was asked for. What the array
// did is then unknown.
func checkSplit(tag driver.Tag, vs []driver.VolumeID, ss []driver.Snapshot) error {
	nonsense := func(format string, args ...any) error {
		return driver.Errorf(driver.OutcomeUnknown, "the provider's answer makes no sense: "+format, args...)
	}
	if len(ss) != len(vs) {
		return nonsense("%d snapshots for %d volumes", len(ss), len(vs))
	}
	seen := map[driver.SnapshotID]bool{}
	for i, s := range ss {
		switch {
		case s.ID == "" || seen[s.ID]:
			return nonsense("snapshot ID %q is empty or occurs twice", s.ID)
		case s.Tag != tag:
			return nonsense("snapshot %q has tag %q, want %q", s.ID, s.Tag, tag)
		case s.Size <= 0:
			return nonsense("snapshot %q has %d bytes", s.ID, s.Size)
		case len(vs) > 1 && (s.Group == "" || s.Group != ss[0].Group):
			return nonsense("snapshots %q and %q are not of one group", ss[0].ID, s.ID)
		case s.Volume != vs[i]:
			return nonsense("snapshot %q is of volume %q, want %q", s.ID, s.Volume, vs[i])
		}
		seen[s.ID] = true
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

// Delete ends a snapshot, which must not be exposed or open.
func (a *Array) Delete(ctx context.Context, s driver.SnapshotID) error {
	op := fmt.Sprintf("deleting snapshot %q", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return err
	}
	return a.call(ctx, op, true, func(ctx context.Context) error { return a.d.Delete(ctx, s) })
}

// GiveBack ends a snapshot in the way that costs its volume least: by a resync
// where the provider has it, else by deletion.
func (a *Array) GiveBack(ctx context.Context, s driver.SnapshotID) error {
	if a.resyncer == nil {
		return a.Delete(ctx, s)
	}
	return a.Resync(ctx, s)
}

// Resync puts a split mirror back under its volume.
func (a *Array) Resync(ctx context.Context, s driver.SnapshotID) error {
	op := fmt.Sprintf("resyncing snapshot %q", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return err
	}
	if a.resyncer == nil {
		return a.refuse(op, driver.NotSupported, "it can't put a mirror back; delete the snapshot instead")
	}
	return a.call(ctx, op, true, func(ctx context.Context) error { return a.resyncer.Resync(ctx, s) })
}

// Expose makes a snapshot a LUN for the initiators named, and nobody else.
func (a *Array) Expose(ctx context.Context, s driver.SnapshotID, o driver.ExposeOptions) (p driver.Path, err error) {
	op := fmt.Sprintf("exposing snapshot %q", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return p, err
	}
	if len(o.Initiators) == 0 {
		return p, a.refuse(op, driver.InvalidRequest, "no initiator is named; nobody would see it")
	}
	for _, i := range o.Initiators {
		if strings.TrimSpace(i) == "" {
			return p, a.refuse(op, driver.InvalidRequest, "an initiator's name is empty")
		}
	}
	if a.exposer == nil {
		return p, a.refuse(op, driver.NotSupported, "it can't make snapshots LUNs")
	}
	err = a.call(ctx, op, true, func(ctx context.Context) error {
		p, err = a.exposer.Expose(ctx, s, o)
		if err == nil && (p.IQN == "" || len(p.Portals) == 0 || o.Writable && !p.Writable) {
			err = driver.Errorf(driver.OutcomeUnknown, "the provider's answer makes no sense: target %q at %d portals, writable: %v", p.IQN, len(p.Portals), p.Writable)
		}
		return err
	}, attribute.Bool("cleave.writable", o.Writable))
	return p, err
}

// Unexpose takes a snapshot's LUN away. Where nothing can be exposed, there is
// nothing to do.
func (a *Array) Unexpose(ctx context.Context, s driver.SnapshotID) error {
	op := fmt.Sprintf("unexposing snapshot %q", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return err
	}
	if a.exposer == nil {
		return nil
	}
	return a.call(ctx, op, true, func(ctx context.Context) error { return a.exposer.Unexpose(ctx, s) })
}

// Open opens a snapshot for reading without a transport. The caller closes the
// device if it is an io.Closer.
func (a *Array) Open(ctx context.Context, s driver.SnapshotID) (d lun.Device, err error) {
	op := fmt.Sprintf("opening snapshot %q", s)
	if err := a.checkSnapshot(op, s); err != nil {
		return nil, err
	}
	if a.opener == nil {
		return nil, a.refuse(op, driver.NotSupported, "its snapshots can be read as LUNs only")
	}
	err = a.call(ctx, op, false, func(ctx context.Context) error {
		d, err = a.opener.Open(ctx, s)
		return err
	})
	return d, err
}

// Describe tells what the array can do. Of a provider that does not say, it
// claims what its interfaces show.
func (a *Array) Describe(ctx context.Context) (d driver.Description, err error) {
	if a.describe == nil {
		return driver.Description{Provider: a.name, GroupOrdered: a.group != nil, Resync: a.resyncer != nil}, nil
	}
	err = a.call(ctx, "describing it", false, func(ctx context.Context) error {
		d, err = a.describe.Describe(ctx)
		return err
	})
	d.GroupOrdered = d.GroupOrdered && a.group != nil
	d.Resync = d.Resync && a.resyncer != nil
	return d, err
}

// call traces a call of the provider and wraps its error.
func (a *Array) call(ctx context.Context, op string, changes bool, fn func(context.Context) error, attrs ...attribute.KeyValue) error {
	verb, _, _ := strings.Cut(op, " ")
	ctx, span := a.tracer.Start(ctx, "array: "+verb, trace.WithAttributes(
		append(attrs, attribute.String("cleave.array", a.name))...))
	defer span.End()
	err := a.wrap(ctx, op, changes, fn(ctx))
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, KindOf(err).String())
	}
	return err
}

func volumesText(vs []driver.VolumeID) string {
	if len(vs) == 1 {
		return fmt.Sprintf("volume %q", vs[0])
	}
	return fmt.Sprintf("%d volumes", len(vs))
}

func (a *Array) check(op string, tag driver.Tag, vs []driver.VolumeID) error {
	if err := a.checkTag(op, tag); err != nil {
		return err
	}
	if len(vs) == 0 {
		return a.refuse(op, driver.InvalidRequest, "no volumes are named")
	}
	seen := map[driver.VolumeID]bool{}
	for _, v := range vs {
		if v == "" || seen[v] {
			return a.refuse(op, driver.InvalidRequest, "volume %q is empty or named twice", v)
		}
		seen[v] = true
	}
	return nil
}

func (a *Array) checkTag(op string, tag driver.Tag) error {
	if tag == "" || len(tag) > 63 || strings.Trim(string(tag), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return a.refuse(op, driver.InvalidRequest, "tag %.80q: want 1 to 63 of [a-z0-9-]", tag)
	}
	return nil
}

func (a *Array) checkSnapshot(op string, s driver.SnapshotID) error {
	if s == "" {
		return a.refuse(op, driver.InvalidRequest, "no snapshot is named")
	}
	return nil
}
