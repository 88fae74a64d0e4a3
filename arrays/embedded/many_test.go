package embedded

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
)

// BenchmarkOpenMany opens an array of 1,000 volumes with two mirrors each, and
// says what it takes while it is idle.
func BenchmarkOpenMany(b *testing.B) {
	const volumes = 1000
	o := options(testDir(b))
	a := open(b, o)
	created := make(chan error, volumes)
	for i := range volumes {
		go func() {
			_, err := a.CreateVolume(b.Context(), CreateVolume{Name: fmt.Sprintf("v%d", i), Size: 1 << 30, Pools: []string{"a", "b"}})
			created <- err
		}()
	}
	for range volumes {
		if err := <-created; err != nil {
			b.Fatal(err)
		}
	}
	a.Close()
	before := runtime.NumGoroutine()
	for b.Loop() {
		a = open(b, o)
		b.StopTimer()
		for _, v := range a.Volumes() {
			if v.State != driver.Synchronized {
				b.Fatalf("%+v", v)
			}
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB-heap")
		b.ReportMetric(float64(m.Sys)/(1<<20), "MiB-from-system")
		b.ReportMetric(float64(runtime.NumGoroutine()-before), "goroutines")
		a.Close()
		b.StartTimer()
	}
}
