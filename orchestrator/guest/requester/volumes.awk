# volumes.awk reads what `lvm lvs` prints and the kernel's lists of mounts and
# swap areas, all at once, for each program that is started costs the guest time.
#
# It prints one line for each logical volume in use, in the fields of
# find_volumes; a volume that nobody has open is at rest, and the split holds
# what it holds. Into the file named others go the file systems that are mounted
# read-write from a block device which is no logical volume:
#   name|kind|bytes|fs|mount
#
# percent: the share of its origin that a thick snapshot's store gets, or its part
# of what the group has left if that is less, and never fewer than two extents: 0
# stands for a group without room. wanted: UUIDs to share among, "" for all.

function first_line(file, line) {
	line = ""
	getline line <file
	close(file)
	return line
}

# device_name is what the kernel or device-mapper calls a block device.
function device_name(dev, line, name, at) {
	name = first_line(sysfs "/dev/block/" dev "/dm/name")
	at = sysfs "/dev/block/" dev "/uevent"
	while (name == "" && (getline line <at) > 0)
		if (line ~ /^DEVNAME=/) name = substr(line, 9)
	close(at)
	return name
}

function read_mounts(line, f, n, i, source, where) {
	while ((getline line <mounts) > 0) {
		n = split(line, f, " ")
		for (i = 7; i < n && f[i] != "-"; i++) continue
		source = f[i + 2]
		if (f[4] == "/" && !(f[3] in at)) { at[f[3]] = f[5]; fs[f[3]] = f[i + 1] }
		if (source !~ /^\/dev\// || f[6] !~ /^rw/ || f[i + 3] !~ /^rw/) continue
		# In memory, on a file of another file system, or a way to talk to a program.
		if (f[3] ~ /^(1|7):/ || source ~ /^\/dev\/(loop|ram|zram|fuse)/ || f[i + 1] ~ /^fuse\./) continue
		where = f[3] ~ /^0:/ ? source : f[3] # btrfs has numbers of its own
		if (where in rw_at) continue
		rw[++rws] = where
		rw_at[where] = f[5]; rw_fs[where] = f[i + 1]; rw_source[where] = source
	}
}

BEGIN {
	FS = OFS = "|"
	while ((getline line <swaps) > 0) { split(line, f, " "); swap[f[1]] = 1 }
	n = split(holders, f, " ") # …/DEVICE/holders/HOLDER
	for (i = 1; i <= n; i++) {
		m = split(f[i], p, "/")
		if (p[m] != "*") held[p[m - 2]] = p[m]
	}
	read_mounts()
}

{
	sub(/^ */, "", $1)
	dev = $6 ":" $7; state = $8; dm = $11; sub(/.*\//, "", dm)
	lv[dev] = lv["/dev/mapper/" dm] = lv["/dev/" $3 "/" $4] = 1
	if (state !~ /^.....o/ || $4 ~ /^cleave-/ || ("/dev/dm-" $7) in swap) next
	if (state ~ /^[tTedD]/) next # a pool: its volumes stand for it
	cannot = ""
	kind = state ~ /^V/ ? "lvm-thin" : "lvm-thick"
	if (state !~ /^[-omrCV]/) cannot = "it is a snapshot itself, or being merged"
	if (("dm-" $7) in held) cannot = held["dm-" $7] " lies on it, and a file system there would not be frozen"
	mount = at[dev]; type = fs[dev]
	where = "/dev/mapper/" dm
	if (mount == "" && where in rw_at) { mount = rw_at[where]; type = rw_fs[where] }
	count++
	line_of[count] = $1 OFS $2 OFS $3 "/" $4 OFS $5 OFS dev OFS kind OFS $9 OFS $10 OFS dm OFS type OFS cannot OFS mount
	extents[count] = 0
	if (kind == "lvm-thick" && cannot == "" && (wanted == "" || index(" " wanted " ", " " $1 " "))) {
		extents[count] = $5 / $9; free[count] = $10; group[count] = $2
		total[$2] += $5 / $9
	}
}

END {
	for (i = 1; i <= count; i++) {
		n = 0
		if (extents[i] > 0) {
			n = int(extents[i] * percent / 100 + 0.999999)
			if (n < 2) n = 2
			part = int(free[i] * extents[i] / total[group[i]])
			if (part < n) n = part
			if (n < 2) n = 0
		}
		print n, line_of[i]
	}
	for (i = 1; i <= rws; i++) {
		where = rw[i]
		if (where in lv || rw_source[where] in lv) continue
		name = where
		if (where ~ /:/ && where !~ /\//) {
			name = device_name(where)
			kind = first_line(sysfs "/dev/block/" where "/partition") != "" ? "partition" : "disk"
			bytes = first_line(sysfs "/dev/block/" where "/size") * 512
		}
		if (name == "") name = rw_source[where]
		sub(/^\/dev\/(mapper\/)?/, "", name)
		if (where ~ /\//) {
			kind = first_line(sysfs "/class/block/" name "/partition") != "" ? "partition" : "disk"
			bytes = first_line(sysfs "/class/block/" name "/size") * 512
		}
		print name, kind, sprintf("%.0f", bytes), rw_fs[where], rw_at[where] >others
	}
}
