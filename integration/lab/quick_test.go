package lab

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bootFor boots a VM for one test. What it needs on the host is what `make deps`
// installs; a host without it cannot run the lab, and the test says so.
func bootFor(t *testing.T, v VM) *Machine {
	t.Helper()
	needVMs(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	m, err := Boot(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", v.Name, tail(m.ConsoleLog(), 30))
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("FIGURE boot of %s: %.1f s (%s)", m.Name(), m.BootTime().Seconds(), m.Accel())
	return m
}

func needVMs(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath(qemuProgram); err != nil {
		t.Skip("needs QEMU (Debian: qemu-system-x86)")
	}
	if _, err := findKernel(); err != nil {
		t.Skip(err)
	}
}

func rawDisk(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	return name
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestQuickDatabase is the lab's own story: a database VM under load takes a
// snapshot of itself; its disk is copied twice, once while it is paused and once
// fuzzily; a second VM tells what the copies are worth.
func TestQuickDatabase(t *testing.T) {
	needVMs(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	began := time.Now()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%.1f s", time.Since(began).Seconds())
	}
	guestload := must[string](t)(GuestLoad(ctx))
	disk := rawDisk(t, 1<<30)
	db := bootFor(t, VM{
		Name: "db", Kind: DB, Disks: []Disk{{File: disk}},
		Layout: Layout{Data: "400M", WAL: "100M", Canary: "8M"}, Forward: []int{5432},
	})
	ok(db.AgentPing(ctx))
	ok(db.StartInserts(ctx, guestload))
	ok(db.StartCanary(ctx, guestload, "/dev/vgdata/canary"))

	// The snapshot, by the guest's clock.
	out := must[Output](t)(db.Run(ctx, "date +%s%N; lvcreate -q -s -n snap -L 100M vgdata/pgdata >&2; date +%s%N"))
	stamps := strings.Fields(out.Stdout)
	if len(stamps) != 2 {
		t.Fatalf("dates: %q", out.Stdout)
	}
	_ = must[Output](t)(db.Run(ctx, "lvs --noheadings -o lv_attr vgdata/snap | grep '^ *s.*a'"))

	// A copy of one instant: the CPUs stand still.
	ok(db.QMP(ctx, "stop", nil, nil))
	atomic := filepath.Join(t.TempDir(), "atomic.img")
	copySparse(t, disk, atomic)
	ok(db.QMP(ctx, "cont", nil, nil))
	before := must[[]Commit](t)(ReadRecord(db.Record()))
	if len(before) == 0 {
		t.Fatal("nothing in the record")
	}

	ok(db.StopLoad(ctx, "insert"))
	ok(db.StopLoad(ctx, "canary"))
	record := must[[]Commit](t)(ReadRecord(db.Record()))
	n := must[Numbers](t)(db.Numbers(ctx))
	last := record[len(record)-1]
	ok(n.Check(record, last.Committed.Add(1), last.Committed.Add(1)))
	t.Logf("FIGURE commits recorded: %d", len(record))
	t.Logf("FIGURE largest gap between commits: %v", LargestGap(record, time.Time{}, time.Time{}))
	if n.Count < int64(len(before)) {
		t.Errorf("%d rows, %d recorded before", n.Count, len(before))
	}
	ok(db.Shutdown(ctx))

	// Both disks carry the same UUIDs: each is looked at alone.
	proof := bootFor(t, VM{Name: "proof", Kind: Proof, Disks: []Disk{{File: atomic, Serial: "atomic"}, {File: disk}}})
	names := proof.Disks()
	paused := volumesByName(must[[]Volume](t)(proof.Inspect(ctx, names[0])))
	if v := paused["vgdata/pgdata"]; v.FS != "ext4" || !v.NeedsReplay {
		t.Errorf("the copy of a running disk: %+v, want a journal to replay", v)
	}
	ended := volumesByName(must[[]Volume](t)(proof.Inspect(ctx, names[1])))
	if v := ended["vgdata/pgdata"]; v.FS != "ext4" || v.NeedsReplay || !v.Clean {
		t.Errorf("the disk of a VM that was shut down: %+v, want clean", v)
	}
	t.Log(must[string](t)(proof.CheckCanary(ctx, guestload, names[0])))
	ok(proof.StartCluster(ctx, names[0], ""))
	n = must[Numbers](t)(proof.Numbers(ctx))
	// "Before" was read after the CPUs stopped: all of it is on the copy.
	ok(n.Check(before, before[len(before)-1].Committed.Add(1), last.Committed))
	ok(proof.CheckCluster(ctx))
	ok(proof.StopCluster(ctx, names[0]))

	// The instrument must be able to fail: both ends of the canary are from
	// different times if the end of one copy is put into the other.
	_ = must[Output](t)(proof.Run(ctx, withDisk(names[0],
		quote(guestload)+" canary --device /dev/vgdata/canary --pause 0 & sleep 1; kill $!; wait; dd if=/dev/zero of=/dev/vgdata/canary bs=4096 count=1 seek=2047 conv=fsync 2>/dev/null")))
	if said, err := proof.CheckCanary(ctx, guestload, names[0]); err == nil {
		t.Errorf("a torn canary passed: %s", said)
	}
	ok(proof.Shutdown(ctx))
}

func volumesByName(list []Volume) map[string]Volume {
	m := map[string]Volume{}
	for _, v := range list {
		m[v.Name] = v
	}
	return m
}

func copySparse(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestQuickLegacyOnLUN has its disk on a LUN of a foreign target, with CHAP, and
// runs no agent.
func TestQuickLegacyOnLUN(t *testing.T) {
	needVMs(t)
	backing := rawDisk(t, 256<<20)
	lun := tgtdLUN(t, backing)
	m := bootFor(t, VM{Name: "legacy", Kind: Legacy, Memory: 256, Disks: []Disk{{LUN: &lun, Bus: SCSIBlock}}})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := m.Run(ctx, "until [ $(wc -l </srv/data/lines) -ge 3 ]; do sleep 0.1; done; [ ! -e /dev/virtio-ports/org.qemu.guest_agent.0 ]"); err != nil {
		t.Error(err)
	}
	out, err := m.Run(ctx, "cat /sys/block/sda/device/vendor; echo more >&2; exit 7")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Output.Status != 7 || out.Stderr != "more\n" || !strings.HasPrefix(out.Stdout, "IET") {
		t.Errorf("%+v, %v: want tgtd's own vendor through scsi-block, and status 7", out, err)
	}
	if err := m.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run(ctx, "true"); err == nil {
		t.Error("a script ran in a VM that is off")
	}
	if out, err := exec.Command("dumpe2fs", "-h", backing).Output(); err != nil || strings.Contains(string(out), "needs_recovery") {
		t.Errorf("after the shutdown the LUN's file system is not clean: %v", err)
	}
}

func TestQuickBootFails(t *testing.T) {
	needVMs(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	_, err := Boot(ctx, VM{Name: "small", Kind: DB, Memory: 256, Disks: []Disk{{File: rawDisk(t, 1<<20)}}})
	if err == nil || !strings.Contains(err.Error(), "set-up in the guest: failed cannot make vgdata") {
		t.Errorf("a disk of 1 MiB: %v", err)
	}
	_, err = Boot(ctx, VM{Kind: Legacy, Disks: []Disk{{File: "/nonexistent/disk"}}})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/disk") {
		t.Errorf("no such disk: %v", err)
	}
}
