package cli

import (
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/orchestrator"
)

func (a *app) vmCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "vm",
		Short: "The virtual machines that can be backed up",
		Long:  "The virtual machines of all configured hosts, and what a backup would cost each of them.",
		Example: `  cleave vm list
  cleave vm list -o wide`,
	}
	c.AddCommand(a.vmListCommand())
	return c
}

// vmLine is a VM with its verdict, one element of `vm list -o json`.
type vmLine struct {
	orchestrator.VM
	Verdict *orchestrator.Verdict `json:"verdict,omitempty"`
}

func (a *app) vmListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List every VM with the downtime that its backup costs",
		Long: `List every VM that the configured host writers know, with its disks, what its
guest answered, and the verdict: no downtime (the guest snapshots itself), some
downtime (it is paused for a moment), or not possible.`,
		Example: `  cleave vm list
  cleave vm list -o wide
  cleave vm list -o json | jq -r '.vms[] | select(.verdict.class == "no downtime").name'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withControl(func(s Control) error {
				vms, err := s.VMs(c.Context())
				if err != nil {
					return err
				}
				verdicts, err := s.Explain(c.Context(), "")
				if err != nil {
					return err
				}
				return a.print(vmsResult(vms, verdicts))
			})
		},
	}
}

func vmsResult(vms []orchestrator.VM, verdicts []orchestrator.Verdict) result {
	byName := make(map[string]*orchestrator.Verdict, len(verdicts))
	for i := range verdicts {
		byName[verdicts[i].VM] = &verdicts[i]
	}
	var lines []vmLine
	var names []string
	for _, vm := range vms {
		lines = append(lines, vmLine{vm, byName[vm.Name]})
		names = append(names, vm.Name)
	}
	return result{value: list("vms", lines), names: names, text: func(w io.Writer, p *paper) error {
		t := table{head: []string{"NAME", "POWER", "CLASS", "BEST", "+HOST", "+DISKS", "+GUEST", "+VOLUMES", "REASON"}}
		for _, l := range lines {
			v := orchestrator.Verdict{Reason: l.Problem}
			if l.Verdict != nil {
				v = *l.Verdict
			}
			guest := l.Guest.Requester
			if guest == "" {
				guest = l.Guest.Silence
			}
			t.add(l.Name, string(l.Power), string(v.Class), v.Best.String(), l.Writer, strconv.Itoa(len(l.Disks)),
				guest, strings.Join(v.Volumes, ","), v.Reason)
		}
		p.draw(w, t)
		return nil
	}}
}
