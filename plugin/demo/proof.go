package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/orchestrator"
)

// prove boots a third VM, whose disks are the LUNs of the set, and has its
// ordinary kernel, LVM and PostgreSQL say what they are worth.
func (t *story) prove(ctx context.Context) (err error) {
	recovered, dirty, legacy := t.stage.LUN(t.recovered), t.stage.LUN(t.dirty), t.stage.LUN(t.legacySplit)
	t.proof, err = lab.Boot(ctx, lab.VM{
		Name: "proof", Kind: lab.Proof, Memory: 512, Disks: []lab.Disk{
			{LUN: &recovered, Bus: lab.SCSIHD},
			{LUN: &dirty, Bus: lab.SCSIHD, Scratch: true},
			{LUN: &legacy, Bus: lab.SCSIHD, Scratch: true},
		},
	})
	if err != nil {
		return err
	}
	t.say("a third VM is up, with the recovered LUN, the dirty split and legacy's split as its disks")
	fmt.Fprintln(t.out, "\nThe proof:")
	checks := []struct {
		claim string
		check func(context.Context) (string, error)
	}{
		{"db never stopped", t.dbNeverStopped},
		{"the split is of one instant: the canary on the dirty split", t.canary},
		{"the dirty split's file system needs its journal replayed", t.dirtyNeedsReplay},
		{"the recovered file system needs none, and e2fsck finds no error", t.recoveredIsClean},
		{"PostgreSQL starts on the recovered LUN", t.startPostgres},
		{"every commit from before the snapshot is there, none from after it, no holes", t.commits},
		{"pg_amcheck finds every table and index sound", t.amcheck},
		{"pg_checksums finds every page sound", t.checksums},
		{"legacy was paused, its level is crash, and the result says so", t.legacySaysSo},
		{"legacy's disk comes up as after a power cut", t.legacyComesUp},
	}
	failed := 0
	for _, c := range checks {
		said, err := c.check(ctx)
		if err != nil {
			failed++
			fmt.Fprintf(t.out, "  FAILED  %s: %v\n", c.claim, err)
			continue
		}
		fmt.Fprintf(t.out, "  ok      %s: %s\n", c.claim, said)
	}
	if failed > 0 {
		return fmt.Errorf("the proof failed: %d of %d checks", failed, len(checks))
	}
	return nil
}

func (t *story) vm(name string) orchestrator.VMResult {
	i := slices.IndexFunc(t.set.VMs, func(v orchestrator.VMResult) bool { return v.Name == name })
	if i < 0 {
		return orchestrator.VMResult{}
	}
	return t.set.VMs[i]
}

// window is from when the guest's first snapshot was asked for to when its last
// one was complete, by the guest's clock.
func (t *story) window(volume string) (began, ended time.Time, err error) {
	for _, v := range t.vm("db").Volumes {
		if v.Name == volume {
			return v.Began, v.Ended, nil
		}
	}
	return began, ended, fmt.Errorf("the set document has no volume %s", volume)
}

func (t *story) dbNeverStopped(context.Context) (string, error) {
	if p := t.vm("db").Pause; p != nil {
		return "", fmt.Errorf("it was paused for %s", p.For)
	}
	record, err := lab.ReadRecord(t.db.Record())
	if err != nil {
		return "", err
	}
	began, ended, err := t.window("vgdata/pgdata")
	if err != nil {
		return "", err
	}
	quiet := lab.LargestGap(record, time.Time{}, began.Add(-time.Second))
	around := lab.LargestGap(record, began.Add(-time.Second), ended.Add(time.Second))
	return fmt.Sprintf("%d commits; the largest gap between two is %s around its snapshot, %s before",
		len(record), around.Round(time.Millisecond), quiet.Round(time.Millisecond)), nil
}

func (t *story) disk(n int) string { return t.proof.Disks()[n] }

func (t *story) canary(ctx context.Context) (string, error) {
	return t.proof.CheckCanary(ctx, t.load, t.disk(1))
}

func (t *story) pgdata(ctx context.Context, disk int) (lab.Volume, error) {
	vs, err := t.proof.Inspect(ctx, t.disk(disk))
	if err != nil {
		return lab.Volume{}, err
	}
	for _, v := range vs {
		if v.Name == "vgdata/pgdata" {
			return v, nil
		}
	}
	return lab.Volume{}, fmt.Errorf("no vgdata/pgdata among %+v", vs)
}

func (t *story) dirtyNeedsReplay(ctx context.Context) (string, error) {
	v, err := t.pgdata(ctx, 1)
	if err == nil && !v.NeedsReplay {
		err = errors.New("it does not: this is no copy of a running disk")
	}
	return "needs_recovery is set", err
}

func (t *story) recoveredIsClean(ctx context.Context) (string, error) {
	v, err := t.pgdata(ctx, 0)
	if err == nil && (v.NeedsReplay || !v.Clean) {
		err = fmt.Errorf("%+v", v)
	}
	return "an ordinary kernel and LVM activate it", err
}

func (t *story) startPostgres(ctx context.Context) (string, error) {
	label := ""
	for _, w := range t.vm("db").Writers {
		label = w.Label
	}
	if err := t.proof.StartCluster(ctx, t.disk(0), label); err != nil {
		return "", err
	}
	return t.proof.SQL(ctx, "SELECT 'version ' || current_setting('server_version')")
}

func (t *story) commits(ctx context.Context) (string, error) {
	n, err := t.proof.Numbers(ctx)
	if err != nil {
		return "", err
	}
	record, err := lab.ReadRecord(t.db.Record())
	if err != nil {
		return "", err
	}
	began, ended, err := t.window("vgdata/pgdata")
	if err != nil {
		return "", err
	}
	if err := n.Check(record, began, ended); err != nil {
		return "", err
	}
	before, after := 0, 0
	for _, c := range record {
		if c.Committed.Before(began) {
			before++
		}
		if c.Begin.After(ended) {
			after++
		}
	}
	return fmt.Sprintf("%d commits are on the LUN; %d were made before the snapshot began, %d begun after it ended", n.Count, before, after), nil
}

func (t *story) amcheck(ctx context.Context) (string, error) {
	return "no complaint", t.proof.CheckCluster(ctx)
}

func (t *story) checksums(ctx context.Context) (string, error) {
	return "all of them", t.proof.StopCluster(ctx, t.disk(0))
}

func (t *story) legacySaysSo(context.Context) (string, error) {
	vm := t.vm("legacy")
	if vm.Pause == nil || vm.Reached != orchestrator.LevelCrash || vm.Why == "" {
		return "", fmt.Errorf("pause %v, reached %s: %q", vm.Pause, vm.Reached, vm.Why)
	}
	return fmt.Sprintf("%s; %s", vm.Pause.For.Round(100*time.Microsecond), vm.Why), nil
}

func (t *story) legacyComesUp(ctx context.Context) (string, error) {
	out, err := t.proof.Run(ctx, fmt.Sprintf(`d=%s
e2fsck -p $d >/dev/null 2>&1; [ $? -le 1 ] || { echo "e2fsck can not repair it" >&2; exit 1; }
mkdir -p /srv/legacy && mount -o ro $d /srv/legacy || exit 1
wc -l </srv/legacy/lines
umount /srv/legacy`, t.disk(2)))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("journal replayed, %s lines in its log", strings.TrimSpace(out.Stdout)), nil
}
