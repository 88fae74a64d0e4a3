package engine_test

import (
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/journal"
)

// TestTraceShowsGuestsReleasedBeforeTheSplit reads the order of steps from the
// trace, as an operator would.
func TestTraceShowsGuestsReleasedBeforeTheSplit(t *testing.T) {
	w := newWorld(t, online("db"), online("web"), offline("legacy"))
	spans := tracetest.NewInMemoryExporter()
	w.tracer = sdk.NewTracerProvider(sdk.WithSyncer(spans)).Tracer("")
	e := w.engine(journal.NewMemory())
	defer e.Close()
	set := create(t, e, orchestrator.Request{VMs: []string{"db", "web", "legacy"}})
	wantState(t, set, orchestrator.StateReady)
	guests := 0
	all := spans.GetSpans()
	for _, split := range all {
		if split.Name != "array: splitting" {
			continue
		}
		if id := split.SpanContext.TraceID().String(); id != set.TraceID {
			t.Errorf("the document's trace is %q, the split's %q", set.TraceID, id)
		}
		for _, s := range all {
			if s.Name == "guest step" {
				guests++
				if !s.EndTime.Before(split.StartTime) {
					t.Errorf("a guest step ended at %s, the split call began at %s", s.EndTime, split.StartTime)
				}
			}
		}
	}
	if guests != 2 {
		t.Errorf("the trace pairs %d guest steps with a split call, want 2", guests)
	}
}
