# step.sh: the guest step itself, and who watches it.

# start WHAT runs this script's WHAT in a session of its own. Under systemd as a
# unit of its own: whatever the agent starts dies with the agent's unit.
start() {
	shell=/bin/sh home=''
	read -r home 2>/dev/null <"$D/tools" && [ -x "$home/sh" ] && shell=$home/sh
	if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then
		systemd-run --quiet --collect --unit="cleave-$SET-$1" --description="Cleave $1 $SET" \
			-p OOMScoreAdjust=-900 \
			"$shell" "$D/step" "$1" "$SET" </dev/null >/dev/null 2>"$D/start.err" && return 0
		words "$D/start.err"
		echo "systemd-run: $WORDS" >"$D/start.warning"
	fi
	command -v setsid >/dev/null || return 1
	if [ -n "$home" ]; then
		CLEAVE_TOOLS=$home PATH=$home:$PATH LD_LIBRARY_PATH=$home \
			setsid "$shell" "$D/step" "$1" "$SET" </dev/null >/dev/null 2>>"$D/log" &
	else
		setsid "$shell" "$D/step" "$1" "$SET" </dev/null >/dev/null 2>>"$D/log" &
	fi
}

# launch SET LIMIT KEEP PERCENT REQUESTER WAIT [UUID…] begins the step, waits for
# its end as await does and prints the report. Called again with the same set it
# begins nothing. The script's text is in CLEAVE_SCRIPT.
launch() {
	if [ ! -e "$D/started" ]; then
		[ -e "$D" ] && rm -rf "$D"
		mkdir -p "$W/pg.1" && [ -O "$BASE" ] && mkfifo "$D/over" && printf '%s\n' "$CLEAVE_SCRIPT" >"$D/step" || exit 1
		printf '%s\n' "$2" "$3" "$4" "$5" >"$D/conf"
		wait=$6
		shift 6
		for uuid; do printf '%s\n' "$uuid"; done >"$D/wanted"
		uptime
		printf '%s\n' "$UP" >"$D/began"
		: >"$D/started"
		start run || {
			rm -f "$D/started"
			echo 'neither systemd-run nor setsid starts a process of its own' >&2
			exit 1
		}
		set -- '' '' '' '' '' "$wait"
	fi
	await "$6"
}

read_conf() {
	{
		read -r LIMIT
		read -r KEEP
		read -r PERCENT
		read -r REQUESTER
	} <"$D/conf"
	REPORT=$D/report
	set_clock
}

# end [WHY] writes the end line, unless somebody else ended the step before.
# With WHY everything is undone first.
end() {
	claim "$D/ended" || return 1
	if [ $# -gt 0 ]; then
		undo_and_say "$1"
	else
		: >"$D/whole" # nothing is suspended
		say_end ''
	fi
}

say_end() {
	part
	now up
	raw at "\"$NOW\""
	[ -z "$1" ] || text failed "$1"
	send end
	wake
}

# wake lets those go on that wait for the end: each that has the pipe open finds
# a line in it, or done when it looks for that afterwards.
wake() {
	: >"$D/done"
	printf '\n\n\n\n\n\n\n\n' 1<>"$D/over"
}

undo_and_say() {
	why=$1
	undo 2>"$W/undo" || {
		words "$W/undo"
		why="$why; and not undone: $WORDS"
	}
	while read -r line; do
		case $line in *'"end":'*)
			wake
			return
			;;
		esac
	done <"$D/report"
	say_end "$why"
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
	if claim "$D/running"; then
		printf '%s\n' $$ >"$D/step.pid"
		read_conf
		echo -900 >/proc/self/oom_score_adj 2>/dev/null
		part
		text requester "$REQUESTER"
		now
		raw at "\"$NOW\""
		send start
		[ -s "$D/start.warning" ] && read -r line <"$D/start.warning" && warn "$line"
		copy_tools
		start watch || {
			end 'the watchdog does not start'
			exit 1
		}
		use_tools run "$SET"
	else
		read -r pid <"$D/step.pid"
		[ "$pid" = $$ ] || exit 1 # somebody else runs it
		read_conf
	fi
	snapshot_all || end "$failure"
	end
	exit 0
}

# watched waits until the watchdog has said that it is there.
watched() {
	tries=0
	until [ -s "$D/watch.pid" ]; do
		tries=$((tries + 1))
		[ $tries -le 200 ] || return 1
		nap
	done
}

# snapshot_all is what the watchdog watches. It says why in $failure.
snapshot_all() {
	phase 'looking for volumes'
	SESSION=''
	: >"$D/touched"
	: >"$W/last"
	: >"$W/made"
	command -v lvm >/dev/null || {
		failure='this guest has no LVM, so no volumes that it could snapshot'
		return 1
	}
	list_volumes && { ! sweep || list_volumes; } &&
		lvm_report pvs -o vg_uuid,pv_name >"$W/pvs" 2>"$W/err" || {
		words "$W/err"
		failure="LVM does not answer: $WORDS"
		return 1
	}
	choose || return 1
	watched || {
		failure='the watchdog does not start'
		return 1
	}
	for app in $APPS; do
		phase "preparing $app"
		"${app}_prepare"
	done
	# Those that an application wants last come last; it is told before them.
	snapshot_some 1 || return 1
	for app in $APPS; do
		phase "settling $app"
		"${app}_settle"
	done
	snapshot_some 0 || return 1
	phase 'reporting'
	report_snapshots || return 1
	for app in $APPS; do "${app}_finish"; done
}

# refuse VOLUME UUID says of a volume that it can't be snapshot, because of
# $failure.
refuse() {
	part
	[ -z "$1" ] || text volume "$1"
	text volumeId "$2"
	text error "$failure"
	send completion
	return 1
}

# choose writes $W/chosen: those of $W/volumes that will be snapshot.
choose() {
	set --
	while read -r uuid; do set -- "$@" "$uuid"; done <"$D/wanted"
	find_volumes "$PERCENT" "$@"
	: >"$W/chosen"
	for wanted; do
		found=''
		while IFS='|' read -r n uuid rest; do
			[ "$uuid" = "$wanted" ] && found=1 && printf '%s\n' "$n|$uuid|$rest" >>"$W/chosen"
		done <"$W/volumes"
		[ -n "$found" ] || {
			failure="no logical volume with UUID $wanted is in use in this guest"
			refuse '' "$wanted" || return 1
		}
	done
	[ $# -gt 0 ] || while IFS= read -r line; do
		IFS='|' read -r _ _ _ vol _ _ _ _ _ _ _ cannot _ <<-END
			$line
		END
		if [ -n "$cannot" ]; then warn "$vol is left out: $cannot"; else printf '%s\n' "$line" >>"$W/chosen"; fi
	done <"$W/volumes"
	[ -s "$W/chosen" ] || {
		failure='no logical volume of this guest is in use'
		return 1
	}
	while IFS='|' read -r n uuid group vol size dev kind extent free dm fs cannot mount; do
		failure=''
		[ "$kind" = lvm-thick ] && [ "$n" -lt 2 ] &&
			failure="$vol: its volume group has $free free extents of $extent bytes, which leaves less than two for the snapshot"
		[ -n "$cannot" ] && failure="$vol: $cannot"
		[ -z "$failure" ] || refuse "$vol" "$uuid" || return 1
	done <"$W/chosen"
	return 0
}

# snapshot_some LAST makes the snapshots of the volumes in $W/chosen that are not
# in $W/last (1) or are there (0), and then flushes the disks under them.
snapshot_some() {
	groups=''
	: >"$W/new"
	while IFS='|' read -r n uuid group vol size dev kind extent free dm fs cannot mount; do
		has "$W/last" "$uuid"
		[ $? -eq "$1" ] || continue
		snapshot || refuse "$vol" "$uuid" || return 1
		case " $groups " in *" $group "*) ;; *) groups="$groups $group" ;; esac
	done <"$W/chosen"
	[ -n "$groups" ] || return 0
	# shellcheck disable=SC2086 # UUIDs
	flush_groups $groups || {
		failure='the disks under the volumes can not be flushed'
		return 1
	}
	now up
	while IFS= read -r line; do printf '%s|%s\n' "$NOW" "$line"; done <"$W/new" >>"$W/made"
}

# snapshot makes one snapshot, of the volume in the variables. Nothing is frozen
# before: device-mapper freezes the file system by itself, for the instant it
# takes, and lvcreate on a frozen one breaks LVM.
snapshot() {
	phase "the snapshot of $vol"
	serial=$((${serial:-0} + 1))
	snapshot_name "$serial" "${vol#*/}" "${vol%/*}"
	printf '%s|%s\n' "$vol" "$dm" >>"$D/touched"
	now
	set -- lvcreate -s -n "$NAME" --addtag "cleave.$SET" --addtag "cleave.until=$((EPOCH + KEEP + 60))"
	[ "$kind" = lvm-thick ] && set -- "$@" --monitor n -l "$n"
	if lvm_change "$@" "$vol" >/dev/null 2>"$W/err"; then
		printf '%s|' "$NOW" "$uuid" "$group" "$vol" "${vol%/*}/$NAME" "$kind" "$fs" >>"$W/new"
		printf '%s\n' "$mount" >>"$W/new"
		return 0
	fi
	words "$W/err"
	failure="lvcreate for $vol: $WORDS"
	return 1
}

# report_snapshots writes one completion for each snapshot that is there and
# still valid.
report_snapshots() {
	our_snapshots || {
		words "$W/err"
		failure="LVM does not answer: $WORDS"
		return 1
	}
	while IFS='|' read -r ended began uuid group vol name kind fs mount; do
		snap='' attr='' failure=''
		while IFS='|' read -r its_name its_uuid its_attr; do
			[ "$its_name" = "$name" ] && snap=$its_uuid attr=$its_attr
		done <"$W/snapshots"
		case $snap,$attr in
		,*) failure="$vol: its snapshot $name is not there" ;;
		*,????[SIXM]*) failure="$vol: its snapshot is not valid (attributes $attr)" ;;
		esac
		part
		text volume "$vol"
		text volumeId "$uuid"
		text group "$group"
		text snapshot "$snap"
		text name "$name"
		text kind "$kind"
		text mount "$mount"
		text fs "$fs"
		text began "$began"
		text ended "$ended"
		text session "$SESSION"
		text error "$failure"
		send completion
		[ -z "$failure" ] || return 1
	done <"$W/made"
	return 0
}

# watch ends a step that did not end by itself, and drops the snapshots of one
# that did when their time is over. It runs from memory, depends on nobody, and
# was there before the first snapshot.
watch() {
	use_tools watch "$SET"
	echo -900 >/proc/self/oom_score_adj 2>/dev/null
	printf '%s\n' $$ >"$D/watch.pid"
	read_conf
	# The limit counts from the launch: what the host waits for includes all.
	read -r began <"$D/began"
	uptime
	left=$((LIMIT - (UP - began) / 100))
	[ "$left" -gt 0 ] && sleep "$left"
	during=''
	read -r during 2>/dev/null <"$D/phase"
	# A step that is ending at this moment gets a little longer to undo itself.
	claim "$D/ended" || [ -e "$D/done" ] || sleep 10
	if [ ! -e "$D/done" ]; then
		end_group "$D/step.pid" run
		undo_and_say "the guest's time limit of $LIMIT s passed during: $during"
	fi
	[ "$KEEP" -gt "$LIMIT" ] && sleep $((KEEP - LIMIT))
	undo 2>/dev/null
	forget
}

forget() {
	home=''
	[ -d "/dev/shm/cleave-$SET" ] && home=/dev/shm/cleave-$SET
	rm -rf "$D" ${home:+"$home"}
	for left in "$BASE"/*; do [ -e "$left" ] || rmdir "$BASE" 2>/dev/null; done
}

# drop ends the step if it runs and removes all that the set left here.
drop() {
	[ -d "$W" ] || mkdir -p "$W"
	claim "$D/ended" # nobody else writes an end any more
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
	exec 3<>"$D/over"
	if [ ! -e "$D/done" ]; then
		(
			sleep "$1"
			echo >&3
		) >/dev/null 2>&1 &
		timer=$!
		read -r _ <&3
		kill "$timer" 2>/dev/null
	fi
	[ -e "$D/report" ] && cat "$D/report"
	exit 0
}

# probe PERCENT says what a step would find, and changes nothing. Its lines are
# those of a report with other parts.
probe() {
	W=$BASE-probe.$$
	mkdir "$W" "$W/pg.1" || exit 1
	trap 'rm -rf "$W"' EXIT
	D=$W REPORT=''
	: >"$W/volumes"
	: >"$W/others"
	cannot=''
	if ! command -v lvm >/dev/null; then
		cannot='the guest has no LVM tools'
	elif ! list_volumes; then
		words "$W/err"
		cannot="LVM in the guest does not answer: $WORDS"
	else
		find_volumes "$1"
		command -v setsid >/dev/null || command -v systemd-run >/dev/null ||
			cannot='the guest has neither systemd-run nor setsid'
	fi
	part
	text cannot "$cannot"
	send probe
	while IFS='|' read -r n uuid group vol size dev kind extent free dm fs cannot mount; do
		[ -z "$cannot" ] && [ "$kind" = lvm-thick ] && [ "$n" -lt 2 ] &&
			cannot="its volume group has $free free extents, which leaves less than two for its snapshot"
		probe_volume "$vol" "$uuid" $((free * extent))
	done <"$W/volumes"
	cannot='not a logical volume'
	while IFS='|' read -r name kind size fs mount; do
		probe_volume "$name" '' 0
	done <"$W/others"
	for app in $APPS; do "${app}_probe"; done
	say end '{}'
}

probe_volume() {
	part
	text name "$1"
	text uuid "$2"
	text kind "$kind"
	text mount "$mount"
	text fs "$fs"
	raw size "$size"
	raw free "$3"
	text cannot "$cannot"
	send volume
}

main() {
	[ -n "$BASE" ] || {
		echo 'neither /run nor /dev/shm of this guest is in memory' >&2
		exit 1
	}
	exec </dev/null
	what=$1 SET=${2-} REPORT=''
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
