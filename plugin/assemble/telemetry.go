package assemble

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
)

// tracing makes the tracer provider of a process. Spans go to where
// OTEL_EXPORTER_OTLP_ENDPOINT (or its form for traces) says; without it they
// are made, so that sets have trace IDs, and go nowhere: the timeline in a
// set's document has the same steps. stop sends what is left, within a few
// seconds.
func tracing(ctx context.Context, release string, getenv func(string) string) (_ *trace.TracerProvider, stop func() error, _ error) {
	options := []trace.TracerProviderOption{trace.WithResource(resource.NewSchemaless(
		attribute.String("service.name", orElse(getenv("OTEL_SERVICE_NAME"), "cleave")),
		attribute.String("service.version", release),
	))}
	if getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" {
		exporter, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("exporting traces: %w", err)
		}
		options = append(options, trace.WithBatcher(exporter))
	}
	p := trace.NewTracerProvider(options...)
	return p, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("sending the last traces: %w", err)
		}
		return nil
	}, nil
}
