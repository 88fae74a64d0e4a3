package cli

import (
	"fmt"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/spf13/cobra"
)

func (a *app) lunSumCommand() *cobra.Command {
	var volume string
	c := &cobra.Command{
		Use:   "sha256 SRC…",
		Short: "Print the SHA-256 of volumes",
		Long: `Print one line a volume: its SHA-256, its size in bytes, its name. A snapshot's content is what the guest's kernel would
have read from it.

Without --volume all volumes are read. One that can't be read is named on stderr, and the exit status is 3.`,
		Example: `  cleave lun sha256 disk.img
  cleave lun sha256 a.img b.img --volume vg/snap
  cleave lun sha256 /dev/sdc --volume 8RfV23-8Il5-oMwk-DYpQ-ieLK-Y8TD-BfAKuq`,
		Args: lunSource,
		RunE: func(c *cobra.Command, args []string) error {
			return withContents(c.Context(), args, func(contents *open.Contents) error {
				if volume != "" {
					v, err := contents.Volume(volume)
					if err != nil {
						return err
					}
					return printSum(c, a.Streams, v)
				}
				failed := len(contents.Damage) > 0
				for _, d := range contents.Damage {
					say(a.Err, "cleave", d.Error())
				}
				for _, v := range contents.Volumes() {
					if err := printSum(c, a.Streams, v); c.Context().Err() != nil {
						return err
					} else if err != nil {
						failed = true
						say(a.Err, "cleave", err.Error())
					}
				}
				if failed {
					return status(ExitPartial)
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&volume, "volume", "", "name or UUID of the one volume to read")
	return c
}

func printSum(c *cobra.Command, s Streams, v *open.Volume) error {
	d, err := v.Open()
	if err != nil {
		return err
	}
	p := newLunProgress(s, v.Name, d.Size())
	sum, err := recovery.Sum(c.Context(), d, p.update)
	p.end()
	if err != nil {
		return fmt.Errorf("%s: %w", v.Name, err)
	}
	_, err = fmt.Fprintf(s.Out, "%x  %d  %s\n", sum, d.Size(), v.Name)
	return err
}
