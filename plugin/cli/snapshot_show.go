package cli

import (
	"github.com/spf13/cobra"
)

func (a *app) snapshotShowCommand() *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use:   "show SET",
		Short: "Show a snapshot set: levels, evidence, LUNs, timeline",
		Long: `Show the document of a snapshot set: for each VM the level asked, the level
reached and why; the LUNs; and the timeline, in which every line names the clock
it was measured by. With -o json it is the document as it is kept.`,
		Example: `  cleave snapshot show set-0123456789abcdef
  cleave snapshot show set-0123456789abcdef --wait
  cleave snapshot show set-0123456789abcdef -o json > set.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := setID(args[0])
			if err != nil {
				return err
			}
			return a.withControl(func(s Control) error {
				set, err := s.Get(c.Context(), id)
				if err == nil && wait {
					show := a.progress(id)
					set, err = s.Wait(c.Context(), id, show.event)
					show.end()
					err = interrupted(err, id)
				}
				if err != nil {
					return err
				}
				if err := a.print(setResult(set)); err != nil || !wait {
					return err
				}
				return outcome(set)
			})
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "follow it until it is ready or over")
	return c
}
