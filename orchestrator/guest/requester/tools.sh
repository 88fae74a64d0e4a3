# tools.sh: what runs while volumes are being snapshot must not have to be read
# from one of them. The programs and their libraries are copied to a tmpfs first.

# copy_tools [PROGRAM…] copies the usual tools and PROGRAMs, and writes the place
# to $D/tools. A tmpfs may be mounted noexec (Debian's /run is): the first one
# that runs a program is taken.
copy_tools() {
	phase 'copying the tools to memory'
	for home in "$D" "/dev/shm/cleave-$SET"; do
		case $home in /dev/shm/*) is_tmpfs /dev/shm || continue ;; esac
		mkdir -p "$home/bin" "$home/lib" && chmod 711 "$home" && chmod 755 "$home/bin" "$home/lib" || continue
		cp -L "$(command -v sh)" "$home/bin/sh" && "$home/bin/sh" -c : 2>/dev/null && break
		rm -rf "${home:?}/bin" "${home:?}/lib"
		home=''
	done
	[ -x "${home:-/nowhere}/bin/sh" ] || home=''
	if [ -z "$home" ]; then
		warn 'no tmpfs of this guest runs programs: the tools stay where they are, which is on a volume that may be snapshot'
		return
	fi
	missing=''
	set -- "$@" lvm dmsetup
	for tool in awk cat cut date dd grep head id mkdir mkfifo readlink rm rmdir sed setpriv setsid sleep sort stat sync tail tr wc; do
		set -- "$@" "$tool"
	done
	for tool; do
		shift
		where=$(command -v "$tool")
		case $where in
		/*) set -- "$@" "$where" ;;
		*) missing="$missing $tool" ;;
		esac
	done
	cp -L "$@" "$home/bin/" 2>/dev/null || missing="$missing (some)"
	# These need all the libraries that the others need.
	set --
	for tool in sh lvm psql setpriv sed sort awk; do [ -e "$home/bin/$tool" ] && set -- "$@" "$home/bin/$tool"; done
	# shellcheck disable=SC2046 # the loader's paths, without blanks by the pattern
	cp -L $(libraries "$@" | sed -n 's/.* => \(\/[^ ]*\) (0x.*/\1/p' | sort -u) "$home/lib/" 2>/dev/null ||
		missing="$missing (libraries)"
	chmod -R a+rX "$home/bin" "$home/lib"
	printf '%s\n' "$home" >"$D/tools"
	[ -n "$missing" ] && warn "not copied to memory:$missing"
	return 0
}

# libraries PROGRAM… prints lines like "libc.so.6 => /lib/…/libc.so.6 (0x…)".
# glibc's loader says it itself (ld.so(8)), in a quarter of the time of ldd.
libraries() {
	for loader in /lib*/ld-linux*.so.*; do
		[ -x "$loader" ] || continue
		for program; do LD_TRACE_LOADED_OBJECTS=1 "$loader" "$program" </dev/null 2>/dev/null; done
		return
	done
	command -v ldd >/dev/null && ldd "$@" 2>/dev/null
}

# use_tools makes the copies the programs of this process, and begins it anew
# with the copied shell. Its arguments are the script's own.
use_tools() {
	home=''
	[ -z "${CLEAVE_TOOLS-}" ] && read -r home 2>/dev/null <"$D/tools" || return 0
	CLEAVE_TOOLS=$home PATH=$home/bin:$PATH LD_LIBRARY_PATH=$home/lib
	export CLEAVE_TOOLS PATH LD_LIBRARY_PATH
	exec "$home/bin/sh" "$D/step" "$@"
}
