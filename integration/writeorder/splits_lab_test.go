//go:build lab

package writeorder

// splits is how many splits of a group of n there are.
func splits(int) int { return 1000 }
