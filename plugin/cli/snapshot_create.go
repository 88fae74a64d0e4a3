package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) snapshotCreateCommand() *cobra.Command {
	var flags requestFlags
	var dryRun, wait bool
	c := &cobra.Command{
		Use:   "create --vm VM…",
		Short: "Make a snapshot set over one or more VMs",
		Long: `Make a snapshot set: each guest that can snapshots itself, then the array splits
the volumes under all VMs at one instant, and the guests' clean content comes up
as LUNs. VMs that can't snapshot themselves are paused for the instant of the
split. Without --level each VM is held to the best level that it can reach now,
and what was reached is said in the result.

The set's ID is printed as soon as the set has begun. With --wait the command
follows it on stderr until it is ready and prints the result: the level that
each VM reached, its LUNs and the timeline.

A set holds its copies until it is deleted or its lease ends.

Exit status 3: a VM can't reach the level asked (nothing was touched), or it
reached less.`,
		Example: `  cleave snapshot create --vm db --wait
  cleave snapshot create --vm db --vm legacy --level crash --to iqn.1993-08.org.debian:01:backup1 --wait
  cleave snapshot create --vm db --level application --dry-run
  id=$(cleave snapshot create --vm db --wait -o name)`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			req, err := flags.read()
			if err != nil {
				return err
			}
			req.DryRun = dryRun
			return a.withControl(func(s Control) error {
				set, err := s.Create(c.Context(), req)
				if err != nil {
					return err
				}
				switch {
				case dryRun:
					return a.print(planResult(set))
				case !wait && (a.output == formatJSON || a.output == formatYAML):
					return a.print(setResult(set))
				case !wait:
					_, err := fmt.Fprintln(a.Out, set.ID)
					return err
				}
				id := set.ID
				show := a.progress(id)
				set, err = s.Wait(c.Context(), id, show.event)
				show.end()
				if err != nil {
					return interrupted(err, id)
				}
				if err := a.print(setResult(set)); err != nil {
					return err
				}
				return outcome(set)
			})
		},
	}
	flags.register(c)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and touch nothing")
	c.Flags().BoolVar(&wait, "wait", false, "return when the set is ready, and print its result")
	c.MarkFlagsMutuallyExclusive("dry-run", "wait")
	return c
}
