package embedded_test

import (
	"testing"

	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/disk/loopfs"
)

// The providers' suite on a pool with reflinks: with volumes whose snapshots are
// clones of a mirror, and with groups of which every other one's are. The write
// order of such groups is checked under load like that of all others.
func TestProviderReflink(t *testing.T) {
	for name, policy := range map[string]func(i int) embedded.SnapshotPolicy{
		"reflink": func(int) embedded.SnapshotPolicy { return embedded.ByReflink },
		"mixed": func(i int) embedded.SnapshotPolicy {
			return []embedded.SnapshotPolicy{embedded.ByReflink, embedded.ByMirror}[i%2]
		},
	} {
		t.Run(name, func(t *testing.T) {
			arraytest.Run(t, func(t *testing.T) *arraytest.Lab {
				l := labIn(t, loopfs.Mount(t, loopfs.XFS, 1<<30).Dir, 4, policy)
				l.Splits = 15
				if embedded.RaceEnabled { // make test has all of them without the detector
					l.Splits = 4
				}
				return l
			})
		})
	}
}
