# lvm.sh: logical volumes. Names that LVM gives are made of [A-Za-z0-9+_.-] and
# are quoted all the same.

# Without udev nobody answers LVM's cookies, and it would wait for ever.
NOUDEV=''
[ -S /run/udev/control ] || NOUDEV='activation{udev_sync=0 udev_rules=0} devices{obtain_device_list_from_udev=0}'
# No backup of the metadata to /etc: that may lie on a volume being snapshot.
lvm_report() {
	verb=$1
	shift
	lvm "$verb" ${NOUDEV:+--config "$NOUDEV"} --noheadings --nosuffix --units b --separator '|' "$@" </dev/null
}
lvm_change() {
	verb=$1
	shift
	lvm "$verb" ${NOUDEV:+--config "$NOUDEV"} -An -y -q -q "$@" </dev/null
}

SYSFS=/sys SWAPS=/proc/swaps MOUNTS=/proc/self/mountinfo
[ -r /proc/1/mountinfo ] && MOUNTS=/proc/1/mountinfo

# list_volumes writes $W/lvs: all that the other functions know of logical
# volumes.
list_volumes() {
	lvm_report lvs -o lv_uuid,vg_uuid,vg_name,lv_name,lv_size,lv_kernel_major,lv_kernel_minor,lv_attr,vg_extent_size,vg_free_count,lv_dm_path,lv_tags \
		>"$W/lvs" 2>"$W/err"
}

# find_volumes PERCENT [UUID…] reads $W/lvs and writes $W/volumes, one line for
# each logical volume in use, and $W/others; see volumes.awk.
#   extents|uuid|group uuid|vg/lv|bytes|major:minor|kind|extent bytes|free extents|dm name|fs|cannot|mount
find_volumes() {
	percent=$1
	shift
	wanted=$*
	set -- "$SYSFS"/class/block/*/holders/*
	: >"$W/others"
	awk -v percent="$percent" -v wanted="$wanted" -v holders="$*" -v mounts="$MOUNTS" -v swaps="$SWAPS" \
		-v sysfs="$SYSFS" -v others="$W/others" "$VOLUMES_AWK" "$W/lvs" >"$W/volumes"
}

# volume_at DEV sets VOLUME to "uuid|vg/lv" of the volume in use with that number.
volume_at() {
	while IFS='|' read -r _ uuid _ vol _ dev _; do
		[ "$dev" = "$1" ] && VOLUME="$uuid|$vol" && return 0
	done <"$W/volumes"
	return 1
}

# flush_groups GROUP… makes what LVM wrote to the groups' disks stable: it writes
# its metadata with O_DIRECT and does not flush. fsync of a block device does.
flush_groups() {
	while IFS='|' read -r owner pv; do
		for group; do
			[ "${owner##* }" = "$group" ] || continue
			dd if=/dev/null of="$pv" conv=notrunc,fsync 2>/dev/null || return 1
			break
		done
	done <"$W/pvs"
}

# snapshot_name LV sets NAME to the name of its snapshot. device-mapper's names
# end at 127 characters, with hyphens doubled and "-real" or "-cow" behind.
snapshot_name() {
	NAME=cleave-$SET-$1
	[ $((2 * (${#2} + ${#3}))) -gt 60 ] || NAME=cleave-$SET-$2
}

# our_snapshots writes "vg/lv|uuid|attr" of the set's snapshots to $W/snapshots.
our_snapshots() {
	lvm_report lvs -o vg_name,lv_name,lv_uuid,lv_attr -S "$(ours)" >"$W/snapshots.all" 2>"$W/err" || return 1
	while IFS='|' read -r vg lv rest; do
		printf '%s/%s|%s\n' "${vg##* }" "$lv" "$rest"
	done <"$W/snapshots.all" >"$W/snapshots"
}

# ours prints what LVM selects the set's snapshots by (lvmreport(7)).
ours() { printf 'lv_tags=cleave.%s && lv_name=~"^cleave-%s-"' "$SET" "$SET"; }

# remove_snapshots removes the set's snapshots, by one call of LVM where all goes
# well, and says on stderr what stays.
remove_snapshots() {
	round=0
	until lvm_change lvremove -f -S "$(ours)" >/dev/null 2>"$W/remove.err"; do
		round=$((round + 1))
		if [ $round -ge 5 ]; then
			our_snapshots && [ ! -s "$W/snapshots" ] && return 0
			words "$W/remove.err"
			echo "the set's snapshots can't be removed: $WORDS" >&2
			return 1
		fi
		sleep 1
	done
}

# resume_devices lets go of what an lvcreate that was killed left suspended:
# only devices of volumes that this set touched, and of its own snapshots. What
# it runs before they are resumed is in memory.
resume_devices() {
	[ -s "$D/touched" ] && [ ! -e "$D/whole" ] || return 0
	dmsetup info -c --noheadings --separator '|' -o suspended,name >"$W/suspended" 2>/dev/null
	# In device-mapper's names a hyphen is doubled, but for the one after the group.
	marker='' rest=cleave-$SET-
	while [ -n "$rest" ]; do
		marker=$marker${rest%%-*}-- rest=${rest#*-}
	done
	resumed=''
	while IFS='|' read -r state dev; do
		case $state,$dev in *Suspended,*"-$marker"*) resume "$dev" ;; esac
	done <"$W/suspended"
	# The store and the origin's data first, the origin itself last.
	while IFS='|' read -r _ dm; do
		for part in "$dm-cow" "$dm-real" "$dm"; do
			while IFS='|' read -r state dev; do
				case $state,$dev in *Suspended,"$part") resume "$dev" ;; esac
			done <"$W/suspended"
		done
	done <"$D/touched"
	[ -n "$resumed" ] || return 0
	remove_snapshots 2>/dev/null
	while IFS='|' read -r vol _; do
		# The tables may be ahead of the metadata: make them agree.
		lvm_change lvchange --refresh "$vol" >/dev/null 2>&1
	done <"$D/touched"
}

resume() {
	dmsetup resume --noudevsync "$1" 2>/dev/null
	resumed=1
}

# sweep removes the snapshots in $W/lvs that should not be there: the set's own,
# from before a reboot, and those of any set whose time is over: the guest was
# started anew since, and the timer that would have dropped them is gone. It
# fails if there were none.
sweep() {
	now
	set --
	while IFS='|' read -r _ _ vg lv _ _ _ _ _ _ _ tags; do
		case $lv in cleave-*) ;; *) continue ;; esac
		until=${tags##*cleave.until=} until=${until%%,*}
		case ,$tags, in
		*",cleave.$SET,"*) set -- "$@" "$vg/$lv" ;;
		*,cleave.until=[0-9]*)
			case $until in *[!0-9]*) continue ;; esac
			[ "$until" -ge "$EPOCH" ] || set -- "$@" "$vg/$lv"
			;;
		esac
	done <"$W/lvs"
	[ $# -gt 0 ] && lvm_change lvremove -f "$@" >/dev/null 2>&1
}
