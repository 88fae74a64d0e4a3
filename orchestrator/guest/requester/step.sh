# step.sh: the guest step itself, and who watches it.

# start WHAT runs this script's WHAT in a session of its own. Under systemd as a
# unit of its own: whatever the agent starts dies with the agent's unit.
start() {
	shell=/bin/sh home=''
	read -r home 2>/dev/null <"$D/tools" && [ -x "$home/bin/sh" ] && shell=$home/bin/sh
	if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then
		systemd-run --quiet --collect --unit="cleave-$SET-$1" --description="Cleave $1 $SET" \
			-p OOMScoreAdjust=-900 \
			"$shell" "$D/step" "$1" "$SET" </dev/null >/dev/null 2>"$D/start.err" && return 0
		echo "systemd-run: $(words "$D/start.err")" >"$D/start.warning"
	fi
	command -v setsid >/dev/null || return 1
	setsid "$shell" "$D/step" "$1" "$SET" </dev/null >/dev/null 2>>"$D/log" &
}

# launch SET LIMIT KEEP PERCENT REQUESTER [UUID…] begins the step and returns.
# Called again with the same set it does nothing. $0 is this script, in a file.
launch() {
	if [ -e "$D/started" ]; then
		rm -f "$0"
		exit 0
	fi
	rm -rf "$D"
	mkdir -p "$W" && mv "$0" "$D/step" || exit 1
	chmod 711 "$BASE" "$D" "$W" # psql runs from there as its own user
	printf '%s\n' "$2" "$3" "$4" "$5" >"$D/conf"
	shift 5
	for uuid; do printf '%s\n' "$uuid"; done >"$D/wanted"
	uptime_seconds >"$D/began"
	: >"$D/started"
	start run || {
		rm -f "$D/started"
		echo 'neither systemd-run nor setsid starts a process of its own' >&2
		exit 1
	}
}

uptime_seconds() {
	read -r up _ </proc/uptime
	printf '%s\n' "${up%.*}"
}

read_conf() {
	{
		read -r LIMIT
		read -r KEEP
		read -r PERCENT
		read -r REQUESTER
	} <"$D/conf"
}

# end [WHY] writes the end line, unless somebody else ended the step before.
# With WHY everything is undone first.
end() {
	mkdir "$D/ended" 2>/dev/null || return 1
	if [ $# -gt 0 ]; then
		undo_and_say "$1"
	else
		say end "{\"at\":\"$(now up)\"}"
		: >"$D/done"
	fi
}

undo_and_say() {
	why=$1
	undo 2>"$W/undo" || why="$why; and not undone: $(words "$W/undo")"
	grep -q '"end":' "$D/report" || say end "{\"at\":\"$(now up)\",\"failed\":$(json "$why")}"
	: >"$D/done"
}

# undo gives everything back: sessions of applications, suspended devices,
# snapshots. It may run at any time, by any process, any number of times.
undo() {
	for app in $APPS; do "${app}_undo"; done
	resume_devices
	remove_snapshots
}

# run is the step. Until the watchdog runs, nothing is held and nothing made.
run() {
	read_conf
	if [ ! -e "$D/report" ]; then
		printf '%s\n' $$ >"$D/step.pid"
		echo -900 >/proc/self/oom_score_adj 2>/dev/null
		say start "{\"requester\":$(json "$REQUESTER"),\"at\":\"$(now)\"}"
		[ -s "$D/start.warning" ] && warn "$(cat "$D/start.warning")"
		sweep
		remove_snapshots 2>/dev/null # of this set, from before a reboot
		tools=''
		for app in $APPS; do tools="$tools $("${app}_tools")"; done
		# shellcheck disable=SC2086 # paths of programs of the guest, without blanks by app_tools
		copy_tools $tools
		start watch || {
			end 'the watchdog does not start'
			exit 1
		}
		tries=0
		while [ ! -s "$D/watch.pid" ] && [ $tries -lt 200 ]; do
			tries=$((tries + 1))
			nap
		done
		[ -s "$D/watch.pid" ] || {
			end 'the watchdog does not start'
			exit 1
		}
		use_tools run "$SET"
	fi
	snapshot_all || end "$failure"
	end
	exit 0
}

# snapshot_all is what the watchdog watches. It says why in $failure.
snapshot_all() {
	case $(sync --version 2>/dev/null) in *coreutils*) FLUSH='sync' ;; *) FLUSH='dd' ;; esac
	phase 'looking for volumes'
	SESSION=''
	: >"$D/touched"
	: >"$W/last"
	: >"$W/made"
	command -v lvm >/dev/null || {
		failure='this guest has no LVM, so no volumes that it could snapshot'
		return 1
	}
	lvm pvs ${NOUDEV:+--config "$NOUDEV"} --noheadings --separator '|' -o vg_uuid,pv_name </dev/null >"$W/pvs" 2>"$W/err" &&
		find_volumes || {
		failure="LVM does not answer: $(words "$W/err")"
		return 1
	}
	choose || return 1
	for app in $APPS; do
		phase "preparing $app"
		"${app}_prepare"
	done
	# Those that an application wants last come last; it is told before them.
	while IFS='|' read -r n uuid rest; do
		grep -qx "$uuid" "$W/last" || snapshot "$n|$uuid|$rest" || return 1
	done <"$W/chosen"
	for app in $APPS; do
		phase "settling $app"
		"${app}_settle"
	done
	while IFS='|' read -r n uuid rest; do
		if grep -qx "$uuid" "$W/last"; then snapshot "$n|$uuid|$rest" || return 1; fi
	done <"$W/chosen"
	phase 'reporting'
	report_snapshots || return 1
	for app in $APPS; do "${app}_finish"; done
}

# choose writes $W/chosen: "extents|" and the line of each volume to snapshot.
choose() {
	if [ -s "$D/wanted" ]; then
		while read -r uuid; do
			line=$(grep "^$uuid|" "$W/volumes") || {
				failure="no logical volume with UUID $uuid is in use in this guest"
				say completion "{\"volumeId\":$(json "$uuid"),\"error\":$(json "$failure")}"
				return 1
			}
			printf '%s\n' "$line"
		done <"$D/wanted" >"$W/some"
	else
		while IFS='|' read -r a b c d e f g h i fs cannot mount; do
			if [ -n "$cannot" ]; then
				warn "$c is left out: $cannot"
			else
				printf '%s|' "$a" "$b" "$c" "$d" "$e" "$f" "$g" "$h" "$i" "$fs" "$cannot"
				printf '%s\n' "$mount"
			fi
		done <"$W/volumes" >"$W/some"
	fi
	[ -s "$W/some" ] || {
		failure='no logical volume of this guest is in use'
		return 1
	}
	share_space "$PERCENT" <"$W/some" >"$W/chosen"
	while IFS='|' read -r n uuid group vol size dev kind extent free dm fs cannot mount; do
		failure=''
		[ "$kind" = lvm-thick ] && [ "$n" -lt 2 ] &&
			failure="$vol: its volume group has $free free extents of $extent bytes, which leaves less than two for the snapshot"
		[ -n "$cannot" ] && failure="$vol: $cannot"
		[ -n "$failure" ] && {
			say completion "{\"volume\":$(json "$vol"),\"volumeId\":$(json "$uuid"),\"error\":$(json "$failure")}"
			return 1
		}
	done <"$W/chosen"
	return 0
}

# snapshot LINE makes one snapshot. Nothing is frozen before: device-mapper
# freezes the file system by itself, for the instant it takes, and lvcreate on a
# frozen one breaks LVM.
snapshot() {
	IFS='|' read -r n uuid group vol size dev kind extent free dm fs cannot mount <<-END
		$1
	END
	phase "the snapshot of $vol"
	serial=$(($(wc -l <"$W/made") + 1))
	name=$(snapshot_name "$serial" "${vol#*/}" "${vol%/*}")
	printf '%s|%s\n' "$vol" "$dm" >>"$D/touched"
	set -- lvcreate -s -n "$name" --addtag "cleave.$SET" --addtag "cleave.until=$(($(date +%s) + KEEP + 60))"
	[ "$kind" = lvm-thick ] && set -- "$@" --monitor n -l "$n"
	began=$(now)
	if ! lvm_change "$@" "$vol" >/dev/null 2>"$W/err"; then
		failure="lvcreate for $vol: $(words "$W/err")"
	elif ! flush_group "$group"; then
		failure="the disks of $vol can't be flushed"
	else
		ended=$(now up)
		printf '%s|' "$uuid" "$group" "$vol" "${vol%/*}/$name" "$kind" "$began" "$ended" "$fs" >>"$W/made"
		printf '%s\n' "$mount" >>"$W/made"
		return 0
	fi
	say completion "{\"volume\":$(json "$vol"),\"volumeId\":$(json "$uuid"),\"error\":$(json "$failure")}"
	return 1
}

# report_snapshots writes one completion for each snapshot that is there and
# still valid.
report_snapshots() {
	our_snapshots >"$W/snapshots"
	while IFS='|' read -r uuid group vol name kind began ended fs mount; do
		IFS='|' read -r snap attr _ <<-END
			$(awk -F'|' -v name="$name" '$1 == name { print $2 "|" $3; exit }' "$W/snapshots")
		END
		case $snap,$attr in
		,*) failure="$vol: its snapshot $name is not there" ;;
		*,????[SIXM]*) failure="$vol: its snapshot is not valid (attributes $attr)" ;;
		*) failure='' ;;
		esac
		say completion "$(printf '{"volume":%s,"volumeId":"%s","group":"%s","snapshot":"%s","name":%s,"kind":"%s","mount":%s,"fs":%s,"began":"%s","ended":"%s","session":"%s","error":%s}' \
			"$(json "$vol")" "$uuid" "$group" "$snap" "$(json "$name")" "$kind" "$(json "$mount")" "$(json "$fs")" \
			"$began" "$ended" "$SESSION" "$(json "$failure")")"
		[ -n "$failure" ] && return 1
	done <"$W/made"
	return 0
}

# watch ends a step that did not end by itself, and drops the snapshots of one
# that did when their time is over. It runs from memory, depends on nobody, and
# was there before the first snapshot.
watch() {
	use_tools watch "$SET"
	read_conf
	echo -900 >/proc/self/oom_score_adj 2>/dev/null
	printf '%s\n' $$ >"$D/watch.pid"
	# The limit counts from the launch: what the host waits for includes all.
	read -r began <"$D/began"
	left=$((LIMIT + began - $(uptime_seconds)))
	[ "$left" -gt 0 ] && sleep "$left"
	during=$(cat "$D/phase" 2>/dev/null)
	# A step that is ending at this moment gets a little longer to undo itself.
	mkdir "$D/ended" 2>/dev/null || [ -e "$D/done" ] || sleep 10
	if [ ! -e "$D/done" ]; then
		end_group "$D/step.pid" run
		undo_and_say "the guest's time limit of $LIMIT s passed during: $during"
	fi
	[ "$KEEP" -gt "$LIMIT" ] && sleep $((KEEP - LIMIT))
	undo 2>/dev/null
	forget
}

forget() {
	rm -rf "/dev/shm/cleave-$SET" "$D"
	rmdir "$BASE" 2>/dev/null
}

# drop ends the step if it runs and removes all that the set left here.
drop() {
	mkdir -p "$W" 2>/dev/null
	mkdir "$D/ended" 2>/dev/null # nobody else writes an end any more
	end_group "$D/step.pid" run
	end_group "$D/watch.pid" watch
	undo || exit 1
	forget
}

# await SECONDS prints the report, after it ended or when the time is over.
await() {
	[ -e "$D/started" ] || {
		echo 'this guest knows nothing of the set (it was started anew, or the set was dropped)' >&2
		exit 3
	}
	tries=$(($1 * 5))
	while [ ! -e "$D/done" ] && [ $tries -gt 0 ]; do
		tries=$((tries - 1))
		sleep 0.2 2>/dev/null || sleep 1
	done
	[ -e "$D/report" ] && head -c 1048576 "$D/report"
	exit 0
}

# probe says what a step would find, and changes nothing. Its lines are those of
# a report with other parts.
probe() {
	W=$(mktemp -d "$BASE-probe.XXXXXX") || exit 1
	trap 'rm -rf "$W"' EXIT
	D=$W
	: >"$W/volumes"
	cannot=''
	if ! command -v lvm >/dev/null; then
		cannot='the guest has no LVM tools'
	elif ! find_volumes; then
		cannot="LVM in the guest does not answer: $(words "$W/err")"
	elif ! command -v setsid >/dev/null && ! command -v systemd-run >/dev/null; then
		cannot='the guest has neither systemd-run nor setsid'
	fi
	say probe "{\"cannot\":$(json "$cannot")}"
	share_space "$1" <"$W/volumes" | while IFS='|' read -r n uuid group vol size dev kind extent free dm fs cannot mount; do
		[ -z "$cannot" ] && [ "$kind" = lvm-thick ] && [ "$n" -lt 2 ] &&
			cannot="its volume group has $free free extents, which leaves less than two for its snapshot"
		say volume "$(printf '{"name":%s,"uuid":"%s","kind":"%s","mount":%s,"fs":%s,"size":%s,"free":%s,"cannot":%s}' \
			"$(json "$vol")" "$uuid" "$kind" "$(json "$mount")" "$(json "$fs")" "$size" $((free * extent)) "$(json "$cannot")")"
	done
	for app in $APPS; do "${app}_probe"; done
	say end "{\"at\":\"$(now)\"}"
	cat "$D/report"
}

main() {
	exec </dev/null
	[ -n "$BASE" ] || {
		echo 'neither /run nor /dev/shm of this guest is in memory' >&2
		exit 1
	}
	what=$1 SET=${2-}
	D=$BASE/$SET W=$BASE/$SET/work
	case $what in
	launch)
		shift
		launch "$@"
		;;
	run | watch | drop) "$what" ;;
	await) await "$3" ;;
	probe) probe "$2" ;;
	*) exit 2 ;;
	esac
}
