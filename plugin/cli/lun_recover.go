package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/lun/recovery"
)

// recoverFlags are those of `cleave lun recover` that are not a target's.
type recoverFlags struct {
	volumes, also []string
	to, overlay   string
	serve, place  bool
	discard, plan bool
	from          sourceFlags
}

func (a *app) lunRecoverCommand() *cobra.Command {
	var r recoverFlags
	var target targetFlags
	c := &cobra.Command{
		Use:   "recover SRC… [--volume V] (--to FILE | --in-place | --serve)",
		Short: "Bring a snapshot inside a LUN back, as a file, in place or as a LUN",
		Long: `Bring back the clean snapshot of a volume that the guest made. The guest's disk is opened in a process of its own that has
no privileges. --volume names a snapshot; without it, every volume that has exactly one snapshot is put back to it.

--to with --volume copies the content of that volume or snapshot to a new file; without, the whole disk of the one SRC, in
which the volumes have been put back. The file is sparse where it is zero. One that exists is not overwritten, and a copy
that fails leaves none behind.

--in-place writes the chunks that the snapshot preserves over the volume in SRC itself, then takes the snapshot out of the
volume group, as a finished "lvconvert --merge" leaves it. Nothing else is written, and nothing at all where any of what is
found is damaged. SRC must not be in use. Interrupted at any moment, by a crash or a signal, it goes on when the same
command is given again; until then every view of SRC shows the recovered volume. Other snapshots of the same volume would
be worthless afterwards: they are removed if --discard-others says so, else the recovery is refused. -o json lists the
extents that were rewritten. --dry-run says what would be done. A thin snapshot
takes its volume's place by a change of metadata alone; LVM deletes the dirty thin device at the next activation.
Where SRC is a virtual disk of several files (the extents of a VMDK, the data file of a qcow2), --also names those that
may be written besides SRC.

--serve copies nothing: it serves each SRC by iSCSI as a LUN in which the volumes show the snapshots' content, until SIGINT
or SIGTERM. Initiators may write; what they write is kept in temporary files and is gone in the end.

With --to and --serve, SRC is only read. However it is done, the whole disk stays one that an ordinary kernel boots and
mounts.`,
		Example: `  cleave lun recover /dev/sdc --volume vg/cleave-data --to data.img
  cleave lun recover /dev/sdc --to disk.img
  cleave lun recover a.img b.img --volume gac6wu-xU2u-QIlR-UpAV-ykKw-ArQR-tRezMV --in-place
  cleave lun recover /dev/sdc --volume vg/cleave-data --serve --portal 127.0.0.1:3260 --iqn iqn.2026-01.org.example:restore`,
		Args: lunSource,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := r.from.sources(args)
			if err != nil {
				return err
			}
			if err := r.check(target.given(), len(args)); err != nil {
				return err
			}
			switch {
			case r.serve:
				o, err := target.options()
				if err != nil {
					return err
				}
				o.Sources, o.Recover, o.Snapshots, o.Overlay = s, true, r.volumes, r.overlay
				return a.serveLUNs(c.Context(), o)
			case r.place:
				s.Also = r.also
				return a.recoverInPlace(c.Context(), InPlaceOptions{Sources: s, Snapshots: r.volumes, DiscardOthers: r.discard, PlanOnly: r.plan})
			case len(r.volumes) == 0:
				return a.copyDisk(c.Context(), s, r.to)
			}
			return a.copyVolume(c.Context(), s, r.volumes[0], r.to)
		},
	}
	f := c.Flags()
	r.from.add(f)
	f.StringArrayVar(&r.volumes, "volume", nil, "name or UUID of the snapshot (with --to, of any volume); repeat it for several but with --to")
	f.StringVar(&r.to, "to", "", "new file that receives the content")
	ways := []string{"to"}
	if a.parts.RecoverInPlace != nil {
		f.BoolVar(&r.place, "in-place", false, "write the snapshot over the volume, in SRC itself")
		f.BoolVar(&r.discard, "discard-others", false, "with --in-place: remove other snapshots of the volume, which it makes worthless")
		f.StringArrayVar(&r.also, "also", nil, "with --in-place: a file beside SRC, part of its virtual disk, that may be written too; repeat it for several")
		f.BoolVar(&r.plan, "dry-run", false, "with --in-place: say what would be done, and write nothing")
		ways = append(ways, "in-place")
	}
	if a.parts.ServeLUNs != nil {
		f.BoolVar(&r.serve, "serve", false, "serve the recovered LUN by iSCSI")
		f.StringVar(&r.overlay, "overlay", "", "directory for what is written to the recovered LUN (default: the system's for temporary files)")
		target.add(f)
		ways = append(ways, "serve")
	}
	c.MarkFlagsMutuallyExclusive(ways...)
	return c
}

// check refuses flags that do not go together.
func (r *recoverFlags) check(target bool, sources int) error {
	switch {
	case !r.serve && !r.place && r.to == "":
		return usagef("say where to: --to FILE, --in-place, or --serve")
	case (target || r.overlay != "") && !r.serve:
		return usagef("--portal and what belongs to it go with --serve")
	case (r.discard || r.plan || len(r.also) > 0) && !r.place:
		return usagef("--discard-others, --dry-run and --also go with --in-place")
	case r.place && r.from.snapshot != "":
		return usagef("--container-snapshot is only read: it does not go with --in-place")
	case r.to != "" && len(r.volumes) > 1:
		return usagef("--to takes one volume: --volume is there %d times", len(r.volumes))
	case r.to != "" && len(r.volumes) == 0 && sources > 1:
		return usagef("--to takes one disk: name a volume with --volume, or have all %d served with --serve", sources)
	}
	return nil
}

// copyVolume copies the content of one volume to a new file.
func (a *app) copyVolume(ctx context.Context, sources LUNSources, volume, to string) error {
	return a.withDisks(ctx, sources, func(disks Disks) error {
		v := disks.Volumes[0]
		d, err := v.Open(ctx)
		if err != nil {
			return err
		}
		defer d.Close()
		p := newLunProgress(a.Streams, v.Name, d.Size())
		err = recovery.Copy(ctx, d, to, p.update)
		p.end()
		if err != nil {
			return fmt.Errorf("copy %s to %s: %w", v.Name, to, err)
		}
		_, err = fmt.Fprintf(a.Out, "%s  %d  %s\n", to, d.Size(), printable(v.Name))
		return err
	}, volume)
}

// copyDisk copies a disk with its volumes put back to a new file.
func (a *app) copyDisk(ctx context.Context, sources LUNSources, to string) error {
	if a.parts.CopyDisk == nil {
		return usagef("--volume is missing: name what to recover")
	}
	var p *lunProgress
	done, err := a.parts.CopyDisk(ctx, CopyDiskOptions{Sources: sources, To: to}, func(size int64) recovery.Progress {
		p = newLunProgress(a.Streams, "disk", size)
		return p.update
	})
	if p != nil {
		p.end()
	}
	if err != nil {
		if p != nil {
			err = fmt.Errorf("copy the disk to %s: %w", to, err)
		}
		return lunError(err)
	}
	for _, w := range done.Warnings {
		say(a.Err, "warning", w.Error())
	}
	for _, v := range done.Recovered {
		if _, err := fmt.Fprintf(a.Out, "%s  from %s\n", printable(v.Volume), printable(v.Snapshot)); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(a.Out, "%s  %d  disk\n", to, done.Size)
	return err
}
