package cli

import (
	"context"
	"fmt"

	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/spf13/cobra"
)

func (a *app) lunSumCommand() *cobra.Command {
	var volume string
	var from sourceFlags
	c := &cobra.Command{
		Use:   "sha256 SRC…",
		Short: "Print the SHA-256 of volumes",
		Long: `Print one line a volume: its SHA-256, its size in bytes, its name. A snapshot's content is what the guest's kernel would
have read from it.

Without --volume all volumes are read. One that can't be read is named on stderr, and the exit status is 3; if none can, it is 1.`,
		Example: `  cleave lun sha256 disk.img
  cleave lun sha256 a.img b.img --volume vg/snap
  cleave lun sha256 disk.qcow2 --volume snapshot:before-upgrade
  cleave lun sha256 /dev/sdc --volume 8RfV23-8Il5-oMwk-DYpQ-ieLK-Y8TD-BfAKuq`,
		Args: lunSource,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := a.sources(c.Context(), &from, args)
			if err != nil {
				return err
			}
			if volume != "" {
				return a.withDisks(c.Context(), s, func(d Disks) error { return a.printSum(c.Context(), d.Volumes[0]) }, volume)
			}
			return a.withDisks(c.Context(), s, func(d Disks) error { return a.printSums(c.Context(), d) })
		},
	}
	from.add(c.Flags())
	c.Flags().StringVar(&volume, "volume", "", "name or UUID of the one volume to read")
	return c
}

// printSums prints one line a volume, and names those that can't be read. That
// there is none is an error of its own.
func (a *app) printSums(ctx context.Context, d Disks) error {
	failed, read := d.Damage, 0
	for _, v := range d.Volumes {
		if err := a.printSum(ctx, v); ctx.Err() != nil {
			return err
		} else if err != nil {
			failed = append(failed, err)
		} else {
			read++
		}
	}
	if len(failed) > 0 && read == 0 {
		return failed[0]
	}
	for _, err := range failed {
		say(a.Err, "cleave", err.Error())
	}
	if len(failed) > 0 {
		return status(ExitPartial)
	}
	return nil
}

func (a *app) printSum(ctx context.Context, v Disk) error {
	d, err := v.Open(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	p := newLunProgress(a.Streams, v.Name, d.Size())
	sum, err := recovery.Sum(ctx, d, p.update)
	p.end()
	if err != nil {
		return fmt.Errorf("%s: %w", v.Name, err)
	}
	_, err = fmt.Fprintf(a.Out, "%x  %d  %s\n", sum, d.Size(), printable(v.Name))
	return err
}
