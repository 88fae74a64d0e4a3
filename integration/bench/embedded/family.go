// Package embedded is the benchmarks of the embedded array: how long a group
// split holds writes, what two mirrors cost against writing the same bytes
// twice, and what a resync moves.
package embedded

import (
	"slices"

	"github.com/cleave-san/cleave/integration/bench"
)

// Family gives the benchmarks of the embedded array.
func Family(o bench.Options) bench.Family {
	lvm, closeLVM := lvmRows(o)
	return bench.Family{
		Name:       "embedded",
		Benchmarks: slices.Concat(holds(o), writes(o), reads(), resyncs(), []bench.Benchmark{many(o)}, lvm),
		Close:      closeLVM,
	}
}
