//go:build !race

package target

// race says that the race detector is on, which costs memory and time.
const race = false
