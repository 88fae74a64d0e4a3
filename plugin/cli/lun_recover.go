package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/lun/recovery"
)

// recoverFlags are those of `cleave lun recover` that are not a target's.
type recoverFlags struct {
	volumes, also []string
	to, overlay   string
	journal       string
	serve, place  bool
	discard, plan bool
	identity      IdentityOptions
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

A shadow copy of Windows (vss1 is the oldest) and a snapshot of Btrfs (subvol:PATH) lie in the volume that they are of. --in-place
stages them: everything that will be written is first written to the redo journal, a file that needs room for all that is
preserved, and made stable there; only then is SRC written. Interrupted in between, the volume in SRC is half written, says so
to Cleave, and is mounted by no Btrfs: only the same command with the journal makes it whole, so keep that file. It is removed in
the end. Of a shadow copy, blocks that were free when it was made stay as they are, and afterwards the volume has no shadow copies:
the files of their store, in System Volume Information, remain as allocated clusters until somebody deletes them.
Btrfs shows the snapshot under the name of the subvolume that it is of, and by default where that one was mounted by default, and
the subvolume as it was under the snapshot's; a guest that mounts by subvolid= has to be told. Its tree blocks are changed
where they are, and the snapshot is no longer listed as one.

--serve copies nothing: it serves each SRC by iSCSI as a LUN in which the volumes show the snapshots' content, until SIGINT
or SIGTERM. Initiators may write; what they write is kept in temporary files and is gone in the end.

With --to and --serve, SRC is only read. However it is done, the whole disk stays one that an ordinary kernel boots and
mounts.

--new-identity is for a host or guest that has the original as well: the whole recovered disk gets another GPT disk GUID and
partition GUIDs, or MBR signature; other UUIDs of its LVM physical volumes and volume groups; and other names of the groups,
the old ones with a number behind. What was changed is printed. Given again, the same --identity-seed gives the same; --serve
makes one of SRC and --iqn, so that a view has the same identity after a restart, and --to a random one. All disks of all
volume groups that are seen must be given. Logical volumes keep their names and UUIDs, and all that lies in them is the same:
file systems, swap, LUKS and md arrays keep their UUIDs. A host that has both must mount them by the volume's path, not by
UUID or label; XFS needs "mount -o nouuid" then, and both of one Btrfs are too much for any host.

To boot a guest from the copy, change first what names the group or a PARTUUID: /etc/fstab and /etc/crypttab, root= and
resume= of the boot loader, the initramfs; install GRUB anew where /boot is in LVM, and make the UEFI
boot entry anew.`,
		Example: `  cleave lun recover /dev/sdc --volume vg/cleave-data --to data.img
  cleave lun recover /dev/sdc --to disk.img
  cleave lun recover a.img b.img --volume gac6wu-xU2u-QIlR-UpAV-ykKw-ArQR-tRezMV --in-place
  cleave lun recover /dev/sdc --volume vg/cleave-data --serve --portal 127.0.0.1:3260 --iqn iqn.2026-01.org.example:restore
  cleave lun recover /dev/sdc --new-identity --to beside-the-original.img`,
		Args: lunSource,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.sources(c.Context(), &r.from, args)
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
				o.Sources, o.Recover, o.Snapshots, o.Overlay, o.Identity = s, true, r.volumes, r.overlay, r.identity
				return a.serveLUNs(c.Context(), o)
			case r.place:
				s.Also = r.also
				return a.recoverInPlace(c.Context(), InPlaceOptions{Sources: s, Snapshots: r.volumes, DiscardOthers: r.discard, Journal: r.journal, PlanOnly: r.plan})
			case len(r.volumes) == 0:
				return a.copyDisk(c.Context(), CopyDiskOptions{Sources: s, To: r.to, Identity: r.identity})
			}
			return a.copyVolume(c.Context(), s, r.volumes[0], r.to)
		},
	}
	f := c.Flags()
	r.from.add(f)
	f.StringArrayVar(&r.volumes, "volume", nil, "name or UUID of the snapshot (with --to, of any volume); repeat it for several but with --to")
	f.StringVar(&r.to, "to", "", "new file that receives the content")
	f.BoolVar(&r.identity.New, "new-identity", false, "with --to of a disk, or --serve: other GPT or MBR ids, PV and VG UUIDs and VG names than SRC's")
	f.StringVar(&r.identity.Seed, "identity-seed", "", "with --new-identity: text that gives the same identity again")
	ways := []string{"to"}
	if a.parts.RecoverInPlace != nil {
		f.BoolVar(&r.place, "in-place", false, "write the snapshot over the volume, in SRC itself")
		f.BoolVar(&r.discard, "discard-others", false, "with --in-place: remove other snapshots of the volume, which it makes worthless")
		f.StringArrayVar(&r.also, "also", nil, "with --in-place: a file beside SRC, part of its virtual disk, that may be written too; repeat it for several")
		f.StringVar(&r.journal, "journal", "", "with --in-place of shadow copies and Btrfs: file for the redo journal (default: beside SRC, if that is a file, SRC.cleave-redo)")
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
	case (r.discard || r.plan || r.journal != "" || len(r.also) > 0) && !r.place:
		return usagef("--discard-others, --journal, --dry-run and --also go with --in-place")
	case r.identity.Seed != "" && !r.identity.New:
		return usagef("--identity-seed goes with --new-identity")
	case r.identity.New && r.place:
		return usagef("--new-identity does not go with --in-place: labels and metadata can't be changed at one moment there; --to makes a copy, and --serve a LUN, that has one")
	case r.identity.New && r.to != "" && len(r.volumes) > 0:
		return usagef("--new-identity goes with a whole disk: of the one --volume that --to copies, there is nothing to rename")
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
		return a.print(result{
			value: ordered{{"version", 1}, {"file", to}, {"size", d.Size()}, {"volume", v.Name}},
			names: []string{to},
			text: func(w io.Writer, _ *paper) error {
				_, err := fmt.Fprintf(w, "%s  %d  %s\n", to, d.Size(), printable(v.Name))
				return err
			},
		})
	}, volume)
}

// copyDisk copies a disk with its volumes put back to a new file.
func (a *app) copyDisk(ctx context.Context, o CopyDiskOptions) error {
	if a.parts.CopyDisk == nil {
		return usagef("--volume is missing: name what to recover")
	}
	var p *lunProgress
	done, err := a.parts.CopyDisk(ctx, o, func(size int64) recovery.Progress {
		p = newLunProgress(a.Streams, "disk", size)
		return p.update
	})
	if p != nil {
		p.end()
	}
	if err != nil {
		if p != nil {
			err = fmt.Errorf("copy the disk to %s: %w", o.To, err)
		}
		return lunError(err)
	}
	for _, w := range done.Warnings {
		say(a.Err, "warning", w.Error())
	}
	value := ordered{{"version", 1}, {"file", o.To}, {"size", done.Size}, {"recovered", some(done.Recovered)}}
	if done.NewIdentity != nil {
		value = append(value, field{"newIdentity", done.NewIdentity})
	}
	return a.print(result{
		value: value,
		names: []string{o.To},
		text: func(w io.Writer, p *paper) error {
			for _, v := range done.Recovered {
				fmt.Fprintf(w, "%s  from %s\n", printable(v.Volume), printable(v.Snapshot))
			}
			fmt.Fprintf(w, "%s  %d  disk\n", o.To, done.Size)
			done.NewIdentity.draw(w, p)
			return nil
		},
	})
}

// draw lists what was changed; nothing of nil.
func (n *NewIdentity) draw(w io.Writer, p *paper) {
	if n == nil {
		return
	}
	fmt.Fprintf(w, "\nnew identity, of the seed %s\n", printable(n.Seed))
	t := table{head: []string{"CHANGED", "OF", "OLD", "NEW"}}
	for _, c := range n.Changed {
		t.add(c.Kind, c.Of, c.Old, c.New)
	}
	p.draw(w, t)
}
