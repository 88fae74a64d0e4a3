package requester

import (
	_ "embed"
	"strings"

	"github.com/cleave-san/cleave/orchestrator/guest/app"
)

var (
	//go:embed base.sh
	base string
	//go:embed tools.sh
	tools string
	//go:embed lvm.sh
	volumes string
	//go:embed volumes.awk
	volumesAWK string
	//go:embed step.sh
	step string
)

// Script is the whole guest script: POSIX sh. Its last line calls it, so that a
// shell that reads it from a pipe has read all of it by then.
func Script() string {
	return strings.Join([]string{base, tools, volumeWords(), app.Script(), step, "main \"$@\"\nexit\n"}, "\n")
}

// volumeWords are the shell's words for volumes, with the awk program that they run.
func volumeWords() string {
	return volumes + "VOLUMES_AWK='" + strings.ReplaceAll(volumesAWK, "'", `'\''`) + "'\n"
}

// save is a shell command that reads the script from its standard input and goes
// on as that. The script keeps its own text: what it starts must outlive the
// agent's process and the pipe.
const save = `CLEAVE_SCRIPT=$(cat) && eval "$CLEAVE_SCRIPT"`
