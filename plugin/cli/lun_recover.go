package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/lun/recovery"
)

func (a *app) lunRecoverCommand() *cobra.Command {
	var volumes []string
	var to, overlay string
	var serve bool
	var target targetFlags
	var from sourceFlags
	c := &cobra.Command{
		Use:   "recover SRC… --volume V (--to FILE | --serve)",
		Short: "Bring a snapshot inside a LUN back, as a file or as a LUN",
		Long: `Bring back a volume, or the clean snapshot of it that the guest made. SRC is only read.

--to copies the content of one volume to a new file, sparse where it is zero. A file that exists is not overwritten, and a
copy that fails leaves none behind.

--serve copies nothing: it serves each SRC by iSCSI as a LUN in which the volumes of the named snapshots show the
snapshots' content, until SIGINT or SIGTERM. The whole disk stays one that an ordinary kernel boots and mounts. Without
--volume, every volume that has exactly one snapshot is put back to it. Initiators may write; what they write is kept in
temporary files and is gone in the end. The guest's disk is opened in a process of its own that has no privileges.`,
		Example: `  cleave lun recover /dev/sdc --volume vg/cleave-data --to data.img
  cleave lun recover a.img b.img --volume gac6wu-xU2u-QIlR-UpAV-ykKw-ArQR-tRezMV --to data.img
  cleave lun recover /dev/sdc --volume vg/cleave-data --serve --portal 127.0.0.1:3260 --iqn iqn.2026-01.org.example:restore`,
		Args: lunSource,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := from.sources(args)
			switch {
			case err != nil:
				return err
			case serve:
				o, err := target.options()
				if err != nil {
					return err
				}
				o.Sources, o.Recover, o.Snapshots, o.Overlay = s, true, volumes, overlay
				return a.serveLUNs(c.Context(), o)
			case to == "":
				return usagef("--to is missing: name the file to write, or have it served with --serve")
			case target.given() || overlay != "":
				return usagef("--portal and what belongs to it go with --serve, not with --to")
			case len(volumes) == 0:
				return usagef("--volume is missing: name what to recover")
			case len(volumes) > 1:
				return usagef("--to takes one volume: --volume is there %d times", len(volumes))
			}
			return a.copyVolume(c.Context(), s, volumes[0], to)
		},
	}
	f := c.Flags()
	from.add(f)
	f.StringArrayVar(&volumes, "volume", nil, "name or UUID of the volume or snapshot; with --serve, repeat it for several")
	f.StringVar(&to, "to", "", "new file that receives the content")
	if a.parts.ServeLUNs != nil {
		f.BoolVar(&serve, "serve", false, "serve the recovered LUN by iSCSI")
		f.StringVar(&overlay, "overlay", "", "directory for what is written to the recovered LUN (default: the system's for temporary files)")
		target.add(f)
		c.MarkFlagsMutuallyExclusive("to", "serve")
	}
	return c
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
