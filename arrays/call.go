package arrays

import (
	"context"
	"fmt"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/cleave-san/cleave/arrays/driver"
)

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

// nonsense is the error of an answer that can't be right. What the array did is
// then unknown.
func nonsense(format string, args ...any) error {
	return driver.Errorf(driver.OutcomeUnknown, "the provider's answer makes no sense: "+format, args...)
}
