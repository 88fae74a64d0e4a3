package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/orchestrator"
)

func (a *app) snapshotRecoverCommand() *cobra.Command {
	var req orchestrator.RecoverRequest
	c := &cobra.Command{
		Use:   "recover SET [--discard-others]",
		Short: "Put the guests' snapshots back in the splits of a set themselves",
		Long: `Put what the guests snapshot back in the splits of a ready set themselves, in
place. A set comes with views in which that is done without writing; afterwards
the splits need none: each is one clean LUN, which initiators may write to if
snapshot expose --writable says so, and snapshot revert and break mean the clean
content.

A thick LVM snapshot is written over its volume (mode overwrite), of a thin one
only metadata is (mode delete: LVM deletes the dirty thin device later). Where the
splits were rewritten is in the set's document and in what snapshot diff lists, and
a resync copies it back like everything else that changed.

It is refused, and the set stays as it is, while a LUN of the set is exposed (take
it away with snapshot unexpose) or read on this host by its socket, and where other snapshots of the same volumes
would be worthless afterwards, unless --discard-others lets them go. The views
end.

If it fails once it has begun, the set stays recovering: the same command goes on
where it was, as does the next start of the control plane, and cleave snapshot
delete leaves it at that.`,
		Example: `  cleave snapshot recover set-0123456789abcdef
  cleave snapshot show set-0123456789abcdef -o json | jq '.splits[] | {id, state, recovery}'`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.turn(c, args[0], "recover", func(s Control, ctx context.Context, id orchestrator.SetID) (orchestrator.Set, error) {
				return s.Recover(ctx, id, req)
			})
		},
	}
	c.Flags().BoolVar(&req.DiscardOthers, "discard-others", false, "agree that other snapshots of the recovered volumes are removed")
	return c
}

// inPlaceTable says which splits were recovered in place, or are being.
func inPlaceTable(splits []orchestrator.Split) table {
	t := table{head: []string{"SPLIT", "VOLUME", "IN PLACE", "REWRITTEN", "+REGIONS"}}
	for _, s := range splits {
		state := ""
		switch s.Recovery {
		case orchestrator.RecoveredInPlace:
			state = "clean"
		case orchestrator.RecoveringInPlace:
			state = "not finished"
		default:
			continue
		}
		total := int64(0)
		for _, r := range s.Rewritten {
			total += r.Length
		}
		t.add(s.ID, s.Array+"/"+s.Volume, state, size(total), fmt.Sprint(len(s.Rewritten)))
	}
	return t
}
