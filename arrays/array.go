package arrays

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Array is one storage array. Its methods may be called at once; what they
// promise is what the driver's interfaces promise. Errors name the array and
// what was attempted; KindOf classifies them.
type Array struct {
	name   string
	d      driver.Driver
	tracer trace.Tracer
}

// Option changes how an Array is made.
type Option func(*Array)

// WithTracer has calls traced.
func WithTracer(t trace.Tracer) Option { return func(a *Array) { a.tracer = t } }

// New wraps a driver. The name is the operator's, from the configuration.
func New(name string, d driver.Driver, opts ...Option) *Array {
	a := &Array{name: name, d: d, tracer: noop.NewTracerProvider().Tracer("")}
	for _, o := range opts {
		o(a)
	}
	return a
}

// Name returns the array's name.
func (a *Array) Name() string { return a.name }

// Error is an error of an array, with its kind.
type Error struct {
	Array string
	Doing string // "splitting volumes [v1 v2] as t"
	Kind  driver.Kind
	Err   error
}

func (e *Error) Error() string { return fmt.Sprintf("array %q: %s: %v", e.Array, e.Doing, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of an error that came through an Array or a driver's
// *driver.Error. That of nil, and of any other error, is driver.Unknown.
func KindOf(err error) driver.Kind {
	if e, ok := asType[*Error](err); ok {
		return e.Kind
	}
	if e, ok := asType[*driver.Error](err); ok {
		return e.Kind
	}
	return driver.Unknown
}

// call traces f and wraps its error.
func (a *Array) call(ctx context.Context, op, doing string, f func(context.Context) error) error {
	ctx, span := a.tracer.Start(ctx, "array."+op, trace.WithAttributes(attribute.String("cleave.array", a.name)))
	defer span.End()
	err := f(ctx)
	if err == nil {
		return nil
	}
	e := &Error{Array: a.name, Doing: doing, Kind: KindOf(err), Err: err}
	if e.Kind == driver.Unknown {
		e.Kind = a.d.Kind(err)
	}
	span.SetStatus(codes.Error, e.Error())
	return e
}

var tagForm = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)

func checkTag(t driver.Tag) error {
	if !tagForm.MatchString(string(t)) {
		return driver.Errorf(driver.InvalidRequest, "tag %.80q: want 1 to 63 of a-z, 0-9 and -", t)
	}
	return nil
}

func checkVolumes(vs []driver.VolumeID) error {
	if len(vs) == 0 {
		return driver.Errorf(driver.InvalidRequest, "no volume is named")
	}
	seen := make(map[driver.VolumeID]bool, len(vs))
	for _, v := range vs {
		if v == "" || seen[v] {
			return driver.Errorf(driver.InvalidRequest, "volume %q is empty or named twice", v)
		}
		seen[v] = true
	}
	return nil
}

func missing(what string) error {
	return driver.Errorf(driver.NotSupported, "its provider can't %s", what)
}

// Resolve tells which volume a hypervisor's disk is.
func (a *Array) Resolve(ctx context.Context, d driver.Disk) (v driver.Volume, err error) {
	err = a.call(ctx, "resolve", "resolving a disk", func(ctx context.Context) error {
		if d == (driver.Disk{}) {
			return driver.Errorf(driver.InvalidRequest, "nothing is known of the disk")
		}
		v, err = a.d.Resolve(ctx, d)
		return err
	})
	return v, err
}

// Prepare brings volumes to where a split can follow at once.
func (a *Array) Prepare(ctx context.Context, vs []driver.VolumeID, o driver.PrepareOptions) error {
	return a.call(ctx, "prepare", fmt.Sprintf("preparing volumes %v", vs), func(ctx context.Context) error {
		if err := errors.Join(checkVolumes(vs), checkTag(o.Tag)); err != nil {
			return err
		}
		return a.d.Prepare(ctx, vs, o)
	})
}

// CanSplitGroup reports whether several volumes can be split at one instant.
func (a *Array) CanSplitGroup() bool { _, ok := a.d.(driver.GroupSplitter); return ok }

// SplitGroup splits volumes at one instant. One volume needs no group; several
// on an array that has none are refused, never split one after the other.
func (a *Array) SplitGroup(ctx context.Context, tag driver.Tag, vs []driver.VolumeID) (out []driver.Snapshot, err error) {
	err = a.call(ctx, "split", fmt.Sprintf("splitting volumes %v as %s", vs, tag), func(ctx context.Context) error {
		if err := errors.Join(checkTag(tag), checkVolumes(vs)); err != nil {
			return err
		}
		if g, ok := a.d.(driver.GroupSplitter); ok {
			out, err = g.SplitGroup(ctx, tag, vs)
			return err
		}
		if len(vs) > 1 {
			return missing("split several volumes at one instant")
		}
		s, err := a.d.Split(ctx, tag, vs[0])
		if err == nil {
			out = []driver.Snapshot{s}
		}
		return err
	})
	return out, err
}

// Lookup returns every snapshot under the tag.
func (a *Array) Lookup(ctx context.Context, tag driver.Tag) (out []driver.Snapshot, err error) {
	err = a.call(ctx, "lookup", fmt.Sprintf("looking up %s", tag), func(ctx context.Context) error {
		if err := checkTag(tag); err != nil {
			return err
		}
		out, err = a.d.Lookup(ctx, tag)
		return err
	})
	return out, err
}

// Delete ends a snapshot.
func (a *Array) Delete(ctx context.Context, s driver.SnapshotID) error {
	return a.call(ctx, "delete", fmt.Sprintf("deleting snapshot %q", s), func(ctx context.Context) error {
		return a.d.Delete(ctx, s)
	})
}

// CanResync reports whether a split mirror can be put back under its volume.
func (a *Array) CanResync() bool { _, ok := a.d.(driver.Resyncer); return ok }

// Resync puts a split mirror back under its volume.
func (a *Array) Resync(ctx context.Context, s driver.SnapshotID) error {
	return a.call(ctx, "resync", fmt.Sprintf("resynchronising snapshot %q", s), func(ctx context.Context) error {
		r, ok := a.d.(driver.Resyncer)
		if !ok {
			return missing("resynchronise a split mirror")
		}
		return r.Resync(ctx, s)
	})
}

// CanExpose reports whether snapshots can be made visible as LUNs.
func (a *Array) CanExpose() bool { _, ok := a.d.(driver.Exposer); return ok }

// Expose makes a snapshot visible to the initiators named, and to nobody else.
func (a *Array) Expose(ctx context.Context, s driver.SnapshotID, o driver.ExposeOptions) (p driver.Path, err error) {
	err = a.call(ctx, "expose", fmt.Sprintf("exposing snapshot %q", s), func(ctx context.Context) error {
		x, ok := a.d.(driver.Exposer)
		switch {
		case !ok:
			return missing("expose snapshots")
		case len(o.Initiators) == 0:
			return driver.Errorf(driver.InvalidRequest, "no initiator is named")
		}
		p, err = x.Expose(ctx, s, o)
		return err
	})
	return p, err
}

// Unexpose takes a snapshot's LUN away. An array that can't expose has none.
func (a *Array) Unexpose(ctx context.Context, s driver.SnapshotID) error {
	return a.call(ctx, "unexpose", fmt.Sprintf("taking away the LUN of snapshot %q", s), func(ctx context.Context) error {
		x, ok := a.d.(driver.Exposer)
		if !ok {
			return nil
		}
		return x.Unexpose(ctx, s)
	})
}

// CanOpen reports whether snapshots can be read without a transport.
func (a *Array) CanOpen() bool { _, ok := a.d.(driver.Opener); return ok }

// Open opens a snapshot for reading. The caller closes what is an io.Closer.
func (a *Array) Open(ctx context.Context, s driver.SnapshotID) (d lun.Device, err error) {
	err = a.call(ctx, "open", fmt.Sprintf("opening snapshot %q", s), func(ctx context.Context) error {
		o, ok := a.d.(driver.Opener)
		if !ok {
			return missing("open snapshots on this host")
		}
		d, err = o.Open(ctx, s)
		return err
	})
	return d, err
}

// Describe tells what the array can do. For a driver that does not say, only
// what its interfaces show is claimed.
func (a *Array) Describe(ctx context.Context) (out driver.Description, err error) {
	err = a.call(ctx, "describe", "describing itself", func(ctx context.Context) error {
		d, ok := a.d.(driver.Describer)
		if !ok {
			out = driver.Description{Provider: a.name, Resync: a.CanResync()}
			return nil
		}
		out, err = d.Describe(ctx)
		return err
	})
	return out, err
}

// Close closes the driver, if it holds anything.
func (a *Array) Close() error {
	if c, ok := a.d.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func asType[E error](err error) (E, bool) {
	var e E
	ok := errors.As(err, &e)
	return e, ok
}
