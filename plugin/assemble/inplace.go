package assemble

import (
	"context"
	"crypto/rand"
	"errors"

	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/recovery/worker"
	"github.com/cleave-san/cleave/plugin/cli"
)

// errPlanned ends a recovery in place before its first write.
var errPlanned = errors.New("only planned")

// recoverInPlace claims the sources for writing and has a worker put volumes on
// them back to their snapshots.
func recoverInPlace(ctx context.Context, o cli.InPlaceOptions, begin func(*cli.InPlacePlan) error, progress recovery.Progress) (err error) {
	spec, closeFiles, err := openSources(ctx, o.Sources, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeFiles()) }()
	spec.Snapshots = o.Snapshots
	j, err := openRedoFile(o.Journal, o.Sources.Paths)
	if err != nil {
		return err
	}
	over := false
	defer func() { err = errors.Join(err, j.close(over)) }()
	spec.Journal = j.file()
	_, err = worker.InPlace(ctx, spec, o.DiscardOthers, func(p *worker.Plan) error {
		plan := &cli.InPlacePlan{Volumes: p.Volumes, Discarded: p.Discarded, Resumed: p.Resumed, Done: p.Done, Bytes: p.Bytes, Rewritten: p.Rewritten, Journal: j.path()}
		for _, w := range p.Warnings {
			plan.Warnings = append(plan.Warnings, w)
		}
		if err := begin(plan); err != nil || !o.PlanOnly {
			return err
		}
		return errPlanned
	}, progress)
	if errors.Is(err, errPlanned) {
		return nil
	}
	over = err == nil
	return err
}

// copyDisk copies a disk, with its volumes put back to their snapshots, to a new
// file.
func copyDisk(ctx context.Context, o cli.CopyDiskOptions, progress func(size int64) recovery.Progress) (_ cli.CopiedDisk, err error) {
	var d disks
	defer func() { err = errors.Join(err, d.close()) }()
	if o.Identity.Seed == "" {
		o.Identity.Seed = rand.Text() // or two copies of one disk would clash
	}
	if err := d.recover(ctx, cli.LUNOptions{Sources: o.Sources, Snapshots: o.Snapshots, Identity: o.Identity, ReadOnly: true}); err != nil {
		return cli.CopiedDisk{}, err
	}
	dev := d.devices[0]
	if err := recovery.Copy(ctx, dev, o.To, progress(dev.Size())); err != nil {
		return cli.CopiedDisk{}, err
	}
	return cli.CopiedDisk{Size: dev.Size(), Recovered: d.recovered, NewIdentity: d.identity, Warnings: d.warnings}, nil
}
