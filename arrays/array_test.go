package arrays_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

// fake is a provider of functions; those that are nil must not be called.
type fake struct {
	split  func(context.Context, driver.Tag, driver.VolumeID) (driver.Snapshot, error)
	delete func(context.Context, driver.SnapshotID) error
}

func (f *fake) Resolve(context.Context, driver.Disk) (driver.Volume, error) {
	return driver.Volume{}, driver.Errorf(driver.NotMine, "not here")
}

func (f *fake) Prepare(context.Context, []driver.VolumeID, driver.PrepareOptions) error { return nil }

func (f *fake) Split(ctx context.Context, tag driver.Tag, v driver.VolumeID) (driver.Snapshot, error) {
	return f.split(ctx, tag, v)
}

func (f *fake) Lookup(context.Context, driver.Tag) ([]driver.Snapshot, error) {
	return []driver.Snapshot{{ID: "s", Tag: "another"}}, nil
}

func (f *fake) Delete(ctx context.Context, s driver.SnapshotID) error { return f.delete(ctx, s) }

func (f *fake) Kind(err error) driver.Kind {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return driver.Unknown
}

// grouper is a fake that splits groups, into whatever it is told to answer.
type grouper struct {
	fake
	answer []driver.Snapshot
}

func (g *grouper) SplitGroup(context.Context, driver.Tag, []driver.VolumeID) ([]driver.Snapshot, error) {
	return g.answer, nil
}

func wantKind(t *testing.T, what string, err error, k driver.Kind) {
	t.Helper()
	if err == nil || arrays.KindOf(err) != k {
		t.Errorf("%s: error %v is of kind %v, want %v", what, err, arrays.KindOf(err), k)
	}
}

func TestArgumentsAreChecked(t *testing.T) {
	ctx := t.Context()
	a := arrays.New("x", &fake{}, arrays.Options{})
	for _, tag := range []driver.Tag{"", "A", "a_b", "ü", driver.Tag(strings.Repeat("a", 64))} {
		_, err := a.Split(ctx, tag, []driver.VolumeID{"v"})
		wantKind(t, "tag "+string(tag), err, driver.InvalidRequest)
		_, err = a.Lookup(ctx, tag)
		wantKind(t, "tag "+string(tag), err, driver.InvalidRequest)
		wantKind(t, "tag "+string(tag), a.Prepare(ctx, []driver.VolumeID{"v"}, driver.PrepareOptions{Tag: tag}), driver.InvalidRequest)
	}
	for _, vs := range [][]driver.VolumeID{nil, {""}, {"v", "v"}} {
		_, err := a.Split(ctx, "t", vs)
		wantKind(t, "volumes", err, driver.InvalidRequest)
	}
	_, err := a.Split(ctx, "t", []driver.VolumeID{"v", "w"})
	wantKind(t, "group without a GroupSplitter", err, driver.NotSupported)
	_, err = a.Resolve(ctx, driver.Disk{})
	wantKind(t, "a disk of which nothing is known", err, driver.InvalidRequest)
	_, err = a.Expose(ctx, "s", driver.ExposeOptions{})
	wantKind(t, "exposing to nobody", err, driver.InvalidRequest)
	wantKind(t, "no snapshot", a.Delete(ctx, ""), driver.InvalidRequest)
}

func TestErrorsAreWrappedOnce(t *testing.T) {
	f := &fake{split: func(context.Context, driver.Tag, driver.VolumeID) (driver.Snapshot, error) {
		return driver.Snapshot{}, driver.Errorf(driver.NoSpace, "pool is full")
	}}
	a := arrays.New("x", f, arrays.Options{})
	_, err := a.Split(t.Context(), "t", []driver.VolumeID{"db"})
	wantKind(t, "full pool", err, driver.NoSpace)
	if want := `array "x": splitting volume "db": pool is full`; err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	if arrays.KindOf(errors.New("other")) != driver.Unknown {
		t.Error("an error of no array has a kind")
	}
}

// A call that may have changed something and just ended has an unknown outcome.
func TestEndedContextMeansUnknown(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := &fake{delete: func(ctx context.Context, _ driver.SnapshotID) error {
		cancel()
		return ctx.Err()
	}}
	a := arrays.New("x", f, arrays.Options{})
	wantKind(t, "Delete", a.Delete(ctx, "s"), driver.OutcomeUnknown)
}

func TestNonsenseIsNotPassedOn(t *testing.T) {
	vs := []driver.VolumeID{"v", "w"}
	s := func(id, v, group string) driver.Snapshot {
		return driver.Snapshot{ID: driver.SnapshotID(id), Tag: "t", Volume: driver.VolumeID(v), Size: 1, Group: group}
	}
	for name, answer := range map[string][]driver.Snapshot{
		"too few":     {s("1", "v", "g")},
		"no ID":       {s("1", "v", "g"), s("", "w", "g")},
		"same ID":     {s("1", "v", "g"), s("1", "w", "g")},
		"two groups":  {s("1", "v", "g"), s("2", "w", "h")},
		"no group":    {s("1", "v", ""), s("2", "w", "")},
		"other order": {s("1", "w", "g"), s("2", "v", "g")},
	} {
		a := arrays.New("x", &grouper{answer: answer}, arrays.Options{})
		_, err := a.Split(t.Context(), "t", vs)
		wantKind(t, name, err, driver.OutcomeUnknown)
	}
	good := []driver.Snapshot{s("1", "v", "g"), s("2", "w", "g")}
	a := arrays.New("x", &grouper{answer: good}, arrays.Options{})
	if _, err := a.Split(t.Context(), "t", vs); err != nil {
		t.Error(err)
	}
	if _, err := a.Lookup(t.Context(), "t"); err == nil {
		t.Error("a snapshot of another tag was passed on")
	}
}

func TestOptionsSwitchedOff(t *testing.T) {
	g := &grouper{}
	if !arrays.New("x", g, arrays.Options{}).CanSplitGroup() {
		t.Error("a GroupSplitter can't split groups")
	}
	if arrays.New("x", g, arrays.Options{Without: []arrays.Capability{arrays.SplitGroup}}).CanSplitGroup() {
		t.Error("switched off, it can")
	}
}

func TestCallsAreTraced(t *testing.T) {
	rec := tracetest.NewSpanRecorder()
	tp := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(rec))
	f := &fake{delete: func(context.Context, driver.SnapshotID) error { return driver.Errorf(driver.Busy, "in use") }}
	a := arrays.New("x", f, arrays.Options{Tracer: tp.Tracer("test")})
	a.Delete(t.Context(), "s")
	spans := rec.Ended()
	if len(spans) != 1 || spans[0].Name() != "array: deleting" || spans[0].Status().Description != "busy" {
		t.Fatalf("spans: %+v", spans)
	}
}
