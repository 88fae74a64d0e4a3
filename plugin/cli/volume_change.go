package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

func (a *app) volumeResizeCommand() *cobra.Command {
	var sizeFlag string
	c := &cobra.Command{
		Use:   "resize NAME --size SIZE",
		Short: "Grow a volume",
		Long: `Grow a volume while it is in use. Initiators see the new size when they ask
again. A volume does not shrink.`,
		Example: `  cleave volume resize db --size 40GiB`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := parseSize(sizeFlag)
			if err != nil {
				return err
			}
			return a.withStorage(func(s Storage) error {
				v, err := s.ResizeVolume(c.Context(), args[0], n)
				if err != nil {
					return err
				}
				return a.print(volumeResult(v))
			})
		},
	}
	c.Flags().StringVar(&sizeFlag, "size", "", "new size, as in 40GiB (required)")
	if err := c.MarkFlagRequired("size"); err != nil {
		panic(err) // a flag that is not there: a slip in this function
	}
	return c
}

func (a *app) volumeDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a volume and its data",
		Long: `Delete a volume and the data on it, for good. It is refused while the volume is
exposed, in use or has splits.`,
		Example: `  cleave volume unexpose old && cleave volume delete old`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				if err := s.DeleteVolume(c.Context(), args[0]); err != nil {
					if arrays.KindOf(err) == driver.Busy {
						err = hint(err, "`cleave volume unexpose %s` first; `cleave snapshot list` shows sets that hold its splits", args[0])
					}
					return err
				}
				_, err := fmt.Fprintln(a.Out, args[0])
				return err
			})
		},
	}
}
