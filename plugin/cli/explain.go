package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/orchestrator"
)

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain VM",
		Short: "Say how a VM would be backed up, and why not better",
		Long: `Say what a backup of the VM would cost, which consistency level it would reach
now, and why: what the guest answered, which volumes can be snapshot inside it,
which applications take part, and which volumes of which array lie under its
disks. Nothing is touched.`,
		Example: `  cleave explain db
  cleave explain db -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withControl(func(s Control) error {
				verdicts, err := s.Explain(c.Context(), args[0])
				if err != nil {
					return err
				}
				vms, err := s.VMs(c.Context())
				if err != nil {
					return err
				}
				r := vmsResult(nil, nil)
				for _, vm := range vms {
					if vm.Name == args[0] {
						r = vmsResult([]orchestrator.VM{vm}, verdicts)
						r.text = func(w io.Writer, p *paper) error { explainVM(w, p, vm, verdicts); return nil }
					}
				}
				return a.print(r)
			})
		},
	}
}

// explainVM writes what is known of a VM, fact by fact.
func explainVM(w io.Writer, p *paper, vm orchestrator.VM, verdicts []orchestrator.Verdict) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-9s %s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	line("VM", "%s (%s, %s)", vm.Name, vm.Writer, vm.Power)
	for _, v := range verdicts {
		line("verdict", "%s: %s", v.Class, v.Reason)
		line("best", "%s", v.Best)
		if v.How != "" {
			line("how", "%s", v.How)
		}
		line("volumes", "%s", strings.Join(v.Volumes, ", "))
	}
	if vm.Problem != "" {
		line("problem", "%s", vm.Problem)
	}
	switch g := vm.Guest; {
	case g.Requester == "":
		line("guest", "no answer: %s", g.Silence)
	case !g.CanSnapshot:
		line("guest", "%s; can't snapshot itself: %s", g.Requester, g.Cannot)
	default:
		line("guest", "%s; can snapshot itself", g.Requester)
	}

	disks := table{head: []string{"DISK", "FORMAT", "SIZE", "CACHE", "WHERE"}}
	for _, d := range vm.Disks {
		where := d.Path
		if d.IQN != "" {
			where = fmt.Sprintf("%s LUN %d at %s", d.IQN, d.LUN, d.Portal)
		}
		disks.add(d.Device, d.Format, size(d.Size), d.Cache, where)
	}
	section(w, p, disks)
	volumes := table{head: []string{"GUEST VOLUME", "KIND", "SIZE", "FREE", "MOUNT", "CAN'T", "+UUID"}}
	for _, v := range vm.Guest.Volumes {
		volumes.add(v.Name, v.Kind, size(v.Size), size(v.Free), v.Mount, v.Cannot, v.UUID)
	}
	section(w, p, volumes)
	apps := table{head: []string{"APPLICATION", "VERSION", "RUNNING", "VOLUMES", "CAN'T"}}
	for _, g := range vm.Guest.Writers {
		apps.add(g.App, g.Version, yes(g.Running), strings.Join(g.Volumes, ","), g.Cannot)
	}
	section(w, p, apps)
}

// section draws a table after an empty line, if it has rows.
func section(w io.Writer, p *paper, t table) {
	if len(t.rows) > 0 {
		fmt.Fprintln(w)
		p.draw(w, t)
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
