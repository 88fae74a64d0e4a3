package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Volume is what a Proof VM's own tools say about one logical volume, before
// anything is mounted.
type Volume struct {
	Name string // "vgdata/pgdata"
	FS   string // "ext4", "" if the volume holds none
	// NeedsReplay says that the journal holds changes which are not in place: the
	// file system was in use when the disk was copied (dumpe2fs: needs_recovery).
	NeedsReplay bool
	// Clean says that e2fsck, which changes nothing here, found no error; false
	// without a check if the journal must be replayed first.
	Clean bool
}

// withDisk wraps a script so that LVM sees the one disk only, or those that match
// a pattern ("/dev/sd[ab]"): several copies of a disk carry the same UUIDs, and
// only one may be looked at at a time. The
// script finds vgdata active; afterwards it is inactive again.
func withDisk(disk, script string) string {
	return onlyDisk(disk) + "vgchange -q -ay vgdata >/dev/null && vgmknodes vgdata || exit 1\n(\n" + script +
		"\n)\nstatus=$?\nvgchange -q -an vgdata >/dev/null || exit 1\nexit $status\n"
}

// onlyDisk points LVM to a configuration of its own.
func onlyDisk(disk string) string {
	return fmt.Sprintf(`export LVM_SYSTEM_DIR=/run/lab/lvm%[1]s
mkdir -p $LVM_SYSTEM_DIR
sed 's#global_filter = .*#global_filter = [ "a|^%[1]s$|", "r|.*|" ]#' /etc/lvm/lvm.conf >$LVM_SYSTEM_DIR/lvm.conf
`, disk)
}

// Inspect activates vgdata of one disk, looks at its volumes without mounting
// them and deactivates it. Disks may hold copies of each other. Snapshot
// volumes are left out.
func (m *Machine) Inspect(ctx context.Context, disk string) ([]Volume, error) {
	out, err := m.Run(ctx, withDisk(disk, `
lvs --noheadings -o lv_name -S 'lv_attr!~"^[sS]"' vgdata | while read -r lv; do
	dev=/dev/vgdata/$lv
	fs=$(blkid -p -s TYPE -o value $dev)
	replay=- clean=-
	if [ "$fs" = ext4 ]; then
		if dumpe2fs -h $dev 2>/dev/null | grep -q '^Filesystem features:.* needs_recovery'; then
			replay=replay
		elif e2fsck -fn $dev >/dev/null 2>&1; then
			clean=clean
		fi
	fi
	echo "vgdata/$lv ${fs:--} $replay $clean"
done`))
	if err != nil {
		return nil, fmt.Errorf("inspecting %s: %w", disk, err)
	}
	var volumes []Volume
	for line := range strings.Lines(out.Stdout) {
		f := strings.Fields(line)
		if len(f) != 4 {
			return nil, fmt.Errorf("inspecting %s: VM %s: answer %q", disk, m.vm.Name, line)
		}
		volumes = append(volumes, Volume{
			Name: f[0], FS: strings.Trim(f[1], "-"), NeedsReplay: f[2] == "replay", Clean: f[3] == "clean",
		})
	}
	return volumes, nil
}

// CheckCanary compares the two values of vgdata/canary on one disk; it fails if
// the disk is not of one instant.
func (m *Machine) CheckCanary(ctx context.Context, guestload, disk string) (string, error) {
	out, err := m.Run(ctx, withDisk(disk, quote(guestload)+" canary-check --device /dev/vgdata/canary"))
	if err != nil {
		return "", fmt.Errorf("canary on %s: %w", disk, err)
	}
	return strings.TrimSpace(out.Stdout), nil
}

// StartCluster activates one disk, mounts its volumes as a DB VM does and starts
// PostgreSQL, which replays its WAL as after a power cut. A backup label, where
// the guest step left one, is put in place first. StopCluster undoes it.
func (m *Machine) StartCluster(ctx context.Context, disk, backupLabel string) error {
	script := onlyDisk(disk) + `
fail() { echo "$*" >&2; exit 1; }
vgchange -q -ay vgdata >/dev/null && vgmknodes vgdata || fail "cannot activate vgdata"
mkdir -p /srv/pgdata /srv/pgwal /run/lab/pg
mount -t ext4 /dev/vgdata/pgdata /srv/pgdata || fail "cannot mount vgdata/pgdata"
if [ -e /dev/vgdata/pgwal ]; then
	mount -t ext4 /dev/vgdata/pgwal /srv/pgwal || fail "cannot mount vgdata/pgwal"
fi
install -d -o postgres -g postgres /run/postgresql /run/lab/pg
# A copy of a running cluster carries its lock file; that server is not here.
rm -f /srv/pgdata/main/postmaster.pid
`
	if backupLabel != "" {
		script += "printf %s " + quote(backupLabel) + " >/srv/pgdata/main/backup_label && chown postgres: /srv/pgdata/main/backup_label\n"
	}
	script += asPostgresScript + `
$aspostgres $pgbin/pg_ctl -w -t 300 -s -D /srv/pgdata/main -l /run/lab/pg/log start || {
	tail -n 3 /run/lab/pg/log >&2
	exit 1
}
`
	if _, err := m.Run(ctx, script); err != nil {
		return fmt.Errorf("starting PostgreSQL on %s: %w", disk, err)
	}
	return nil
}

const asPostgresScript = `
pgbin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n1)
aspostgres="setpriv --reuid=postgres --regid=postgres --init-groups"
`

// CheckCluster runs pg_amcheck over all of the running cluster: every table, and
// every index against its table.
func (m *Machine) CheckCluster(ctx context.Context) error {
	_, err := m.Run(ctx, asPostgresScript+
		"$pgbin/pg_amcheck -h /run/postgresql -U postgres --all --install-missing --heapallindexed 1>&2")
	if err != nil {
		return fmt.Errorf("pg_amcheck: %w", err)
	}
	return nil
}

// StopCluster stops PostgreSQL, verifies the checksum of every page of its files
// with pg_checksums, unmounts and deactivates.
func (m *Machine) StopCluster(ctx context.Context, disk string) error {
	_, err := m.Run(ctx, onlyDisk(disk)+asPostgresScript+`
$aspostgres $pgbin/pg_ctl -w -t 120 -s -m fast -D /srv/pgdata/main stop || exit 1
$aspostgres $pgbin/pg_checksums --check -D /srv/pgdata/main >/run/lab/pg/checksums 2>&1 || {
	tail -n 3 /run/lab/pg/checksums >&2
	bad=1
}
mountpoint -q /srv/pgwal && umount /srv/pgwal
umount /srv/pgdata && vgchange -q -an vgdata >/dev/null || exit 1
exit ${bad:-0}`)
	var exit *ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("stopping PostgreSQL and checking its files: %w", err)
	}
	return err
}

// quote makes one word of the shell's of s.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
