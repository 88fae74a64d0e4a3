package cli

import (
	"slices"
	"strings"

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

// hostsOrInitiators checks and normalises IQNs, and lets names of hosts be, which
// the control plane knows.
func hostsOrInitiators(names []string) ([]string, error) {
	out := slices.Clone(names)
	for i, n := range names {
		kind, _, _ := strings.Cut(strings.ToLower(n), ".")
		host := n != "" && kind != "iqn" && kind != "eui" && kind != "naa" && !strings.ContainsAny(n, ":/ \t\n")
		if host {
			continue
		}
		iqns, err := initiators(names[i : i+1])
		if err != nil {
			return nil, err
		}
		out[i] = iqns[0]
	}
	return out, nil
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
