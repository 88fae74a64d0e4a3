package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/orchestrator"
)

func (a *app) snapshotRevertCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revert SET",
		Short: "Put the volumes of a set back to what it holds",
		Long: `Put all volumes of a ready set back to what its splits hold: as they came off,
not the recovered views, unless they were recovered in place (snapshot recover).
Nothing is copied first. LUNs and views of the set end,
and the set with them. What each volume held until now is kept as a split, the
safe point, which is told and belongs to no set: cleave mirror revert with its ID
goes back, cleave mirror delete gives it up.

It is refused, and nothing is touched, while a VM of the set is not off. Arrays
refuse while a volume is in use as well: take it from its initiators first
(cleave volume unexpose). If one does so after others were put back, the set
stays reverting: the same command goes on, as does the next start of the control
plane, and cleave snapshot delete leaves it at that.`,
		Example: `  cleave snapshot revert set-0123456789abcdef
  cleave snapshot show set-0123456789abcdef -o json | jq -r '.splits[].safePoint'`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.turn(c, args[0], "revert", Control.Revert)
		},
	}
}

func (a *app) snapshotBreakCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "break SET",
		Short: "Make the splits of a set volumes of their own",
		Long: `Make all splits of a ready set volumes of their own, for good: with their content
as it came off, or clean if it was recovered in place, and their identities, and without copying. They can't be resynced
any more. LUNs and views of the set end, and the set with them. The volumes are
named SET-VM-DEVICE, as far as names of volumes can be.

If an array refuses in the middle, the set stays breaking: the same command goes
on, as does the next start of the control plane, and cleave snapshot delete gives
back those splits that are left.`,
		Example: `  cleave snapshot break set-0123456789abcdef
  cleave volume expose set-0123456789abcdef-db-vda --to iqn.1993-08.org.debian:01:test`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.turn(c, args[0], "break", Control.Break)
		},
	}
}

// turn has a set reverted or broken off.
func (a *app) turn(c *cobra.Command, arg, verb string, do func(Control, context.Context, orchestrator.SetID) (orchestrator.Set, error)) error {
	id, err := setID(arg)
	if err != nil {
		return err
	}
	return a.withControl(func(s Control) error {
		set, err := do(s, c.Context(), id)
		if err != nil {
			switch set.State {
			case orchestrator.StateReverting, orchestrator.StateBreaking, orchestrator.StateRecovering:
				return hint(err, "the set is %s: `cleave snapshot show %s` says how far; `cleave snapshot %s %s` goes on", set.State, id, verb, id)
			default: // it is as it was
			}
			return err
		}
		return a.print(setResult(set))
	})
}

func turnedTable(splits []orchestrator.Split) table {
	t := table{head: []string{"SPLIT", "VOLUME", "SAFE POINT", "BECAME VOLUME"}}
	for _, s := range splits {
		if s.SafePoint != "" || s.Became != "" {
			t.add(s.ID, s.Array+"/"+s.Volume, s.SafePoint, s.Became)
		}
	}
	return t
}

func (a *app) snapshotDiffCommand() *cobra.Command {
	var from string
	c := &cobra.Command{
		Use:   "diff SET [--from SET]",
		Short: "Show which regions of a set's disks changed",
		Long: `Show which regions of the disks may differ between a ready set and what its
volumes hold now; or, with --from, between another ready set over the same volumes
and this one. They cover every byte that differs, rounded to the array's
granularity, or more where there would be over half a million regions. Compared is
what the sets present: the recovered content, as views or in place, with what
initiators wrote to it. So a copy of the recovered disks of the older set becomes
one of the newer set by copying these regions alone, and an incremental backup
needs to read nothing else; for the splits as they came off the list holds as well.
What is written during the call may be left out. -o json lists the regions; -o name prints VM, device, offset
and length, a region a line, in bytes.`,
		Example: `  cleave snapshot diff set-0123456789abcdef
  cleave snapshot diff "$TUESDAY" --from "$MONDAY" -o json | jq '.disks[].total'`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := setID(args[0])
			if err != nil {
				return err
			}
			var other orchestrator.SetID
			if from != "" {
				if other, err = setID(from); err != nil {
					return err
				}
			}
			return a.withControl(func(s Control) error {
				d, err := s.Diff(c.Context(), id, other)
				if err != nil {
					return err
				}
				return a.print(diffResult(d))
			})
		},
	}
	c.Flags().StringVar(&from, "from", "", "set to compare with (default: what the volumes hold now)")
	return c
}

func diffResult(d orchestrator.Diff) result {
	d.Disks = some(d.Disks)
	var names []string
	for _, x := range d.Disks {
		for _, r := range x.Regions {
			names = append(names, fmt.Sprintf("%s %s %d %d", strings.ReplaceAll(printable(x.VM), " ", "_"), x.Device, r.Offset, r.Length))
		}
	}
	return result{value: d, names: names, text: func(w io.Writer, p *paper) error {
		to := string(d.To)
		if to == "" {
			to = "now"
		}
		fmt.Fprintf(w, "From %s to %s\n", d.From, to)
		t := table{head: []string{"VM", "DEVICE", "VOLUME", "REGIONS", "CHANGED"}}
		for _, x := range d.Disks {
			t.add(x.VM, x.Device, x.Array+"/"+x.Volume, fmt.Sprint(len(x.Regions)), fmt.Sprintf("%s (%d bytes)", size(x.Total), x.Total))
		}
		section(w, p, t)
		return nil
	}}
}
