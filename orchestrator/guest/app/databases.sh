# databases.sh answers for databases that have no application writer here yet.
# Their files in a snapshot are as after a crash: most recover from that, but
# nobody asked them, so it is no more than that, and it is said.

databases_tools() { :; }
databases_settle() { :; }
databases_undo() { :; }
databases_prepare() { databases_running >"$W/databases"; }

# databases_running prints the names of known servers that run here.
databases_running() {
	for stat in /proc/[0-9]*/comm; do
		read -r comm 2>/dev/null <"$stat" || continue
		case $comm in
		mysqld | mariadbd | mongod | redis-server | valkey-server | clickhouse-serv | sqlservr | db2sysc | \
			influxd | cockroach | slapd | ora_pmon_*) printf '%s\n' "$comm" ;;
		esac
	done | sort -u
}

databases_finish() {
	while read -r comm; do
		say writer "{\"app\":$(json "$comm"),\"state\":\"unknown\",\"error\":\"there is no application writer for it: its files are as after a crash\"}"
	done <"$W/databases"
}

databases_probe() {
	databases_running | while read -r comm; do
		say app "{\"app\":$(json "$comm"),\"running\":true,\"cannot\":\"there is no application writer for it\"}"
	done
}
