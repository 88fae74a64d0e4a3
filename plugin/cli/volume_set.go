package cli

import (
	"slices"

	"github.com/spf13/cobra"
)

func (a *app) volumeSetCommand() *cobra.Command {
	var snapshots string
	c := &cobra.Command{
		Use:   "set NAME --snapshots POLICY",
		Short: "Change what splits of a volume are made of",
		Long: `Change what splits of a volume are made of, from the next one on: "mirror",
"reflink" or "auto". cleave volume create --help says what they are.`,
		Example: `  cleave volume set db --snapshots auto`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkPolicy(snapshots); err != nil {
				return err
			}
			return a.withStorage(func(s Storage) error {
				v, err := s.SetSnapshotPolicy(c.Context(), args[0], snapshots)
				if err != nil {
					return err
				}
				return a.print(volumeResult(v))
			})
		},
	}
	c.Flags().StringVar(&snapshots, "snapshots", "", "what a split takes: mirror, reflink or auto (required)")
	if err := c.MarkFlagRequired("snapshots"); err != nil {
		panic(err) // a flag that is not there: a slip in this function
	}
	return c
}

func checkPolicy(policy string) error {
	if !slices.Contains([]string{"mirror", "reflink", "auto"}, policy) {
		return usagef("--snapshots %s: want mirror, reflink or auto", policy)
	}
	return nil
}
