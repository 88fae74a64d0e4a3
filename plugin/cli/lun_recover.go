package cli

import (
	"fmt"

	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/spf13/cobra"
)

func lunRecoverCommand(s Streams) *cobra.Command {
	var volume, to string
	c := &cobra.Command{
		Use:   "recover SRC… --volume V --to FILE",
		Short: "Copy a volume or a snapshot out of a LUN",
		Long: `Copy the content of a volume to a new file, sparse where it is zero. The content of a snapshot is the clean one that the
guest made. SRC is only read. A file that exists is not overwritten, and a copy that fails leaves none behind.`,
		Example: `  cleave lun recover /dev/sdc --volume vg/cleave-data --to data.img
  cleave lun recover a.img b.img --volume gac6wu-xU2u-QIlR-UpAV-ykKw-ArQR-tRezMV --to data.img`,
		Args: lunSource,
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case volume == "":
				return usagef("--volume is missing: name what to recover")
			case to == "":
				return usagef("--to is missing: name the file to write")
			}
			return withContents(c.Context(), args, func(contents *open.Contents) error {
				v, err := contents.Volume(volume)
				if err != nil {
					return err
				}
				d, err := v.Open()
				if err != nil {
					return err
				}
				p := newLunProgress(s, v.Name, d.Size())
				err = recovery.Copy(c.Context(), d, to, p.update)
				p.end()
				if err != nil {
					return fmt.Errorf("copy %s to %s: %w", v.Name, to, err)
				}
				_, err = fmt.Fprintf(s.Out, "%s  %d  %s\n", to, d.Size(), v.Name)
				return err
			})
		},
	}
	c.Flags().StringVar(&volume, "volume", "", "name or UUID of the volume or snapshot")
	c.Flags().StringVar(&to, "to", "", "new file that receives the content")
	return c
}
