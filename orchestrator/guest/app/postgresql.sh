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

# postgresql_tools: psql of the versions that run, from beside the server.
postgresql_tools() {
	for pid in $(pg_postmasters); do
		psql=$(pg_beside "$pid" psql)
		case $psql in
		*[!A-Za-z0-9/._+-]*) ;;
		?*) printf '%s\n' "$psql" ;;
		esac
	done | sort -u | head -n 1
}

# pg_postmasters prints the PID of every postmaster: a server process whose
# parent is none.
pg_postmasters() {
	all=' '
	for stat in /proc/[0-9]*/stat; do
		read -r pid comm _ ppid _ 2>/dev/null <"$stat" || continue
		case $comm in "(postgres)" | "(postmaster)" | "(edb-postgres)") all="$all$pid:$ppid " ;; esac
	done
	for one in $all; do
		case $all in *" ${one#*:}:"*) ;; *) printf '%s\n' "${one%:*}" ;; esac
	done
}

# pg_beside PID PROGRAM prints the program in the directory of the server.
pg_beside() {
	exe=$(readlink "/proc/$1/exe") || return 1
	exe=${exe% (deleted)}
	[ -x "${exe%/*}/$2" ] && printf '%s' "${exe%/*}/$2"
}

# pg_find makes $W/pg.N for each cluster, with one file for each fact; "cannot"
# says why it can't take part.
pg_find() {
	pgs=0
	for pid in $(pg_postmasters); do
		pgs=$((pgs + 1))
		C=$W/pg.$pgs
		mkdir -p "$C"
		data=$(readlink "/proc/$pid/cwd") # a postmaster works in its data directory
		printf '%s\n' "$data" >"$C/data"
		pg_facts "$pid" "$data" || printf '%s\n' "$why" >"$C/cannot"
	done
	return 0
}

pg_facts() {
	if [ "$(readlink "/proc/$1/ns/mnt")" != "$(readlink /proc/self/ns/mnt)" ]; then
		why='it runs in a container, where the guest agent does not reach it'
		return 1
	fi
	if ! {
		read -r pid && read -r _ && read -r _ && read -r port && read -r socket
	} 2>/dev/null <"$2/postmaster.pid" || [ "$pid" != "$1" ]; then
		why="$2/postmaster.pid is not that of the running server"
		return 1
	fi
	case $(sed -n 8p "$2/postmaster.pid") in
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
	psql=$(pg_beside "$1" psql) || {
		why='there is no psql beside its server'
		return 1
	}
	read -r version <"$2/PG_VERSION"
	printf '%s\n' "$version" >"$C/version"
	if [ "${version%%.*}" -lt 10 ]; then
		why="version $version is older than 10"
		return 1
	fi
	# The server refuses to run as root, and its data belongs to whom it runs as.
	owner=$(stat -c '%u %g %U' "$2") || {
		why="the owner of $2 is unknown"
		return 1
	}
	printf '%s\n' "$psql" "$socket" "$port" "$owner" >"$C/connect"
	pg_places "$2"
}

# pg_places finds the volumes under a cluster: $C/dirs, $C/volumes ("uuid|name",
# without doubles) and $C/wal (the UUID under the WAL).
pg_places() {
	: >"$C/dirs"
	: >"$C/all"
	for dir in "$1" "$1/pg_wal" "$1"/pg_tblspc/*; do
		[ -e "$dir" ] || continue
		found=$(volume_at "$(dev_of "$dir")") || {
			why="$dir does not lie on a logical volume"
			return 1
		}
		printf '%s\n' "$found" >>"$C/all"
		[ "$dir" = "$1/pg_wal" ] && printf '%s\n' "${found%%|*}" >"$C/wal"
		if [ "$dir" = "$1" ]; then printf '%s\n' "$dir" >>"$C/dirs"; else
			[ -L "$dir" ] && readlink -f "$dir" >>"$C/dirs"
		fi
	done
	sort -u -t'|' -k2 "$C/all" >"$C/volumes"
}

# pg_open starts the session of cluster $N ($C): psql reads from a fifo that
# this shell holds open, so it ends when this shell does.
pg_open() {
	{
		read -r psql && read -r socket && read -r port && read -r owner group user
	} <"$C/connect"
	mkfifo "$C/in" && : >"$C/out" && : >"$C/err" || return 1
	fd=$((N + 2))
	[ $fd -le 9 ] || {
		echo 'more than 7 clusters in one guest' >"$C/err"
		return 1
	}
	eval "exec $fd<>\"\$C/in\""
	if [ -x "${CLEAVE_TOOLS:-/nowhere}/bin/psql" ]; then psql=$CLEAVE_TOOLS/bin/psql; fi
	(
		for n in 3 4 5 6 7 8 9; do eval "exec $n>&-"; done
		HOME=/nonexistent PGPASSFILE=/dev/null PGCLIENTENCODING=UTF8 PGAPPNAME=cleave PGCONNECT_TIMEOUT=15
		export HOME PGPASSFILE PGCLIENTENCODING PGAPPNAME PGCONNECT_TIMEOUT
		cd / && exec setpriv --reuid="$owner" --regid="$group" --init-groups -- \
			"$psql" -XAtq -w -v ON_ERROR_STOP=1 -v VERBOSITY=terse -h "$socket" -p "$port" -U "$user" -d postgres
	) <"$C/in" >"$C/out" 2>"$C/err" &
	printf '%s\n' $! >"$C/psql"
	printf '0\n' >"$C/asked"
	pg_ask 'select pg_backend_pid();' >"$C/backend"
}

# pg_ask SQL runs it in the session of $C and prints what it returns.
pg_ask() {
	read -r asked <"$C/asked"
	read -r client <"$C/psql"
	asked=$((asked + 1))
	printf '%s\n' "$asked" >"$C/asked"
	printf '%s\n\\echo @%d\n' "$1" "$asked" >"$C/in"
	until grep -qx "@$asked" "$C/out"; do
		kill -s 0 "$client" 2>/dev/null || return 1
		nap
	done
	if [ "$asked" -eq 1 ]; then
		sed -e '/^@1$/,$d' "$C/out"
	else
		sed -e "1,/^@$((asked - 1))\$/d" -e "/^@$asked\$/,\$d" "$C/out"
	fi
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
	if [ -e "$C/cannot" ]; then
		kill "$client" 2>/dev/null
	else
		printf '\\q\n' >"$C/in"
	fi
	wait "$client" 2>/dev/null
	rm -f "$C/psql"
}

postgresql_prepare() {
	pg_find
	N=0
	while [ $N -lt $pgs ]; do
		N=$((N + 1)) C=$W/pg.$((N))
		[ -e "$C/cannot" ] && continue
		printf '%s\n' "$(now)" >"$C/began"
		while IFS='|' read -r uuid vol; do
			grep -q "^[0-9]*|$uuid|" "$W/chosen" || printf '%s\n' "$vol was not asked for, and holds part of it" >"$C/cannot"
		done <"$C/volumes"
		[ -e "$C/cannot" ] && continue
		phase "PostgreSQL in $(cat "$C/data")"
		pg_open || {
			pg_fail "psql: $(words "$C/err")"
			continue
		}
		read -r version <"$C/version"
		if [ "$(wc -l <"$C/volumes")" -eq 1 ]; then
			echo checkpoint >"$C/method"
			pg_ask 'checkpoint;' >/dev/null || pg_fail "CHECKPOINT: $(words "$C/err")"
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
		pg_ask "$start" >/dev/null || {
			pg_fail "pg_backup_start: $(words "$C/err")"
			continue
		}
		SESSION=$SET
		cat "$C/wal" >>"$W/last"
	done
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
			[ "$uuid" != "$wal" ] && grep -qx "$uuid" "$W/last" &&
				pg_fail "$vol holds its data and the WAL of another cluster: there is no order that suits both"
		done <"$C/volumes"
		[ -e "$C/cannot" ] && continue
		read -r stop <"$C/stop"
		# Two lines, each a JSON string as PostgreSQL itself writes it.
		pg_ask "select to_json(labelfile)::text || E'\\n' || to_json(coalesce(spcmapfile, ''))::text from $stop;" >"$C/label" ||
			pg_fail "pg_backup_stop: $(words "$C/err")"
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
			first=$(printf '%s' "$label" | sed -n 's/.*START WAL LOCATION: [^ ]* (file \([0-9A-F]*\)).*/\1/p')
			read -r data <"$C/data"
			[ -n "$first" ] && [ -e "$data/pg_wal/$first" ] ||
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
	[ -s "$C/began" ] && read -r began <"$C/began"
	read -r data <"$C/data"
	[ -e "$C/volumes" ] || : >"$C/volumes"
	[ -e "$C/dirs" ] || printf '%s\n' "$data" >"$C/dirs"
	vols=$(cut -d'|' -f2 "$C/volumes" | json_list)
	include=$(json_list <"$C/dirs")
	exclude=$(printf "$(printf '%s' "$data" | sed 's/[%\\]/&&/g')/%s\n" postmaster.pid postmaster.opts pg_stat_tmp 'base/pgsql_tmp*' | json_list)
	files=''
	[ "$map" != '""' ] && files=",\"files\":[{\"name\":\"tablespace_map\",\"content\":$map}]"
	[ "$state" = failed ] && label='""' session='' files=''
	say writer "$(printf '{"app":"postgresql","version":%s,"state":"%s","method":"%s","session":"%s","began":"%s","ended":"%s","label":%s,"error":%s%s,"components":[{"name":%s,"volumes":%s,"include":%s,"exclude":%s,"restore":"STOP_RESTORE_START"}]}' \
		"$(json "$version")" "$state" "$method" "$session" "${began:-$(now)}" "$(now up)" "$label" "$(json "$cannot")" "$files" \
		"$(json "$data")" "$vols" "$include" "$exclude")"
}

# postgresql_undo ends the sessions: psql, and the server's process behind it,
# which may be waiting for a checkpoint and would not see that psql is gone.
postgresql_undo() {
	for C in "$W"/pg.*; do
		[ -e "$C/data" ] || continue
		pid=''
		[ -s "$C/psql" ] && read -r pid <"$C/psql"
		case $pid in
		?*) kill "$pid" 2>/dev/null ;;
		esac
		[ -s "$C/backend" ] && read -r pid <"$C/backend" || continue
		read -r _ comm _ 2>/dev/null <"/proc/$pid/stat" || continue
		[ -e "$C/psql" ] && case $comm in *postgres*) kill -s TERM "$pid" 2>/dev/null ;; esac
	done
	rm -f "$W"/pg.*/psql
}

postgresql_probe() {
	pg_find
	N=0
	while [ $N -lt $pgs ]; do
		N=$((N + 1)) C=$W/pg.$((N)) cannot='' version=''
		[ -e "$C/cannot" ] && read -r cannot <"$C/cannot"
		[ -s "$C/version" ] && read -r version <"$C/version"
		[ -e "$C/volumes" ] || : >"$C/volumes"
		say app "{\"app\":\"postgresql\",\"version\":$(json "$version"),\"running\":true,\"volumes\":$(cut -d'|' -f2 "$C/volumes" | json_list),\"cannot\":$(json "$cannot")}"
	done
}
