package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) volumeExposeCommand() *cobra.Command {
	var to []string
	var readOnly bool
	c := &cobra.Command{
		Use:   "expose NAME --to IQN…",
		Short: "Let initiators see a volume as a LUN",
		Long: `Let initiators see a volume as a LUN of the array's iSCSI target, and nobody
else. It stays exposed over restarts, on the same LUN number, until unexpose.`,
		Example: `  cleave volume expose db --to iqn.1993-08.org.debian:01:host1`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			iqns, err := initiators(to)
			if err != nil {
				return err
			}
			return a.withStorage(func(s Storage) error {
				v, err := s.ExposeVolume(c.Context(), args[0], iqns, readOnly)
				if err != nil {
					return err
				}
				return a.print(volumeResult(v))
			})
		},
	}
	f := c.Flags()
	f.StringArrayVar(&to, "to", nil, "IQN of an initiator; repeat it for several (required)")
	f.BoolVar(&readOnly, "read-only", false, "refuse writes")
	if err := c.MarkFlagRequired("to"); err != nil {
		panic(err) // a flag that is not there: a slip in this function
	}
	return c
}

func (a *app) volumeUnexposeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unexpose NAME",
		Short: "Take a volume's LUN away",
		Long: `Take a volume's LUN away from all initiators. Commands under way end first; what
an initiator has not yet written is lost to it.`,
		Example: `  cleave volume unexpose db`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				if err := s.UnexposeVolume(c.Context(), args[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintln(a.Out, args[0])
				return err
			})
		},
	}
}
