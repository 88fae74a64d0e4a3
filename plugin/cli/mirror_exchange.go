package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) mirrorRevertCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revert SPLIT",
		Short: "Put a volume back to what a split of it holds",
		Long: `Put a volume back to what a split of it, named by its ID, holds: at once,
whatever its size. The split is used up. What the volume held until now is kept
as a new split, the safe point, which the command prints: cleave mirror revert
with its ID goes back, and mirror delete gives up what it holds.

It is refused while the volume or the split is in use: shut down the VMs and
unexpose both first, since an initiator would not know that its caches are stale.
The volume runs on one mirror until the others are filled with what differs
(mirror status), or the safe point is resynced. Where the volume has grown since
the split, it keeps its size, and what was added reads as zeroes.`,
		Example: `  cleave volume unexpose db
  cleave mirror revert 0b6c5c3a-0f5e-4d0e-8a52-6c1a9d3f3c77
  cleave volume expose db --to iqn.1993-08.org.debian:01:host1`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				safe, err := s.Revert(c.Context(), args[0])
				if err != nil {
					return partHint(err)
				}
				say(a.Err, "hint", fmt.Sprintf("`cleave mirror revert %s` goes back", safe.ID))
				return a.print(splitResult(safe))
			})
		},
	}
}

func (a *app) mirrorReverseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reverse SPLIT",
		Short: "Have a volume and a split of it change places",
		Long: `Exchange the contents of a volume and a split of it, named by its ID: the volume
goes on with what the split holds, and what it held becomes the split, under the
same tag and a new ID, which the command prints. cleave mirror reverse with that
ID exchanges them back.

It is refused while either is in use, and leaves the volume on one mirror until
the others are filled, both as with mirror revert.`,
		Example: `  cleave mirror reverse 0b6c5c3a-0f5e-4d0e-8a52-6c1a9d3f3c77`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				other, err := s.Reverse(c.Context(), args[0])
				if err != nil {
					return partHint(err)
				}
				say(a.Err, "hint", fmt.Sprintf("`cleave mirror reverse %s` exchanges them back", other.ID))
				return a.print(splitResult(other))
			})
		},
	}
}

func (a *app) mirrorBreakCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "break SPLIT --name NAME",
		Short: "Make a split a volume of its own",
		Long: `Make a split, named by its ID, a volume of its own, for good: with its content
and identity, and without copying. It can't be resynced any more, so that there
is no way back but cleave volume delete NAME. It works as well where the volume
that it came from is gone.

The new volume has one mirror; mirror add gives it another. The one that it came
from has one less, which mirror repair replaces. It is refused while the split
is in use.`,
		Example: `  cleave mirror break 0b6c5c3a-0f5e-4d0e-8a52-6c1a9d3f3c77 --name db-test
  cleave mirror add db-test --pool b`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStorage(func(s Storage) error {
				v, err := s.Break(c.Context(), args[0], name)
				if err != nil {
					return partHint(err)
				}
				return a.print(volumeResult(v))
			})
		},
	}
	c.Flags().StringVar(&name, "name", "", "name of the new volume (required)")
	if err := c.MarkFlagRequired("name"); err != nil {
		panic(err) // a flag that is not there: a slip in this function
	}
	return c
}
