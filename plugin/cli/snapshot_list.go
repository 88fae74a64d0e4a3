package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/orchestrator"
)

func (a *app) snapshotListCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List snapshot sets, newest first",
		Long: `List the snapshot sets that hold something or are under way, newest first; with
--all those that are over as well.`,
		Example: `  cleave snapshot list
  cleave snapshot list --all -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withControl(func(s Control) error {
				sets, err := s.List(c.Context())
				if err != nil {
					return err
				}
				var shown []orchestrator.Set
				for _, set := range sets {
					if all || !set.State.Final() {
						shown = append(shown, set)
					}
				}
				return a.print(setsResult(shown))
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also sets that were released or aborted")
	return c
}

func setsResult(sets []orchestrator.Set) result {
	var names []string
	for _, s := range sets {
		names = append(names, string(s.ID))
	}
	return result{value: list("sets", sets), names: names, text: func(w io.Writer, p *paper) error {
		t := table{head: []string{"ID", "STATE", "VMS", "CREATED", "EXPIRES", "LUNS", "+NOTE", "REASON"}}
		for _, s := range sets {
			vms := ""
			for i, v := range s.VMs {
				if i > 0 {
					vms += ","
				}
				vms += v.Name + ":" + v.Reached.String()
			}
			t.add(string(s.ID), string(s.State), vms, clock(s.Created), clock(s.Expires), fmt.Sprint(len(s.LUNs)), s.Request.Note, s.Reason)
		}
		p.draw(w, t)
		return nil
	}}
}
