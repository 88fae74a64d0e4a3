#!/bin/sh
# The guest step of Cleave: this script is handed to the guest by the host and
# lives on a tmpfs while it is needed. Nothing is installed. It is POSIX sh plus
# what every distribution with LVM has (coreutils or busybox, sed, awk).
#
# base.sh: words that every part uses. SET is the snapshot set; D is its place
# on tmpfs; W is D's scratch directory.
set -u
umask 077
LC_ALL=C
LVM_SUPPRESS_FD_WARNINGS=1
export LC_ALL LVM_SUPPRESS_FD_WARNINGS
[ -n "${CLEAVE_TOOLS-}" ] || PATH=/usr/sbin:/usr/bin:/sbin:/bin:${PATH-}
export PATH

# is_tmpfs DIR: DIR is the mount point of a file system in memory.
is_tmpfs() {
	while read -r _ at type _; do
		[ "$at" = "$1" ] && case $type in tmpfs | ramfs) return 0 ;; esac
	done </proc/mounts
	return 1
}

# Where all this lives: in memory, or nowhere.
BASE=''
for dir in /dev/shm /run; do is_tmpfs "$dir" && BASE=$dir/cleave; done

# json TEXT prints TEXT as a JSON string. Most texts need nothing, and a program
# less is time saved in the guest.
json() {
	case $1 in
	*[!A-Za-z0-9\ /._:=@,+-]*) ;;
	*)
		printf '"%s"' "$1"
		return
		;;
	esac
	printf '"%s"' "$(printf '%s' "$1" | tr '\001-\011\013-\037\177' ' ' |
		sed -e 's/[\\"]/\\&/g' | sed -e ':a' -e '$!{' -e N -e ba -e '}' -e 's/\n/\\n/g')"
}

# json_list reads lines and prints them as a JSON array of strings.
json_list() {
	list=''
	while IFS= read -r item; do
		[ -n "$item" ] && list="$list${list:+,}$(json "$item")"
	done
	printf '[%s]' "$list"
}

# now prints the time as RFC 3339 in UTC, with nanoseconds where date has them.
# Where it has not, "now up" rounds up, so that an end is never before the truth.
now() {
	stamp=$(date -u +%Y-%m-%dT%H:%M:%S.%NZ)
	case $stamp in
	*.[0-9]*Z) ;;
	*)
		if [ "${1-}" = up ]; then
			stamp=$(date -u -d "@$(($(date +%s) + 1))" +%Y-%m-%dT%H:%M:%SZ)
		else
			stamp=$(date -u +%Y-%m-%dT%H:%M:%SZ)
		fi
		;;
	esac
	printf '%s' "$stamp"
}

# say PART JSON appends a line to the report.
say() { printf '{"v":1,"%s":%s}\n' "$1" "$2" >>"$D/report"; }

# warn TEXT is for people.
warn() { say warning "$(json "$1")"; }

# phase TEXT says what is going on: for the timeline, and for the watchdog's
# message.
phase() {
	printf '%s\n' "$1" >"$D/phase"
	say phase "{\"name\":$(json "$1"),\"at\":\"$(now)\"}"
}

# words FILE prints the last lines of a program's complaint as one short line.
words() { tail -n 3 "$1" 2>/dev/null | tr '\n' ' ' | sed -e 's/  */ /g' -e 's/ $//' | cut -c1-400; }

# nap waits a moment.
nap() { sleep 0.05 2>/dev/null || sleep 1; }

# dev_of PATH prints the major:minor of the file system that holds PATH.
dev_of() {
	n=$(stat -L -c %d -- "$1" 2>/dev/null) || return 1
	printf '%d:%d' $((n >> 8 & 0xfff)) $((n & 0xff | n >> 12 & 0xfff00))
}

# our_process PID WORD: PID is alive and is this script doing WORD for SET.
our_process() {
	[ -n "$1" ] && [ -r "/proc/$1/cmdline" ] || return 1
	case $(tr '\000' ' ' <"/proc/$1/cmdline") in
	*" $2 $SET "*) return 0 ;;
	esac
	return 1
}

# end_group PIDFILE WORD ends the session that a process of ours leads: politely,
# then not.
end_group() {
	pid=''
	read -r pid 2>/dev/null <"$1" || return 0
	our_process "$pid" "$2" || return 0
	kill -s TERM -- "-$pid" 2>/dev/null
	tries=0
	while kill -s 0 -- "-$pid" 2>/dev/null && [ $tries -lt 60 ]; do
		tries=$((tries + 1))
		[ $tries -eq 30 ] && kill -s KILL -- "-$pid" 2>/dev/null
		nap
	done
	return 0
}
