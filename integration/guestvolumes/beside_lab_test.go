//go:build lab

package guestvolumes

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/recovery"
)

// pair is a guest's disks, and copies of them that have an identity of their own.
type pair struct {
	images        []string
	volume, snap  string
	sum           string // of the snapshot, as lun/testdata/README.md tells
	group, second string // names of the original and of the copy
}

var pairs = []pair{
	{images: []string{"lvm-o2-thick-gpt-crash"}, group: "vgo2", volume: "data", snap: "snap2", sum: "d85dd205b2e651c526f42e8676d06631f56ca8432a0a561df48dc87bd6554a02"},
	{images: []string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, group: "vgt", volume: "vol", snap: "s1", sum: "a4f6478dfec8e1a3481629c0cff8201168a5279ee1cfe19fc1d914431fb59bbd"},
	{images: []string{"lvm-g2-mirrors-a", "lvm-g2-mirrors-b", "lvm-g2-mirrors-c"}, group: "vgm", volume: "r", snap: "r1", sum: "4c5edc731d972a631fd01792ba20e089a23c4b714cfae859f74d857d2333af88"},
}

// TestBesideTheOriginal gives one guest the original disks and recovered copies
// with an identity of their own: both groups are active and both file systems
// mounted at the same time, the copy is the snapshot, and what is written to
// either stays there, through a second boot. LVM must have nothing to say of
// duplicates.
func TestBesideTheOriginal(t *testing.T) {
	var all, modules []string
	for _, s := range scenes {
		modules = append(modules, s.modules...)
	}
	for i := range pairs {
		all = append(all, pairs[i].make(t)...)
	}
	for round := range 2 {
		m := boot(t, fmt.Sprintf("beside%d", round+1), modules, all)
		t.Logf("boot %d:\n%s", round+1, run(t, m, besideAll(len(all))))
		for _, p := range pairs {
			t.Logf("%s, boot %d:\n%s", p.group, round+1, run(t, m, p.script(round)))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := m.Shutdown(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// make returns the original disks and the copies.
func (p *pair) make(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	var files []string
	for _, name := range p.images {
		files = append(files, luntest.File(t, name))
	}
	v, err := recovery.OpenView(t.Context(), probe(t, files), recovery.ViewOptions{
		Snapshots: []string{p.group + "/" + p.snap}, Dir: dir, NewIdentity: "beside"})
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range v.Clean {
		path := filepath.Join(dir, fmt.Sprintf("copy%d", i+1))
		if err := recovery.Copy(t.Context(), d, path, nil); err != nil {
			t.Fatal(err)
		}
		files = append(files, path)
	}
	for _, id := range v.Identity {
		if id.Kind == recovery.VGName {
			p.second = id.New
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	return files
}

// besideAll wants LVM and the kernel to tell all disks apart.
func besideAll(disks int) string {
	return fmt.Sprintf(`
export LVM_SUPPRESS_FD_WARNINGS=1
fail() { echo "FAILED: $*"; cat /run/err; exit 1; }
command lvm pvs -o pv_name,pv_uuid,vg_name </dev/null 2>/run/err || fail pvs
[ ! -s /run/err ] || fail "pvs has something to say"
[ $(command lvm pvs --noheadings -o pv_uuid </dev/null | sort -u | wc -l) = %d ] || fail "PVs are missing"
command lvm vgs -o vg_name,vg_uuid,pv_count,vg_missing_pv_count </dev/null 2>/run/err || fail vgs
[ ! -s /run/err ] || fail "vgs has something to say"
for d in /sys/block/vd?; do blkid -p -s PTUUID -o value /dev/${d##*/}; done >/run/ids || true
[ $(wc -l </run/ids) = 2 ] && [ "$(sort -u /run/ids | wc -l)" = 2 ] || fail "GPT disks: $(cat /run/ids)"
`, disks)
}

// script is what the guest does with both.
func (p *pair) script(round int) string {
	return strings.NewReplacer("GROUP", p.group, "SECOND", p.second, "VOLUME", p.volume, "SNAP", p.snap, "SUM", p.sum, "ROUND", fmt.Sprint(round)).Replace(`
fail() { echo "FAILED: $*"; lvs -a -o+devices GROUP SECOND; dmesg | tail -5; exit 1; }
mkdir -p /mnt/original /mnt/copy
for g in GROUP SECOND; do
	vgchange -ay $g || fail "$g does not activate"
	vgmknodes $g >/dev/null || true # fails for a thin pool, and makes the nodes
done
lvs GROUP/SNAP >/dev/null || fail "the original has no snapshot any more"
! lvs SECOND/SNAP >/dev/null 2>&1 || fail "the copy has the snapshot"
[ "$(sha256sum /dev/GROUP/SNAP | cut -d' ' -f1)" = SUM ] || fail "another content of the snapshot"
if [ ROUND = 0 ]; then
	[ "$(sha256sum /dev/SECOND/VOLUME | cut -d' ' -f1)" = SUM ] || fail "another content of the copy"
fi
e2fsck -fn /dev/SECOND/VOLUME || fail "e2fsck of the copy"
mount /dev/GROUP/VOLUME /mnt/original
mount /dev/SECOND/VOLUME /mnt/copy
grep /mnt/ /proc/mounts
if [ ROUND = 0 ]; then
	for m in original copy; do
		echo "of the $m" >/mnt/$m/whose
		head -c 200000 /dev/urandom >/mnt/$m/random
		sha256sum </mnt/$m/random >/mnt/$m/random.sum
	done
	sync
else
	for m in original copy; do
		[ "$(cat /mnt/$m/whose)" = "of the $m" ] || fail "what was written to the $m is gone"
		[ "$(sha256sum </mnt/$m/random)" = "$(cat /mnt/$m/random.sum)" ] || fail "what was written to the $m changed"
	done
fi
umount /mnt/original /mnt/copy
lvs -o lv_full_name,segtype,lv_attr,origin GROUP SECOND
for g in GROUP SECOND; do vgchange -an $g || fail "$g does not deactivate"; done
`)
}
