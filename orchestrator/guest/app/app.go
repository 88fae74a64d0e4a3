// Package app holds the application writers that take part in the guest step,
// one shell file each. The requester hands them to the guest inside its script;
// nothing of them runs on the host.
//
// # What an application writer is
//
// A file NAME.sh in this folder that defines these functions, and nothing else
// but functions whose names begin with NAME_ (or a prefix of its own):
//
//	NAME_probe    says what runs: one "app" line for each instance, by say
//	NAME_prepare  before any snapshot: finds its instances, brings them to a
//	              good place, opens a session where an instance spans volumes
//	NAME_settle   after all snapshots but those that it asked to be last
//	NAME_finish   after all snapshots: closes its sessions and answers, one
//	              "writer" line for each instance
//	NAME_undo     lets go of everything; called at any time, by any process
//	              (the watchdog too), any number of times, in a new shell
//
// They run in POSIX sh (dash, busybox) as root. Every program that they start
// costs a busy guest a tenth of a second: what the shell can do, it does. Words
// that they use:
//
//	part; text KEY VALUE; raw KEY JSON; list KEY <LINES; send writer
//	                  a line of the report, member by member
//	now, now up       sets NOW to the guest's clock
//	words FILE        sets WORDS to what a program complained of
//	volume_at DEV     sets VOLUME to the logical volume in use with that major:minor
//	$W/chosen         the volumes that will be snapshot ("extents|uuid|…")
//	$W/last           write a volume's UUID there and its snapshot comes last
//	$W                scratch in memory, for whatever NAME_undo must know
//	SESSION           set it to $SET when a session is held over the snapshots
//
// Promises that an application writer keeps:
//
//   - silence is not consent: an instance that runs and can't take part answers
//     "failed" with the reason; one that is installed and proved not to run
//     answers "not-running"; nothing is left out;
//   - nothing is held before the watchdog runs, and all that is held ends with
//     the process that holds it, or in NAME_undo;
//   - between prepare and finish it writes to no file system that is snapshot,
//     beyond what the application itself does.
//
// Adding an application is adding its file here and its name to Names.
package app

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed *.sh
var scripts embed.FS

// Names are the application writers, in the order in which they prepare.
var names = [...]string{"postgresql", "databases"}

// Names returns the application writers in the order in which they prepare.
func Names() []string { return names[:] }

// Script is the shell text of all application writers, and of APPS, the list
// of them that the step goes through.
func Script() string {
	var b strings.Builder
	for _, n := range names {
		text, err := scripts.ReadFile(n + ".sh")
		if err != nil {
			panic(fmt.Sprintf("app: %s.sh is not embedded: %v", n, err)) // only a build can do that
		}
		b.Write(text)
	}
	fmt.Fprintf(&b, "APPS='%s'\n", strings.Join(names[:], " "))
	return b.String()
}
