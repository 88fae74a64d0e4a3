package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cleave-san/cleave/integration/lab"
	"github.com/cleave-san/cleave/integration/stage"
	"github.com/cleave-san/cleave/orchestrator"
)

type options struct {
	out  io.Writer
	exe  string
	dir  string
	keep bool
}

// story is a demo while it is told.
type story struct {
	options
	began time.Time
	load  string // the load program for the guests

	stage              *stage.Stage
	db, legacy, proof  *lab.Machine
	set                orchestrator.Set
	recovered, dirty   orchestrator.LUN
	legacySplit        orchestrator.LUN
	setBegan, setEnded time.Time
}

// run tells the story. Whatever it started is ended when it returns.
func run(ctx context.Context, o options) (err error) {
	t := &story{options: o, began: time.Now()}
	if t.dir == "" {
		if t.dir, err = os.MkdirTemp("", "cleave-demo-"); err != nil {
			return err
		}
	} else if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	if !t.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(t.dir)) }()
	}
	defer func() { err = errors.Join(err, t.end()) }()
	for _, chapter := range []func(context.Context) error{t.setUp, t.bootVMs, t.classify, t.snapshot, t.prove, t.tell, t.release} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	t.say("done in %s; nothing is left but %s", time.Since(t.began).Round(time.Second), t.leftOver())
	return nil
}

func (t *story) leftOver() string {
	if t.keep {
		return t.dir
	}
	return "this text"
}

// say prints a line of the story with the time since its beginning.
func (t *story) say(format string, args ...any) {
	fmt.Fprintf(t.out, "[%5.1f s] %s\n", time.Since(t.began).Seconds(), fmt.Sprintf(format, args...))
}

// show runs a cleave command as an operator would, and prints both.
func (t *story) show(ctx context.Context, args ...string) error {
	fmt.Fprintf(t.out, "\n$ cleave")
	for _, a := range args {
		fmt.Fprintf(t.out, " %s", a)
	}
	fmt.Fprintln(t.out)
	c := t.stage.Command(ctx, args...)
	c.Stdout, c.Stderr = t.out, t.out
	err := c.Run()
	fmt.Fprintln(t.out)
	if err != nil {
		return fmt.Errorf("cleave %s: %w", args[0], err)
	}
	return nil
}

func (t *story) setUp(ctx context.Context) error {
	accel, err := lab.Accel(ctx)
	if err != nil {
		return err
	}
	t.say("this machine: %d processors, VMs run under %s", runtime.NumCPU(), map[string]string{"kvm": "KVM", "tcg": "software emulation (KVM does not work here)"}[accel])
	if t.load, err = lab.GuestLoad(ctx); err != nil {
		return err
	}
	if t.stage, err = stage.New(ctx, stage.Options{Exe: t.exe, Dir: t.dir}); err != nil {
		return err
	}
	t.say("the array runs: three pools, iSCSI with CHAP at %s", t.stage.Portals()[0])
	return nil
}

func (t *story) bootVMs(ctx context.Context) error {
	dbLUN, err := t.stage.Disk(ctx, "db", "2GiB")
	if err != nil {
		return err
	}
	legacyLUN, err := t.stage.Disk(ctx, "legacy", "256MiB")
	if err != nil {
		return err
	}
	t.say("volumes db (2 GiB) and legacy (256 MiB), three mirrors each, are LUNs now; booting two VMs on them")
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		t.db, err = lab.Boot(gctx, lab.VM{
			Name: "db", Kind: lab.DB, Disks: []lab.Disk{{LUN: &dbLUN, Bus: lab.SCSIHD}},
			Layout: lab.Layout{Data: "900M", Canary: "16M"},
		})
		return err
	})
	g.Go(func() (err error) {
		t.legacy, err = lab.Boot(gctx, lab.VM{Name: "legacy", Kind: lab.Legacy, Memory: 256, Disks: []lab.Disk{{LUN: &legacyLUN, Bus: lab.SCSIHD}}})
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	t.say("db is up after %.1f s: guest agent, PostgreSQL on LVM; legacy after %.1f s: no agent, just a disk", t.db.BootTime().Seconds(), t.legacy.BootTime().Seconds())
	if err := t.db.StartInserts(ctx, t.load); err != nil {
		return err
	}
	if err := t.db.StartCanary(ctx, t.load, "/dev/vgdata/canary"); err != nil {
		return err
	}
	t.say("db inserts 1, 2, 3, … one commit each, every one recorded outside its disk; a canary writes k at the disk's start, then k at its end")
	return nil
}

func (t *story) classify(ctx context.Context) error {
	if err := t.stage.StartServe(ctx, t.db, t.legacy); err != nil {
		return err
	}
	t.say("the control plane runs")
	return t.show(ctx, "vm", "list")
}

func (t *story) snapshot(ctx context.Context) error {
	t.setBegan = time.Now()
	if err := t.show(ctx, "snapshot", "create", "--vm", "db", "--vm", "legacy", "--expose-dirty", "--to", stage.ProofInitiator, "--wait"); err != nil {
		return err
	}
	t.setEnded = time.Now()
	out, err := t.stage.Cleave(ctx, "snapshot", "list", "--all", "-o", "name")
	if err != nil {
		return err
	}
	id := firstLine(out)
	if err := t.show(ctx, "snapshot", "expose", id, "--writable", "--to", stage.ProofInitiator, "-o", "name"); err != nil {
		return err
	}
	t.set, err = t.stage.Set(ctx, "snapshot", "show", id)
	if err != nil {
		return err
	}
	return t.findLUNs()
}

func firstLine(s string) string {
	for i, r := range s {
		if r == '\n' {
			return s[:i]
		}
	}
	return s
}

// findLUNs finds db's recovered LUN, its dirty split, and legacy's split.
func (t *story) findLUNs() error {
	for _, l := range t.set.LUNs {
		i := slices.IndexFunc(t.set.VMs, func(v orchestrator.VMResult) bool {
			return slices.ContainsFunc(v.Disks, func(d orchestrator.DiskResult) bool { return d.Split == l.Split })
		})
		switch {
		case i < 0 || l.IQN == "":
		case t.set.VMs[i].Name == "legacy":
			t.legacySplit = l
		case l.Clean:
			t.recovered = l
		default:
			t.dirty = l
		}
	}
	if t.recovered.IQN == "" || t.dirty.IQN == "" || t.legacySplit.IQN == "" {
		return fmt.Errorf("set %s is %s and exposes not all of: db recovered, db dirty, legacy: %+v", t.set.ID, t.set.State, t.set.LUNs)
	}
	return nil
}

// tell ends the story with the set document.
func (t *story) tell(ctx context.Context) error {
	doc, err := json.MarshalIndent(t.set, "", "  ")
	if err != nil {
		return err
	}
	name := filepath.Join(t.dir, "set.json")
	if err := os.WriteFile(name, doc, 0o600); err != nil {
		return err
	}
	fmt.Fprintf(t.out, "\nThe set document:\n%s\n\n", doc)
	return nil
}

// release gives everything back and looks for what was left.
func (t *story) release(ctx context.Context) error {
	if err := t.proof.Shutdown(ctx); err != nil {
		return err
	}
	if err := t.show(ctx, "snapshot", "delete", string(t.set.ID)); err != nil {
		return err
	}
	out, err := t.db.Run(ctx, "lvs --noheadings -o lv_name -S 'lv_name=~^cleave-'")
	if err != nil {
		return err
	}
	if out.Stdout != "" {
		return fmt.Errorf("in-guest snapshots are left in db: %q", out.Stdout)
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, m := range []*lab.Machine{t.db, t.legacy} {
		g.Go(func() error { return m.Shutdown(gctx) })
	}
	return g.Wait()
}

// end ends what still runs, newest first.
func (t *story) end() error {
	var errs []error
	for _, m := range []*lab.Machine{t.proof, t.legacy, t.db} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	if t.stage != nil {
		errs = append(errs, t.stage.Close())
	}
	return errors.Join(errs...)
}
