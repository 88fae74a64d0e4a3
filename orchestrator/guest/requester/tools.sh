# tools.sh: what must run while a volume may stand suspended must not have to be
# read from one: the shell of the step and of its watchdog, and dmsetup, which
# lets go of what a killed lvcreate left. They are copied to a tmpfs first, with
# their libraries. LVM itself needs no copy: it locks itself into memory before
# it suspends anything (lvm.conf(5), activation/reserved_memory), and the
# watchdog resumes devices before it calls LVM.

# copy_tools writes the place of the copies to $D/tools. A tmpfs may be mounted
# noexec (Debian's /run is): the first one that runs a program is taken.
copy_tools() {
	phase 'copying the tools to memory'
	set --
	missing=''
	for tool in sh dmsetup sleep; do
		where=$(command -v "$tool")
		case $where in
		/*) set -- "$@" "$where" ;;
		*) missing="$missing $tool" ;;
		esac
	done
	# Lines like "libc.so.6 => /lib/…/libc.so.6 (0x…)". dmsetup needs all the
	# libraries that the others need.
	libraries "$(command -v dmsetup)" >"$W/libraries"
	while read -r _ arrow where _; do
		case $arrow,$where in "=>,/"*) set -- "$@" "$where" ;; esac
	done <"$W/libraries"
	for home in "$D/tools.d" "/dev/shm/cleave-$SET"; do
		case $home in /run/*) is_tmpfs /run ;; *) is_tmpfs /dev/shm ;; esac && [ -z "$noexec" ] || continue
		# Not -p: in /dev/shm somebody else may have made one of that name.
		mkdir "$home" 2>/dev/null || continue
		cp -L "$@" "$home/" 2>"$W/err" || missing="$missing (some)"
		if "$home/sh" -c : 2>/dev/null; then
			printf '%s\n' "$home" >"$D/tools"
			[ -z "$missing" ] || warn "not copied to memory:$missing"
			return
		fi
		rm -rf "$home"
	done
	warn 'no tmpfs of this guest runs programs: the tools stay where they are, which may be on a volume that is snapshot'
}

# libraries PROGRAM: glibc's loader says it itself (ld.so(8)), in a quarter of
# the time of ldd. A static program has none.
libraries() {
	for loader in /lib*/ld-linux*.so.*; do
		[ -x "$loader" ] || continue
		LD_TRACE_LOADED_OBJECTS=1 "$loader" "$1" </dev/null 2>/dev/null
		return
	done
	command -v ldd >/dev/null && ldd "$1" 2>/dev/null
}

# use_tools makes the copies the programs of this process, and begins it anew
# with the copied shell. Its arguments are the script's own.
use_tools() {
	home=''
	[ -z "${CLEAVE_TOOLS-}" ] && read -r home 2>/dev/null <"$D/tools" || return 0
	CLEAVE_TOOLS=$home PATH=$home:$PATH LD_LIBRARY_PATH=$home
	export CLEAVE_TOOLS PATH LD_LIBRARY_PATH
	exec "$home/sh" "$D/step" "$@"
}
