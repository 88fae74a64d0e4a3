# databases.sh answers for databases that have no application writer here yet.
# Their files in a snapshot are as after a crash: most recover from that, but
# nobody asked them, so it is no more than that, and it is said.

databases_settle() { :; }
databases_undo() { :; }
databases_prepare() { databases_find; }

# databases_find sets DATABASES to the names of known servers that run here.
databases_find() {
	DATABASES=' '
	for file in /proc/[0-9]*/comm; do
		read -r comm 2>/dev/null <"$file" || continue
		case $comm in
		mysqld | mariadbd | mongod | redis-server | valkey-server | clickhouse-serv | sqlservr | db2sysc | \
			influxd | cockroach | slapd | ora_pmon_*)
			case $DATABASES in *" $comm "*) ;; *) DATABASES="$DATABASES$comm " ;; esac
			;;
		esac
	done
}

databases_finish() {
	for comm in $DATABASES; do
		part
		text app "$comm"
		text state unknown
		text error 'there is no application writer for it: its files are as after a crash'
		send writer
	done
}

databases_probe() {
	databases_find
	for comm in $DATABASES; do
		part
		text app "$comm"
		raw running true
		text cannot 'there is no application writer for it'
		send app
	done
}
