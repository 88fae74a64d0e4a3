package assemble

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// TestTracesAreExported sends a span to a collector of the test's own.
func TestTracesAreExported(t *testing.T) {
	var got atomic.Pointer[string]
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil {
			t.Error(err)
		}
		s := r.URL.Path + " " + string(b)
		got.Store(&s)
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
	p, stop, err := tracing(t.Context(), "test", func(k string) string {
		return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL}[k]
	})
	if err != nil {
		t.Fatal(err)
	}
	_, span := p.Tracer("cleave").Start(context.Background(), "guest step")
	span.End()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	s := got.Load()
	if s == nil || !strings.HasPrefix(*s, "/v1/traces ") || !strings.Contains(*s, "guest step") || !strings.Contains(*s, "cleave") {
		t.Errorf("the collector got %v", s)
	}
}
