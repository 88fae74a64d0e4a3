//go:build !lab

package writeorder

// splits is how many splits of a group of n there are.
func splits(n int) int { return max(3, 16/n) }
