//go:build lab

package guestvolumes

// scene is a guest that makes volumes.
type scene struct {
	name    string
	disks   int
	size    int64 // MiB of each
	modules []string
	// script makes the volumes, with $1, $2, … as the disks, and prints what
	// the kernel reads of each device whose content is final, by hash.
	script string
	// cut is run when all that is made; the power is cut when it says "now".
	cut string
	// views are recovered, checked and written by another guest.
	views []view
	// refused volumes can't be read, for a reason that has this in it.
	refused map[string]string
}

type view struct {
	group, volume, snapshot string
	type_                   string // of the recovered volume, as lvs calls it
	gone, kept              []string
}

// prelude is before every script.
const prelude = `
set -e
exec 2>&1
hash() { for d; do echo "HASH $d $(sha256sum /dev/$d | cut -d' ' -f1)"; done; }
fill() { mkdir -p $1; for i in 1 2 3 4 5 6; do stamp "$1/$i" $2 >$1/$i; done; sync; }
# What a disk holds differs from block to block and time to time, and compresses.
stamp() { read -r up _ </proc/uptime; seq -f "$1 at $up line %.0f" 1 $(($2 / 16)) | head -c $2; }
lvm() { command lvm "$@" </dev/null; }
for c in vgcreate lvcreate lvremove lvconvert lvchange lvextend vgchange lvs; do eval "$c() { lvm $c -qq \"\$@\"; }"; done
`

var scenes = []scene{
	{
		name: "thin", disks: 2, size: 96, modules: []string{"dm-thin-pool"},
		script: `
vgcreate -s 1m vgt $1 $2
lvcreate --type thin-pool -i 2 -I 64k -c 64k -L 96M --poolmetadatasize 4M -n pool vgt
lvcreate -V 48M -T vgt/pool -n vol
lvcreate -V 8M -T vgt/pool -n other
lvcreate -L 8M -n ext vgt
stamp ext 8388608 >/dev/vgt/ext
lvchange -an vgt/ext; lvchange -pr vgt/ext
lvcreate -s --thinpool vgt/pool vgt/ext -n onext
lvextend -L 10M vgt/onext
stamp onext 1000000 | dd of=/dev/vgt/onext bs=4k seek=100 conv=fsync
stamp tail 70000 | dd of=/dev/vgt/onext bs=64k seek=135 conv=fsync
mkfs.ext4 -q /dev/vgt/vol
mkdir -p /mnt/a /mnt/b
mount /dev/vgt/vol /mnt/a
fill /mnt/a/first 900000
lvcreate -s -kn -n s1 vgt/vol
rm -r /mnt/a/first; fill /mnt/a/second 1500000; fstrim /mnt/a
mount /dev/vgt/s1 /mnt/b
fill /mnt/b/insnap 300000
umount /mnt/b
lvcreate -s -kn -n s2 vgt/s1
mount /dev/vgt/s1 /mnt/b
rm -r /mnt/b/insnap; fill /mnt/b/later 200000
umount /mnt/b
lvcreate -s -kn -n s3 vgt/vol
lvextend -L 56M vgt/vol; resize2fs /dev/vgt/vol
lvchange -ay vgt/ext
hash vgt/s1 vgt/s2 vgt/s3 vgt/onext vgt/other vgt/ext
`,
		cut: `while :; do fill /mnt/a/more 400000; [ -e /mnt/a/more ] && echo now; done`,
		views: []view{
			{"vgt", "vol", "s1", "thin", []string{"s1"}, []string{"vol", "s2", "s3", "other", "onext", "ext", "pool"}},
			{"vgt", "s1", "s2", "thin", []string{"s2"}, []string{"vol", "s1", "s3"}},
		},
		refused: map[string]string{"vgt/pool": "thin pool"},
	},
	{
		name: "thick", disks: 2, size: 128,
		script: `
vgcreate -s 1m vgk $1 $2
lvcreate -i 2 -I 64k -L 64M -n data vgk
mkfs.ext4 -q /dev/vgk/data
mkdir -p /mnt/a
mount /dev/vgk/data /mnt/a
fill /mnt/a/first 900000
lvcreate -s -c 8k -L 40M -n s1 vgk/data
rm -r /mnt/a/first; fill /mnt/a/second 1500000
lvcreate -s -c 64k -L 40M -n s2 vgk/data
fill /mnt/a/third 500000
hash vgk/s1 vgk/s2
`,
		cut: `while :; do fill /mnt/a/more 400000; [ -e /mnt/a/more ] && echo now; done`,
		views: []view{
			{"vgk", "data", "s1", "striped", []string{"s1", "s2"}, []string{"data"}},
			{"vgk", "data", "s2", "striped", []string{"s1", "s2"}, []string{"data"}},
		},
	},
	{
		name: "mirrors", disks: 3, size: 96, modules: []string{"dm-raid", "raid1", "raid456", "dm-mirror", "dm-log", "dm-cache", "dm-cache-smq", "dm-writecache"},
		script: `
vgcreate -s 1m vgm $1 $2 $3
lvcreate --type raid1 -m 1 -L 20M -n r vgm $1 $2
lvcreate --type mirror -m 1 --mirrorlog disk -L 16M -n m vgm $2 $3 $1
lvcreate --type raid5 -i 2 -L 4M -n five vgm
lvcreate -L 4M -n slow vgm $1
lvcreate --type cache-pool -L 8M -n fast vgm $3
lvconvert -y --type cache --cachepool vgm/fast vgm/slow
lvchange -an vgm/slow
for v in r m; do
	mkfs.ext4 -q /dev/vgm/$v
	mkdir -p /mnt/$v
	mount /dev/vgm/$v /mnt/$v
	fill /mnt/$v/first 300000
	lvcreate -s -c 8k -L 12M -n ${v}1 vgm/$v
	rm -r /mnt/$v/first; fill /mnt/$v/second 350000
done
lvcreate -s -c 4k -L 10M -n r2 vgm/r
fill /mnt/r/third 100000
hash vgm/r1 vgm/r2 vgm/m1
`,
		cut: `while :; do fill /mnt/r/more 30000; fill /mnt/m/more 30000; echo now; done`,
		views: []view{
			{"vgm", "r", "r1", "linear", []string{"r1", "r2"}, []string{"r", "m", "m1", "five", "slow"}},
			{"vgm", "r", "r2", "linear", []string{"r1", "r2"}, []string{"r", "m", "m1"}},
			{"vgm", "m", "m1", "linear", []string{"m1"}, []string{"m", "r", "r1", "r2"}},
		},
		refused: map[string]string{"vgm/five": "only raid1", "vgm/slow": "lvconvert --uncache"},
	},
	{
		name: "interrupted merge", disks: 1, size: 128, modules: nil,
		script: `
vgcreate -s 1m vgi $1
lvcreate -L 40M -n vol vgi
mkfs.ext4 -q /dev/vgi/vol
mkdir -p /mnt/a
mount /dev/vgi/vol /mnt/a
fill /mnt/a/first 3000000
lvcreate -s -c 4k -L 24M -n s1 vgi/vol
lvcreate -s -c 16k -L 36M -n s2 vgi/vol
umount /mnt/a
# Blocks with gaps between them: each is merged and committed by itself.
perl -e 'open F, "+<", "/dev/vgi/vol"; for ($i = 1; $i < 10000; $i += 3) { sysseek F, $i * 4096, 0; syswrite F, chr($i % 251) x 4096 }'
sync
hash vgi/s1
`,
		cut: `
full=$(dmsetup status vgi-s1 | cut -d' ' -f4)
lvconvert --merge -b -i 1 vgi/s1 >/dev/null 2>&1 &
while :; do
	now=$(dmsetup status vgi-vol | cut -d' ' -f4)
	case $now in
	"$full" | *[!0-9/]* | "") ;;
	*) echo now; break ;;
	esac
done`,
		views: []view{{"vgi", "vol", "s1", "linear", []string{"s1", "s2"}, []string{"vol"}}},
	},
}
