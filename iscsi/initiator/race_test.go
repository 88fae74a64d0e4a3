//go:build race

package initiator

// raceEnabled says that the race detector is watching.
const raceEnabled = true
