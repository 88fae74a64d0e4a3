// Package recovery is the benchmarks of recovered views and recoveries in place:
// how long a view of a large volume takes to open and in how much memory, what
// its reads cost beside those of the split, and what a recovery in place takes
// beside writing the same extents.
package recovery

import (
	"slices"

	"github.com/cleave-san/cleave/integration/bench"
)

// Family gives the benchmarks of the recovery.
func Family(o bench.Options) bench.Family {
	return bench.Family{Name: "recovery", Benchmarks: slices.Concat(opens(), reads(o), places())}
}
