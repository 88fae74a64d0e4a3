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
	//go:embed step.sh
	step string
)

// Script is the whole guest script: POSIX sh. Its last line calls it, so that a
// shell that reads it from a pipe has read all of it by then.
func Script() string {
	return strings.Join([]string{base, tools, volumes, app.Script(), step, "main \"$@\"\nexit\n"}, "\n")
}

// save is a shell command that puts its standard input into a file in memory
// and goes on as that: what is started must outlive the agent's process.
const save = `umask 077
for d in /run /dev/shm; do
	while read -r _ at type _; do
		case $at,$type in "$d",tmpfs | "$d",ramfs) break 2 ;; esac
	done </proc/mounts
	d=
done
[ -n "$d" ] || { echo "neither /run nor /dev/shm of this guest is in memory" >&2; exit 1; }
f=$(mktemp "$d/cleave-step.XXXXXX") && cat >"$f" && exec /bin/sh "$f" "$@"
rm -f "$f"
exit 1`
