//go:build race

package scsi

// raceDetector: sync.Pool drops what it is given at random, so that allocations
// can't be counted.
const raceDetector = true
