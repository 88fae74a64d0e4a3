# postgresql.sh: PostgreSQL 10 and later, every cluster that runs.
#
# A cluster whose files all lie on one volume gets a CHECKPOINT and no more: one
# snapshot is one instant, and PostgreSQL recovers from an instant.
#
# A cluster over several volumes is put into backup mode in one session
# (pg_backup_start, PostgreSQL's documentation 26.3.3 "Making a Base Backup
# Using the Low Level API"), and then the order is everything:
#   1. the volumes of data and tablespaces, in any order;
#   2. pg_backup_stop, which writes the end of the backup into the WAL;
#   3. the volume of the WAL, so that it holds all from the backup's start to
#      its end. A WAL that lacks the end record can't be recovered with the label.
# The label that pg_backup_stop returned goes into the report: to recover over
# several volumes it has to be put beside the data. Backup mode holds nobody up;
# it ends with its session.

# pg_postmasters sets PIDS to the PID of every postmaster: a server process whose
# parent is none.
pg_postmasters() {
	all=' ' PIDS=''
	for file in /proc/[0-9]*/comm; do
		read -r comm 2>/dev/null <"$file" || continue
		case $comm in
		postgres | postmaster | edb-postgres)
			read -r pid _ _ ppid _ 2>/dev/null <"${file%comm}stat" && all="$all$pid:$ppid "
			;;
		esac
	done
	for one in $all; do
		case $all in *" ${one#*:}:"*) ;; *) PIDS="$PIDS ${one%:*}" ;; esac
	done
}

# pg_find makes $W/pg.N for each cluster, with one file for each fact; "cannot"
# says why it can't take part.
pg_find() {
	pgs=0
	pg_postmasters
	for pid in $PIDS; do
		pgs=$((pgs + 1))
		C=$W/pg.$pgs
		[ -d "$C" ] || mkdir "$C" # the first one is there, made with $W by one call
		data=$(cd "/proc/$pid/cwd" && pwd -P) # a postmaster works in its data directory
		printf '%s\n' "$data" >"$C/data"
		pg_facts "$pid" "$data" || printf '%s\n' "$why" >"$C/cannot"
	done
	return 0
}

pg_facts() {
	if ! [ "/proc/$1/ns/mnt" -ef /proc/self/ns/mnt ]; then
		why='it runs in a container, where the guest agent does not reach it'
		return 1
	fi
	pid='' status=''
	{
		read -r pid && read -r _ && read -r _ && read -r port && read -r socket && read -r _ && read -r _ && read -r status
	} 2>/dev/null <"$2/postmaster.pid"
	if [ "$pid" != "$1" ]; then
		why="$2/postmaster.pid is not that of the running server"
		return 1
	fi
	case $status in
	ready* | standby*) ;;
	*)
		why='it is starting up or shutting down'
		return 1
		;;
	esac
	[ -n "$socket" ] || {
		why='it has no Unix socket'
		return 1
	}
	psql=$(readlink "/proc/$1/exe") psql=${psql% (deleted)}
	psql=${psql%/*}/psql
	[ -x "$psql" ] || {
		why='there is no psql beside its server'
		return 1
	}
	read -r version <"$2/PG_VERSION"
	printf '%s\n' "$version" >"$C/version"
	if [ "${version%%.*}" -lt 10 ]; then
		why="version $version is older than 10"
		return 1
	fi
	pg_places "$2" || return 1
	printf '%s\n' "$psql" "$socket" "$port" "$owner" >"$C/connect"
}

# pg_places finds the volumes under a cluster: $C/dirs, $C/volumes ("uuid|name",
# without doubles) and $C/wal (the UUID under the WAL). $owner is whom the server
# runs as: it refuses to run as root, and its data belongs to it.
pg_places() {
	data=$1
	: >"$C/dirs"
	: >"$C/volumes"
	set -- "$data" "$data/pg_wal" "$data"/pg_tblspc/*
	[ -e "$3" ] || set -- "$1" "$2"
	stat -L -c '%d %u %g %U' -- "$@" >"$C/stat" 2>/dev/null || {
		why="the owner of $data and what lies in it can't be found"
		return 1
	}
	owner=''
	while read -r number uid gid user; do
		[ -n "$owner" ] || owner="$uid $gid $user"
		# makedev(3)
		volume_at $((number >> 8 & 0xfff)):$((number & 0xff | number >> 12 & 0xfff00)) || {
			why="$1 does not lie on a logical volume"
			return 1
		}
		has "$C/volumes" "$VOLUME" || printf '%s\n' "$VOLUME" >>"$C/volumes"
		[ "$1" = "$data/pg_wal" ] && printf '%s\n' "${VOLUME%%|*}" >"$C/wal"
		if [ "$1" = "$data" ]; then
			printf '%s\n' "$data" >>"$C/dirs"
		elif [ -L "$1" ]; then
			(cd "$1" && pwd -P) >>"$C/dirs"
		fi
		shift
	done <"$C/stat"
}

# pg_open starts the session of cluster $N ($C): psql reads from a pipe that this
# shell holds open, so it ends when this shell does; it answers on another, which
# only psql holds open, so that its end is seen.
pg_open() {
	{
		read -r psql && read -r socket && read -r port && read -r owner group user
	} <"$C/connect"
	[ $FD -lt 8 ] || {
		echo 'more than 3 clusters that lie on several volumes, in one guest' >"$C/err"
		return 1
	}
	FD=$((FD + 2))
	printf '%s\n' "$FD" >"$C/fd"
	mkfifo "$C/in" "$C/out" && : >"$C/err" || return 1
	eval "exec $FD<>\"\$C/in\""
	(
		for n in 3 4 5 6 7 8 9; do eval "exec $n>&-"; done
		unset LD_LIBRARY_PATH
		HOME=/nonexistent PGPASSFILE=/dev/null PGCLIENTENCODING=UTF8 PGAPPNAME=cleave PGCONNECT_TIMEOUT=15
		export HOME PGPASSFILE PGCLIENTENCODING PGAPPNAME PGCONNECT_TIMEOUT
		cd / && exec setpriv --reuid="$owner" --regid="$group" --init-groups -- \
			"$psql" -XAtq -w -v ON_ERROR_STOP=1 -v VERBOSITY=terse -h "$socket" -p "$port" -U "$user" -d postgres
	) <"$C/in" >"$C/out" 2>"$C/err" &
	printf '%s\n' $! >"$C/psql"
	eval "exec $((FD - 1))<\"\$C/out\""
	pg_ask 'select pg_backend_pid();' && printf '%s\n' "$ANSWER" >"$C/backend"
}

# pg_ask SQL runs it in the session of $C and sets ANSWER to what it returns.
pg_ask() {
	read -r fd <"$C/fd"
	ANSWER=''
	printf '%s\n\\echo @\n' "$1" >"$C/in"
	while IFS= read -r line <&$((fd - 1)); do
		[ "$line" = @ ] && return 0
		ANSWER="$ANSWER${ANSWER:+
}$line"
	done
	return 1
}

# pg_fail WHY marks the cluster $C as one that did not take part.
pg_fail() {
	printf '%s\n' "$1" >"$C/cannot"
	pg_close
}

# pg_close ends the session of $C: in good order, or not if it failed.
pg_close() {
	[ -s "$C/psql" ] || return 0
	read -r client <"$C/psql"
	read -r fd <"$C/fd"
	if [ -e "$C/cannot" ]; then
		kill "$client" 2>/dev/null
	else
		printf '\\q\n' >"$C/in"
	fi
	wait "$client" 2>/dev/null
	eval "exec $fd>&- $((fd - 1))<&-"
	[ "$FD" -ne "$fd" ] || FD=$((fd - 2))
	: >"$C/psql"
}

postgresql_prepare() {
	pg_find
	N=0 FD=2
	while [ $N -lt $pgs ]; do
		N=$((N + 1)) C=$W/pg.$((N))
		[ -e "$C/cannot" ] && continue
		now
		printf '%s\n' "$NOW" >"$C/began"
		several=''
		while IFS='|' read -r uuid vol; do
			several=$several+
			pg_is_chosen "$uuid" || printf '%s\n' "$vol was not asked for, and holds part of it" >"$C/cannot"
		done <"$C/volumes"
		[ -e "$C/cannot" ] && continue
		read -r data <"$C/data"
		phase "PostgreSQL in $data"
		pg_open || {
			words "$C/err"
			pg_fail "psql: $WORDS"
			continue
		}
		read -r version <"$C/version"
		if [ "$several" = + ]; then
			echo checkpoint >"$C/method"
			if pg_ask 'checkpoint;'; then
				pg_close
			else
				words "$C/err"
				pg_fail "CHECKPOINT: $WORDS"
			fi
			continue
		fi
		if [ "${version%%.*}" -ge 15 ]; then
			start="select pg_backup_start('cleave $SET', true);"
			stop='pg_backup_stop(false)'
		else
			start="select pg_start_backup('cleave $SET', true, false);"
			stop='pg_stop_backup(false, false)'
		fi
		printf '%s\n' "$stop" >"$C/stop"
		echo pg_backup_start >"$C/method"
		pg_ask "$start" || {
			words "$C/err"
			pg_fail "pg_backup_start: $WORDS"
			continue
		}
		SESSION=$SET
		read -r wal <"$C/wal"
		printf '%s\n' "$wal" >>"$W/last"
	done
}

pg_is_chosen() {
	while IFS='|' read -r _ chosen _; do
		[ "$chosen" = "$1" ] && return 0
	done <"$W/chosen"
	return 1
}

# postgresql_settle ends backup mode before the WAL's volume is snapshot.
postgresql_settle() {
	N=0
	while [ $N -lt $pgs ]; do
		N=$((N + 1)) C=$W/pg.$((N))
		[ -s "$C/stop" ] && [ ! -e "$C/cannot" ] || continue
		# Another cluster may want this one's data to be last, after this one's WAL.
		read -r wal <"$C/wal"
		while IFS='|' read -r uuid vol; do
			[ "$uuid" != "$wal" ] && has "$W/last" "$uuid" &&
				pg_fail "$vol holds its data and the WAL of another cluster: there is no order that suits both"
		done <"$C/volumes"
		[ -e "$C/cannot" ] && continue
		read -r stop <"$C/stop"
		# Two lines, each a JSON string as PostgreSQL itself writes it.
		if pg_ask "select to_json(labelfile)::text || E'\\n' || to_json(coalesce(spcmapfile, ''))::text from $stop;"; then
			printf '%s\n' "$ANSWER" >"$C/label"
		else
			words "$C/err"
			pg_fail "pg_backup_stop: $WORDS"
		fi
	done
}

postgresql_finish() {
	N=0
	while [ $N -lt $pgs ]; do
		N=$((N + 1)) C=$W/pg.$((N))
		label='""' map='""' session=''
		if [ -s "$C/label" ] && [ ! -e "$C/cannot" ]; then
			session=$SESSION
			{
				read -r label
				read -r map
			} <"$C/label"
			# A checkpoint meanwhile may have recycled the WAL that recovery begins with.
			first=${label#*START WAL LOCATION: } first=${first#*(file } first=${first%%)*}
			case $first in '' | *[!0-9A-F]*) first=none ;; esac
			read -r data <"$C/data"
			[ -e "$data/pg_wal/$first" ] ||
				pg_fail "the WAL of the backup's start ($first) is gone: a checkpoint came between; try again"
		fi
		pg_close
		pg_answer
	done
	[ $pgs -eq 0 ] || return 0
	for server in /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres /usr/bin/postgres; do
		[ -x "$server" ] && say writer '{"app":"postgresql","state":"not-running"}' && break
	done
}

# pg_answer writes the answer of the cluster $C.
pg_answer() {
	state=stable cannot='' method='' version='' began=''
	[ -e "$C/cannot" ] && state=failed && read -r cannot <"$C/cannot"
	[ -s "$C/method" ] && read -r method <"$C/method"
	[ -s "$C/version" ] && read -r version <"$C/version"
	read -r data <"$C/data"
	now up
	ended=$NOW began=$NOW
	[ -s "$C/began" ] && read -r began <"$C/began"
	[ -s "$C/dirs" ] || printf '%s\n' "$data" >"$C/dirs"
	[ "$state" = failed ] && label='""' session='' map='""'
	part
	text name "$data"
	pg_volumes
	list include <"$C/dirs"
	for file in postmaster.pid postmaster.opts pg_stat_tmp 'base/pgsql_tmp*'; do printf '%s\n' "$data/$file"; done >"$C/exclude"
	list exclude <"$C/exclude"
	text restore STOP_RESTORE_START
	component=$O
	part
	text app postgresql
	text version "$version"
	text state "$state"
	text method "$method"
	text session "$session"
	text began "$began"
	text ended "$ended"
	raw label "$label"
	text error "$cannot"
	[ "$map" = '""' ] || raw files "[{\"name\":\"tablespace_map\",\"content\":$map}]"
	raw components "[{$component}]"
	send writer
}

# pg_volumes puts the names of the volumes under $C into the part.
pg_volumes() {
	: >"$C/names"
	[ ! -e "$C/volumes" ] || while IFS='|' read -r _ vol; do printf '%s\n' "$vol"; done <"$C/volumes" >>"$C/names"
	list volumes <"$C/names"
}

# postgresql_undo ends the sessions: psql, and the server's process behind it,
# which may be waiting for a checkpoint and would not see that psql is gone.
postgresql_undo() {
	for C in "$W"/pg.*; do
		[ -s "$C/psql" ] || continue
		read -r pid <"$C/psql"
		kill "$pid" 2>/dev/null
		if [ -s "$C/backend" ]; then
			read -r pid <"$C/backend"
			read -r comm 2>/dev/null <"/proc/$pid/comm" && [ "$comm" = postgres ] && kill -s TERM "$pid" 2>/dev/null
		fi
		: >"$C/psql"
	done
}

postgresql_probe() {
	pg_find
	N=0
	while [ $N -lt $pgs ]; do
		N=$((N + 1)) C=$W/pg.$((N)) cannot='' version=''
		[ -e "$C/cannot" ] && read -r cannot <"$C/cannot"
		[ -s "$C/version" ] && read -r version <"$C/version"
		part
		text app postgresql
		text version "$version"
		raw running true
		pg_volumes
		text cannot "$cannot"
		send app
	done
}
