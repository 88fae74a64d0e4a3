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
		copy "$(command -v sh)" "$home/bin/sh" && "$home/bin/sh" -c : 2>/dev/null && break
		rm -rf "$home/bin" "$home/lib"
		home=''
	done
	[ -x "${home:-/nowhere}/bin/sh" ] || home=''
	if [ -z "$home" ]; then
		warn 'no tmpfs of this guest runs programs: the tools stay where they are, which is on a volume that may be snapshot'
		return
	fi
	missing=''
	set -- "$@" lvm dmsetup
	for tool in awk cat chmod cut date dd grep head id ls mkdir mv printf readlink rm rmdir sed setpriv setsid sleep sort stat sync tail touch tr; do
		set -- "$@" "$tool"
	done
	for tool; do
		where=$(command -v "$tool")
		case $where in
		/*) copy "$where" "$home/bin/${tool##*/}" || missing="$missing $tool" ;;
		esac
	done
	if command -v ldd >/dev/null; then
		# "libc.so.6 => /lib/…/libc.so.6 (0x…)"
		ldd "$home/bin"/* 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' | sort -u |
			while read -r name path; do copy "$path" "$home/lib/$name"; done
	else
		missing="$missing libraries (no ldd)"
	fi
	chmod 644 "$home/lib"/* 2>/dev/null
	printf '%s\n' "$home" >"$D/tools"
	[ -n "$missing" ] && warn "not copied to memory:$missing"
	return 0
}

copy() {
	cat -- "$1" >"$2" 2>/dev/null && chmod 755 "$2"
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
