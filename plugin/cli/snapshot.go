package cli

import (
	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/iscsi"
)

func (a *app) snapshotCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "snapshot",
		Aliases: []string{"snap"},
		Short:   "Make and manage snapshot sets",
		Long: `A snapshot set is one run over one or more VMs: each guest snapshots itself, the
array splits the volumes under them, and the clean content comes up as LUNs. A
set has an ID, a state and a document that says what was asked, what was reached
and the evidence.`,
		Example: `  cleave snapshot create --vm db --wait
  cleave snapshot list
  cleave snapshot show set-0123456789abcdef -o json
  cleave snapshot delete set-0123456789abcdef`,
	}
	c.AddCommand(a.snapshotCreateCommand(), a.snapshotListCommand(), a.snapshotShowCommand(),
		a.snapshotExposeCommand(), a.snapshotUnexposeCommand(), a.snapshotDiffCommand(),
		a.snapshotRecoverCommand(), a.snapshotRevertCommand(), a.snapshotBreakCommand(), a.snapshotDeleteCommand())
	return c
}

// initiators checks and normalises IQNs.
func initiators(names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		iqn, err := iscsi.ParseName(n)
		if err != nil {
			return nil, usagef("%w", err)
		}
		out = append(out, string(iqn))
	}
	return out, nil
}
