package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) snapshotDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "delete SET…",
		Aliases: []string{"release"},
		Short:   "Give back all that a set holds; abort it if it is under way",
		Long: `Give back all that a set holds: LUNs, views, splits and what is left inside the
guests. A set under way is aborted. The command returns when nothing is left; if
it is interrupted, the giving back goes on.`,
		Example: `  cleave snapshot delete set-0123456789abcdef
  cleave snapshot delete $(cleave snapshot list -o name)`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withControl(func(s Control) error {
				var errs []error
				done := 0
				for _, arg := range args {
					id, err := setID(arg)
					if err == nil {
						_, err = s.Release(c.Context(), id)
					}
					if err != nil {
						errs = append(errs, err)
						continue
					}
					fmt.Fprintln(a.Out, id)
					done++
				}
				if len(errs) < 2 && done == 0 {
					return errors.Join(errs...)
				}
				for _, err := range errs {
					say(a.Err, "cleave", err.Error())
				}
				return several(done, errs)
			})
		},
	}
}
