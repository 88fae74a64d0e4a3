# lvm.sh: logical volumes. Names that LVM gives are made of [A-Za-z0-9+_.-] and
# are quoted all the same.

# Without udev nobody answers LVM's cookies, and it would wait for ever.
NOUDEV=''
[ -S /run/udev/control ] || NOUDEV='activation{udev_sync=0 udev_rules=0} devices{obtain_device_list_from_udev=0}'
# No backup of the metadata to /etc: that may lie on a volume being snapshot.
lvs_() { lvm lvs ${NOUDEV:+--config "$NOUDEV"} --noheadings --nosuffix --units b --separator '|' "$@" </dev/null; }
lvm_change() {
	verb=$1
	shift
	lvm "$verb" ${NOUDEV:+--config "$NOUDEV"} -An -y -q -q "$@" </dev/null
}

# mounted DEV prints "TYPE MOUNTPOINT" of the first mount of a whole file system.
mounted() {
	awk -v dev="$1" '$3 == dev && $4 == "/" {
		for (i = 7; i < NF; i++) if ($i == "-") { print $(i + 1), $5; exit }
	}' "$MOUNTS"
}
MOUNTS=/proc/self/mountinfo
[ -r /proc/1/mountinfo ] && MOUNTS=/proc/1/mountinfo

# find_volumes writes $W/volumes, one line for each logical volume in use:
#   uuid|group uuid|vg/lv|bytes|major:minor|kind|extent bytes|free extents|dm name|fs|cannot|mount
# A volume that nobody has open is at rest: the split holds what it holds.
find_volumes() {
	: >"$W/volumes"
	if ! lvs_ -o lv_uuid,vg_uuid,vg_name,lv_name,lv_size,lv_kernel_major,lv_kernel_minor,lv_attr,vg_extent_size,vg_free_count,lv_dm_path \
		>"$W/lvs" 2>"$W/err"; then
		return 1
	fi
	while IFS='|' read -r uuid group vg lv size major minor attr extent free dm; do
		uuid=${uuid##* }
		case $attr in
		?????o*) ;; # open
		*) continue ;;
		esac
		case $lv in cleave-*) continue ;; esac
		dev=$major:$minor cannot='' fs='' mount='' kind=lvm-thick
		name=$(readlink "/sys/dev/block/$dev")
		grep -q "^/dev/${name##*/} " /proc/swaps 2>/dev/null && continue
		case $attr in
		V*) kind=lvm-thin ;;
		[-omrC]*) ;;
		t* | T* | e* | d* | D*) continue ;; # a pool: its volumes stand for it
		*) cannot='it is a snapshot itself, or being merged' ;;
		esac
		read -r fs mount <<-END
			$(mounted "$dev")
		END
		for holder in "/sys/dev/block/$dev/holders"/*; do
			[ -e "$holder" ] || continue
			cannot="${holder##*/} lies on it, and a file system there would not be frozen"
		done
		printf '%s|' "$uuid" "$group" "$vg/$lv" "$size" "$dev" "$kind" "$extent" "$free" "${dm##*/}" "$fs" "$cannot"
		printf '%s\n' "$mount"
	done <"$W/lvs" >"$W/volumes"
}

# share_space PERCENT reads volumes and writes, with the same lines, how many
# extents each thick snapshot gets in front ("0|" if its group has no room): the
# given share of its origin, or its part of what the group has left if that is
# less, and never fewer than two.
share_space() {
	awk -F'|' -v OFS='|' -v percent="$1" '
		{ line[NR] = $0; group[NR] = $2; kind[NR] = $6; free[NR] = $8
		  size[NR] = $4 / $7; if ($6 == "lvm-thick") total[$2] += size[NR] }
		END { for (i = 1; i <= NR; i++) {
			n = 0
			if (kind[i] == "lvm-thick") {
				want = int(size[i] * percent / 100 + 0.999999)
				if (want < 2) want = 2
				part = int(free[i] * size[i] / total[group[i]])
				n = want < part ? want : part
				if (n < 2) n = 0
			}
			print n, line[i]
		} }'
}

# volume_at DEV prints "uuid|vg/lv" of the volume in use with that number.
volume_at() {
	awk -F'|' -v dev="$1" '$5 == dev { print $1 "|" $3; found = 1; exit } END { exit !found }' "$W/volumes"
}

# flush_group GROUP makes what LVM wrote to the group's disks stable: it writes
# its metadata with O_DIRECT and does not flush. fsync of a block device does.
flush_group() {
	while IFS='|' read -r owner pv; do
		[ "${owner##* }" = "$1" ] || continue
		case $FLUSH in
		sync) sync "$pv" || return 1 ;;
		*) dd if=/dev/null of="$pv" conv=notrunc,fsync 2>/dev/null || return 1 ;;
		esac
	done <"$W/pvs"
}

# snapshot_name LV prints the name of its snapshot. device-mapper's names end at
# 127 characters, with hyphens doubled and "-real" or "-cow" behind.
snapshot_name() {
	if [ $((2 * (${#2} + ${#3}))) -le 60 ]; then
		printf 'cleave-%s-%s' "$SET" "$2"
	else
		printf 'cleave-%s-%s' "$SET" "$1"
	fi
}

# our_snapshots prints "vg/lv|uuid|attr|origin uuid|tags" of the set's snapshots.
our_snapshots() {
	lvs_ -o vg_name,lv_name,lv_uuid,lv_attr,origin_uuid,lv_tags 2>/dev/null |
		while IFS='|' read -r vg lv uuid attr origin tags; do
			case $lv in "cleave-$SET-"*) ;; *) continue ;; esac
			case ",$tags," in *",cleave.$SET,"*) ;; *) continue ;; esac
			printf '%s/%s|%s|%s|%s|%s\n' "${vg##* }" "$lv" "$uuid" "$attr" "$origin" "$tags"
		done
}

# remove_snapshots removes the set's snapshots, and says on stderr what stays.
remove_snapshots() {
	round=0
	while [ $round -lt 5 ]; do
		left=$(our_snapshots | cut -d'|' -f1)
		[ -z "$left" ] && return 0
		for vol in $left; do
			lvm_change lvremove -f "$vol" >/dev/null 2>"$W/err"
		done
		round=$((round + 1))
		[ $round -gt 1 ] && sleep 1
	done
	left=$(our_snapshots | cut -d'|' -f1)
	[ -z "$left" ] && return 0
	echo "$left can't be removed: $(words "$W/err")" >&2
	return 1
}

# resume_devices lets go of what an lvcreate that was killed left suspended:
# only devices of volumes that this set touched, and of its own snapshots.
resume_devices() {
	[ -s "$D/touched" ] || return 0
	dmsetup info -c --noheadings --separator '|' -o suspended,name 2>/dev/null |
		sed -n 's/^ *Suspended|//p' >"$W/suspended"
	[ -s "$W/suspended" ] || return 0
	ours=-$(printf 'cleave-%s-' "$SET" | sed 's/-/--/g')
	{
		grep -F -e "$ours" "$W/suspended"
		# The store and the origin's data first, the origin itself last.
		while IFS='|' read -r _ dm; do
			for dev in "$dm-cow" "$dm-real" "$dm"; do grep -Fx -e "$dev" "$W/suspended"; done
		done <"$D/touched"
	} >"$W/devices"
	[ -s "$W/devices" ] || return 0
	while read -r dev; do dmsetup resume --noudevsync "$dev" 2>/dev/null; done <"$W/devices"
	remove_snapshots 2>/dev/null
	while IFS='|' read -r vol _; do
		# The tables may be ahead of the metadata: make them agree.
		lvm_change lvchange --refresh "$vol" >/dev/null 2>&1
	done <"$D/touched"
}

# sweep removes snapshots of any set whose time is over: the guest was started
# anew since, and the timer that would have dropped them is gone.
sweep() {
	today=$(date +%s)
	lvs_ -o vg_name,lv_name,lv_tags 2>/dev/null | while IFS='|' read -r vg lv tags; do
		case $lv in cleave-*) ;; *) continue ;; esac
		for tag in $(printf '%s' "$tags" | tr ',' ' '); do
			case $tag in
			cleave.until=*[!0-9]*) ;;
			cleave.until=?*)
				[ "${tag#cleave.until=}" -lt "$today" ] && lvm_change lvremove -f "${vg##* }/$lv" >/dev/null 2>&1
				;;
			esac
		done
	done
}
