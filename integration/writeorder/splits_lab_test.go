//go:build lab

package writeorder

import (
	"os"
	"strconv"
)

// splits is how many splits of a group of n there are, unless
// CLEAVE_WRITEORDER_SPLITS says otherwise.
func splits(int) int {
	if n, err := strconv.Atoi(os.Getenv("CLEAVE_WRITEORDER_SPLITS")); err == nil && n > 0 {
		return n
	}
	return 1000
}
