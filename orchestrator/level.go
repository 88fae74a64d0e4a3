package orchestrator

import "fmt"

// Level is how consistent a copy is. It is a verdict from evidence, never a
// setting: what was asked and what was reached stand side by side in every
// result. Higher is better.
type Level int

const (
	// LevelNone: nothing was copied.
	LevelNone Level = iota
	// LevelCrash: one atomic instant of the disks, nothing more.
	LevelCrash
	// LevelSaved: memory written completely at the same instant as the disks.
	LevelSaved
	// LevelFilesystem: the guest's own snapshot, or a freeze that provably held
	// over the split, without all application writers; or a machine that is
	// off with clean journals.
	LevelFilesystem
	// LevelApplication: a guest requester and every writer of the data took
	// part, and the guest's snapshot was found by its UUID, valid, in a split
	// made after it.
	LevelApplication
)

var levelNames = [...]string{"none", "crash", "saved", "filesystem", "application"}

func (l Level) String() string {
	if l < 0 || int(l) >= len(levelNames) {
		return fmt.Sprintf("Level(%d)", int(l))
	}
	return levelNames[l]
}

// ParseLevel reads a level's name.
func ParseLevel(s string) (Level, error) {
	for l, n := range levelNames {
		if n == s {
			return Level(l), nil
		}
	}
	return 0, fmt.Errorf("level %.40q: want application, filesystem, saved, crash or none", s)
}

func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

func (l *Level) UnmarshalText(b []byte) error {
	v, err := ParseLevel(string(b))
	if err == nil {
		*l = v
	}
	return err
}

// Class is how much downtime a backup costs a VM (the patent's determination,
// figure 1A).
type Class string

const (
	NoDowntime   Class = "no downtime"   // the guest makes its own snapshot while it runs
	SomeDowntime Class = "some downtime" // it is paused or saved for a moment
	NotPossible  Class = "not possible"  // no copy that could be relied on can be made
)
