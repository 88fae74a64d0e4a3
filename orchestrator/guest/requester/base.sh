#!/bin/sh
# The guest step of Cleave: this script is handed to the guest by the host and
# lives on a tmpfs while it is needed. Nothing is installed. It is POSIX sh plus
# what every distribution with LVM has (coreutils or busybox, awk).
#
# In a busy guest without hardware virtualisation each program that is started
# takes a tenth of a second or more, so what the shell can do it does itself.
# For the same reason functions give their result in a variable, not by $( ).
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

# is_tmpfs DIR: DIR is the mount point of a file system in memory; $noexec says
# whether it runs no programs.
is_tmpfs() {
	noexec=''
	while read -r _ at type options _; do
		[ "$at" = "$1" ] || continue
		case ,$options, in *,noexec,*) noexec=1 ;; esac
		case $type in tmpfs | ramfs) return 0 ;; esac
	done </proc/mounts
	return 1
}

# Where all this lives: in memory, or nowhere.
BASE=''
for dir in /run /dev/shm; do
	is_tmpfs "$dir" && BASE=$dir/cleave && break
done

# has FILE LINE: FILE has that line.
has() {
	while IFS= read -r line; do
		[ "$line" = "$2" ] && return 0
	done 2>/dev/null <"$1"
	return 1
}

# claim FILE makes FILE; of several who try, one succeeds.
claim() { (set -C && : >"$1") 2>/dev/null; }

# The report is made of parts, one on a line:
#
#	part; text KEY VALUE…; raw KEY JSON; list KEY <LINES; send NAME
#
# O holds the members of the part, J the last JSON text.
part() { O=''; }
raw() { O="$O${O:+,}\"$1\":$2"; }
send() { say "$1" "{$O}"; }
text() {
	json "$2"
	raw "$1" "$J"
}
list() {
	items=''
	while IFS= read -r item; do
		[ -n "$item" ] || continue
		json "$item"
		items="$items${items:+,}$J"
	done
	raw "$1" "[$items]"
}

# json TEXT sets J to TEXT as a JSON string.
json() {
	case $1 in
	*[\"\\[:cntrl:]]*)
		J="\"$(printf '%s' "$1" | tr '\001-\011\013-\037\177' ' ' |
			sed -e 's/[\\"]/\\&/g' | sed -e ':a' -e '$!{' -e N -e ba -e '}' -e 's/\n/\\n/g')\""
		;;
	*) J="\"$1\"" ;;
	esac
}

# say NAME JSON appends a line to the report, or prints it where there is none.
say() {
	if [ -n "$REPORT" ]; then
		printf '{"v":1,"%s":%s}\n' "$1" "$2" >>"$REPORT"
	else
		printf '{"v":1,"%s":%s}\n' "$1" "$2"
	fi
}

# warn TEXT is for people.
warn() {
	json "$1"
	say warning "$J"
}

# phase TEXT says what is going on: for the timeline, and for the watchdog's
# message.
phase() {
	printf '%s\n' "$1" >"$D/phase"
	part
	text name "$1"
	now
	raw at "\"$NOW\""
	send phase
}

# uptime sets UP to the guest's uptime in hundredths of a second.
uptime() {
	read -r UP _ </proc/uptime
	UP=${UP%.*}${UP#*.}
}

# set_clock asks for the time once; the kernel's uptime tells how much later it
# is. All processes of a set share that one reading, so that what one of them
# calls later is later, whatever is done to the clock meanwhile.
set_clock() {
	[ -s "$D/clock" ] && read -r CLOCK <"$D/clock" && return
	stamp=$(date +%s.%N)
	uptime
	fraction=${stamp#*.}
	case $fraction in
	*[!0-9]* | ? | '') fraction=00 ;; # a date without %N
	*) fraction=${fraction%"${fraction#??}"} ;;
	esac
	CLOCK=$((${stamp%%.*} * 100 + 1$fraction - 100 - UP))
	[ -d "$D" ] && printf '%s\n' "$CLOCK" >"$D/clock"
	return 0
}

# now sets NOW to the time as RFC 3339 in UTC, rounded down, or up by "now up",
# so that an end is never before the truth; EPOCH is the same in seconds since
# 1970. The calendar is that of the proleptic Gregorian rule, with years that
# begin in March.
now() {
	uptime
	t=$((CLOCK + UP))
	[ "${1-}" = up ] && t=$((t + 1))
	EPOCH=$((t / 100))
	s=$((EPOCH % 86400)) days=$((EPOCH / 86400 + 719468))
	in_era=$((days % 146097))
	year=$(((in_era - in_era / 1460 + in_era / 36524 - in_era / 146096) / 365))
	in_year=$((in_era - (365 * year + year / 4 - year / 100)))
	month=$(((5 * in_year + 2) / 153))
	day=$((in_year - (153 * month + 2) / 5 + 101))
	year=$((year + days / 146097 * 400))
	if [ $month -lt 10 ]; then month=$((month + 103)); else month=$((month + 91)) year=$((year + 1)); fi
	hour=$((s / 3600 + 100)) minute=$((s / 60 % 60 + 100)) second=$((s % 60 + 100)) fraction=$((t % 100 + 100))
	NOW=$year-${month#1}-${day#1}T${hour#1}:${minute#1}:${second#1}.${fraction#1}Z
}

# words FILE sets WORDS to the last lines of a program's complaint as one short
# line.
words() {
	one='' two='' WORDS=''
	while read -r line; do
		[ -n "$line" ] && WORDS=$one one=$two two=$line
	done 2>/dev/null <"$1"
	WORDS="$WORDS${WORDS:+ }$one${one:+ }$two"
	while [ ${#WORDS} -gt 400 ]; do WORDS=${WORDS%?????????????????}; done
}

# nap waits a moment.
nap() { sleep 0.05 2>/dev/null || sleep 1; }

# our_process PID WORD: PID is alive and is this script doing WORD for SET. The
# arguments of a process are separated by NUL, which read leaves out.
our_process() {
	line=''
	read -r line 2>/dev/null <"/proc/${1:-none}/cmdline"
	case $line in
	*"/step$2$SET") return 0 ;;
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
