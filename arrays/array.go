package arrays

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/cleave-san/cleave/arrays/driver"
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
	Arm        Capability = "arm"
	Expose     Capability = "expose"
	OpenDevice Capability = "open"
	Rewrite    Capability = "rewrite"
	Resync     Capability = "resync"
	Revert     Capability = "revert"
	Break      Capability = "break"
	Changes    Capability = "changes"
	Describe   Capability = "describe"
	Check      Capability = "check"
	Presented  Capability = "presented-to"
)

// Capabilities are all of them.
func Capabilities() []Capability {
	return []Capability{SplitGroup, Arm, Expose, OpenDevice, Rewrite, Resync, Revert, Break, Changes, Describe, Check, Presented}
}

// Array is a storage array as callers hold it. Its methods may be called at
// once; each but Resolve and Lookup may be repeated with the same outcome.
type Array struct {
	name   string
	d      driver.Driver
	tracer trace.Tracer

	// The options, nil where the provider has none.
	group    driver.GroupSplitter
	armer    driver.Armer
	exposer  driver.Exposer
	opener   driver.Opener
	rewriter driver.Rewriter
	resyncer driver.Resyncer
	reverter driver.Reverter
	breaker  driver.Breaker
	changes  driver.ChangeTracker
	describe driver.Describer
	checker  driver.Checker
	presents driver.Presenter
}

// New makes an Array of a provider. name is the operator's for it.
func New(name string, d driver.Driver, o Options) *Array {
	a := &Array{name: name, d: d, tracer: o.Tracer}
	if a.tracer == nil {
		a.tracer = noop.NewTracerProvider().Tracer("")
	}
	a.group, _ = d.(driver.GroupSplitter)
	a.armer, _ = d.(driver.Armer)
	a.exposer, _ = d.(driver.Exposer)
	a.opener, _ = d.(driver.Opener)
	a.rewriter, _ = d.(driver.Rewriter)
	a.resyncer, _ = d.(driver.Resyncer)
	a.reverter, _ = d.(driver.Reverter)
	a.breaker, _ = d.(driver.Breaker)
	a.changes, _ = d.(driver.ChangeTracker)
	a.describe, _ = d.(driver.Describer)
	a.checker, _ = d.(driver.Checker)
	a.presents, _ = d.(driver.Presenter)
	for _, c := range o.Without {
		switch c {
		case SplitGroup:
			a.group = nil
		case Arm:
			a.armer = nil
		case Expose:
			a.exposer = nil
		case OpenDevice:
			a.opener = nil
		case Rewrite:
			a.rewriter = nil
		case Resync:
			a.resyncer = nil
		case Revert:
			a.reverter = nil
		case Break:
			a.breaker = nil
		case Changes:
			a.changes = nil
		case Describe:
			a.describe = nil
		case Check:
			a.checker = nil
		case Presented:
			a.presents = nil
		}
	}
	return a
}

// Name is the operator's name for the array.
func (a *Array) Name() string { return a.name }

// CanSplitGroup reports whether several volumes can be split at one instant.
func (a *Array) CanSplitGroup() bool { return a.group != nil }

// CanArm reports whether a split can be made ready first and committed later.
func (a *Array) CanArm() bool { return a.armer != nil }

// CanExpose reports whether snapshots can be made LUNs.
func (a *Array) CanExpose() bool { return a.exposer != nil }

// CanOpen reports whether snapshots can be read without a transport.
func (a *Array) CanOpen() bool { return a.opener != nil }

// CanRewrite reports whether snapshots can be recovered in place.
func (a *Array) CanRewrite() bool { return a.rewriter != nil }

// CanResync reports whether a split mirror can go back to its volume.
func (a *Array) CanResync() bool { return a.resyncer != nil }

// CanRevert reports whether a volume can be put back to a snapshot.
func (a *Array) CanRevert() bool { return a.reverter != nil }

// CanBreak reports whether a snapshot can become an ordinary volume.
func (a *Array) CanBreak() bool { return a.breaker != nil }

// CanTrackChanges reports whether the array knows what changed between two
// points of a volume.
func (a *Array) CanTrackChanges() bool { return a.changes != nil }

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

// Describe tells what the array can do. Of a provider that does not say, it
// claims what its interfaces show.
func (a *Array) Describe(ctx context.Context) (d driver.Description, err error) {
	if a.describe == nil {
		return driver.Description{
			Provider: a.name, GroupOrdered: a.group != nil, Resync: a.resyncer != nil, Rewrite: a.rewriter != nil, Arm: a.armer != nil,
			Revert: a.reverter != nil, Break: a.breaker != nil, Changes: a.changes != nil,
		}, nil
	}
	err = a.call(ctx, "describing it", false, func(ctx context.Context) error {
		d, err = a.describe.Describe(ctx)
		return err
	})
	d.GroupOrdered = d.GroupOrdered && a.group != nil
	d.Resync = d.Resync && a.resyncer != nil
	d.Rewrite = d.Rewrite && a.rewriter != nil
	d.Arm = d.Arm && a.armer != nil
	d.Revert = d.Revert && a.reverter != nil
	d.Break = d.Break && a.breaker != nil
	d.Changes = d.Changes && a.changes != nil
	return d, err
}
